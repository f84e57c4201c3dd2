package android.content;

public class ClipData {
    public static native ClipData newRawUri(CharSequence label, android.net.Uri uri);
}
