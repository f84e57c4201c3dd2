package android.widget;

public class LinearLayout extends android.view.ViewGroup {
    public LinearLayout(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
}
