package android.widget;

public class SeekBar extends AbsSeekBar {
    public SeekBar(android.content.Context context, android.util.AttributeSet attributes) { super(context, attributes); }
    public native void setOnSeekBarChangeListener(OnSeekBarChangeListener listener);
    public interface OnSeekBarChangeListener {
        void onProgressChanged(SeekBar bar, int progress, boolean byUser);
        void onStartTrackingTouch(SeekBar bar);
        void onStopTrackingTouch(SeekBar bar);
    }
}
