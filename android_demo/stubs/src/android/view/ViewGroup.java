package android.view;

public abstract class ViewGroup extends View {
    public ViewGroup(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
    public native void addView(View child);
    public native void removeAllViews();
}
