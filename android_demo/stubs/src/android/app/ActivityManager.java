package android.app;

public class ActivityManager {
    public native void getMemoryInfo(MemoryInfo info);
    public static class MemoryInfo {
        public long availMem;
        public long threshold;
    }
}
