package android.view;

public class View {
    public static final int VISIBLE = 0;
    public static final int GONE = 8;
    public static final int FOCUS_DOWN = 130;
    public static final int ACCESSIBILITY_LIVE_REGION_NONE = 0;
    public static final int ACCESSIBILITY_LIVE_REGION_POLITE = 1;
    public View(android.content.Context context, android.util.AttributeSet attributes) { }
    protected native void onDraw(android.graphics.Canvas canvas);
    public native void invalidate();
    public native void setVisibility(int visibility);
    public native void setEnabled(boolean enabled);
    public native void setContentDescription(CharSequence text);
    public native void setAccessibilityLiveRegion(int mode);
    public native void setLabelFor(int id);
    public native void setOnClickListener(OnClickListener listener);
    public native boolean post(Runnable action);
    public final native int getWidth();
    public final native int getHeight();
    public final native android.content.res.Resources getResources();
    public interface OnClickListener {
        void onClick(View view);
    }
}
