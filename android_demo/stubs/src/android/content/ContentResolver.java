package android.content;

public abstract class ContentResolver {
    public final native java.io.InputStream openInputStream(android.net.Uri uri) throws java.io.FileNotFoundException;
    public final native android.database.Cursor query(android.net.Uri uri, String[] columns, String selection, String[] arguments, String order);
}
