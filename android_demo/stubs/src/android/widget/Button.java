package android.widget;

public class Button extends TextView {
    public Button(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
}
