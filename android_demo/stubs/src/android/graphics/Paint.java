package android.graphics;

public class Paint {
    public enum Style { FILL, STROKE, FILL_AND_STROKE }
    public native void setColor(int color);
    public native void setStyle(Style style);
    public native void setStrokeWidth(float width);
    public native void setShadowLayer(float radius, float x, float y, int color);
}
