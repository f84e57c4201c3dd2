package android.widget;

public class ProgressBar extends android.view.View {
    public ProgressBar(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
    public native void setMax(int max);
    public native void setProgress(int progress);
    public native int getProgress();
}
