package android.content;

public interface ComponentCallbacks2 {
    int TRIM_MEMORY_BACKGROUND = 40;
    int TRIM_MEMORY_UI_HIDDEN = 20;
    int TRIM_MEMORY_RUNNING_LOW = 10;
}
