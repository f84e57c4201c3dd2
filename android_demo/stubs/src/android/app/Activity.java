package android.app;

public class Activity extends android.view.ContextThemeWrapper {
    public static final int RESULT_OK = -1;
    protected native void onCreate(android.os.Bundle state);
    protected native void onStart();
    protected native void onPause();
    protected native void onStop();
    protected native void onSaveInstanceState(android.os.Bundle state);
    protected native void onNewIntent(android.content.Intent intent);
    protected native void onActivityResult(int code, int result, android.content.Intent data);
    public native boolean onCreateOptionsMenu(android.view.Menu menu);
    public native boolean onOptionsItemSelected(android.view.MenuItem item);
    public native void setContentView(int layout);
    public native android.view.View findViewById(int id);
    public native android.content.Intent getIntent();
    public native void startActivity(android.content.Intent intent);
    public native void startActivityForResult(android.content.Intent intent, int code);
    public final native void runOnUiThread(Runnable action);
    public native android.view.MenuInflater getMenuInflater();
    public native android.view.LayoutInflater getLayoutInflater();
}
