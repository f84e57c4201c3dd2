package android.view;

public abstract class LayoutInflater {
    public native View inflate(int layout, ViewGroup parent, boolean attach);
}
