package android.graphics;

public class Matrix {
    public enum ScaleToFit { FILL, START, CENTER, END }
    public native boolean setRectToRect(RectF source, RectF target, ScaleToFit fit);
    public native boolean mapRect(RectF target, RectF source);
    public native boolean postScale(float x, float y);
    public native boolean postRotate(float degrees);
}
