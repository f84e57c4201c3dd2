package android.content;

public class Intent {
    public static final String ACTION_SEND = "android.intent.action.SEND";
    public static final String ACTION_GET_CONTENT = "android.intent.action.GET_CONTENT";
    public static final String ACTION_OPEN_DOCUMENT_TREE = "android.intent.action.OPEN_DOCUMENT_TREE";
    public static final String CATEGORY_OPENABLE = "android.intent.category.OPENABLE";
    public static final String EXTRA_STREAM = "android.intent.extra.STREAM";
    public static final String EXTRA_TEXT = "android.intent.extra.TEXT";
    public static final int FLAG_GRANT_READ_URI_PERMISSION = 1;
    public static final int FLAG_GRANT_WRITE_URI_PERMISSION = 2;
    public Intent(String action) { }
    public Intent(Context context, Class<?> activity) { }
    public native String getAction();
    public native boolean getBooleanExtra(String name, boolean otherwise);
    public native android.net.Uri getData();
    public native <T extends android.os.Parcelable> T getParcelableExtra(String name);
    public native Intent addCategory(String category);
    public native Intent addFlags(int flags);
    public native Intent setType(String type);
    public native Intent putExtra(String name, String value);
    public native Intent putExtra(String name, boolean value);
    public native Intent putExtra(String name, android.os.Parcelable value);
    public native void setClipData(ClipData clip);
    public static native Intent createChooser(Intent intent, CharSequence title);
}
