package android.widget;

public class ImageButton extends ImageView {
    public ImageButton(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
}
