package android.os;

public class ParcelFileDescriptor implements Parcelable {
    public static native ParcelFileDescriptor open(java.io.File file, int mode) throws java.io.FileNotFoundException;
    public static native int parseMode(String mode);
}
