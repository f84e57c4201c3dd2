package android.net;

public abstract class Uri implements android.os.Parcelable {
    public static native Uri parse(String text);
    public abstract java.util.List<String> getPathSegments();
    public abstract String getAuthority();
}
