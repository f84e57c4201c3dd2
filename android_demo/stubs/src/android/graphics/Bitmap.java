package android.graphics;

public final class Bitmap implements android.os.Parcelable {
    public enum Config { ALPHA_8, RGB_565, ARGB_4444, ARGB_8888 }
    public static native Bitmap createBitmap(int width, int height, Config config);
    public static native Bitmap createBitmap(int[] colors, int width, int height, Config config);
    public static native Bitmap createBitmap(Bitmap source, int x, int y, int width, int height, Matrix matrix, boolean filter);
    public native int getWidth();
    public native int getHeight();
    public native int getRowBytes();
    public native Config getConfig();
    public native boolean hasAlpha();
    public native void eraseColor(int color);
    public native void copyPixelsToBuffer(java.nio.Buffer buffer);
    public native void recycle();
}
