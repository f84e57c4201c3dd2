package android.app;

public class Application extends android.content.ContextWrapper {
    public native void onCreate();
    public native void onTrimMemory(int level);
}
