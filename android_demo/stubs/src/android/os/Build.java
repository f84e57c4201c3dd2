package android.os;

public class Build {
    public static final String MANUFACTURER = text();
    public static final String MODEL = text();
    public static final String FINGERPRINT = text();
    private static native String text();
    public static class VERSION {
        public static final int SDK_INT = number();
        public static final String RELEASE = text();
        private static native int number();
        private static native String text();
    }
}
