package android.content.res;

public class Resources {
    public native String getString(int id);
    public native String getString(int id, Object... values);
    public native android.util.DisplayMetrics getDisplayMetrics();
}
