package android.widget;

public class ScrollView extends FrameLayout {
    public ScrollView(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
    public native boolean fullScroll(int direction);
}
