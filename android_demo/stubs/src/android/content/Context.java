package android.content;

public abstract class Context {
    public static final String ACTIVITY_SERVICE = "activity";
    public static final String POWER_SERVICE = "power";
    public static final int MODE_PRIVATE = 0;
    public native Object getSystemService(String name);
    public native java.io.File getFilesDir();
    public native java.io.File getCacheDir();
    public native java.io.File getExternalFilesDir(String type);
    public native Context getApplicationContext();
    public native android.content.res.AssetManager getAssets();
    public native android.content.res.Resources getResources();
    public native ContentResolver getContentResolver();
    public native SharedPreferences getSharedPreferences(String name, int mode);
    public final native String getString(int id);
    public final native String getString(int id, Object... values);
}
