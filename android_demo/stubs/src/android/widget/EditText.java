package android.widget;

public class EditText extends TextView {
    public EditText(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
    public native android.text.Editable getText();
}
