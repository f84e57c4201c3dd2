package android.os;

public final class Bundle implements Parcelable {
    public native <T extends Parcelable> T getParcelable(String key);
    public native void putParcelable(String key, Parcelable value);
}
