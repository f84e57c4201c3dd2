package android.content.res;

public final class AssetManager {
    public static final int ACCESS_STREAMING = 2;
    public native java.io.InputStream open(String name) throws java.io.IOException;
    public native java.io.InputStream open(String name, int mode) throws java.io.IOException;
}
