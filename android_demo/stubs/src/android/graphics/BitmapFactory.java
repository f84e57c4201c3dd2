package android.graphics;

public class BitmapFactory {
    public static native Bitmap decodeFile(String path, Options options);
    public static class Options {
        public boolean inJustDecodeBounds;
        public int inSampleSize;
        public int outWidth;
        public int outHeight;
        public Bitmap.Config inPreferredConfig;
    }
}
