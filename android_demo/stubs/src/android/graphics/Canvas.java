package android.graphics;

public class Canvas {
    public Canvas(Bitmap bitmap) { }
    public native void drawBitmap(Bitmap bitmap, float left, float top, Paint paint);
    public native void drawBitmap(Bitmap bitmap, Matrix matrix, Paint paint);
    public native void drawLine(float startX, float startY, float stopX, float stopY, Paint paint);
}
