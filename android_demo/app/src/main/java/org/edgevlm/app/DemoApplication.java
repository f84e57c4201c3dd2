package org.edgevlm.app;

import android.app.Application;
import android.content.ComponentCallbacks2;
import android.content.Context;
import android.content.SharedPreferences;
import android.content.res.AssetManager;
import android.os.Handler;
import android.os.Looper;
import java.io.File;
import java.util.ArrayList;
import java.util.List;
import org.edgevlm.AndroidMemoryProbe;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.Options;
import org.edgevlm.PackageImporter;
import org.edgevlm.PackageSource;
import org.edgevlm.TrimLevel;

/** The process: the one controller, which outlives activities, and what the system asks of the app as a whole. */
public final class DemoApplication extends Application {
    static final String ASSET_PACKAGE = "package";
    private static final String PREFERENCES = "settings";
    private static final String CHOSEN = "package";
    /** Folder that `edgevlm android push` copies packages into. */
    private static final String PUSHED = "incoming";
    private static final int MAX_TILES = 16;

    private ChatController controller;
    private final Handler handler = new Handler(Looper.getMainLooper());

    static DemoApplication of(Context context) {
        return (DemoApplication) context.getApplicationContext();
    }

    ChatController controller() {
        return controller;
    }

    @Override
    public void onCreate() {
        super.onCreate();
        controller = new ChatController(getFilesDir(), handler::post, new PictureFiles(), EdgeVlm::open);
        begin();
    }

    /** Opens the package that is here, or imports the bundled one first; one that a computer has pushed comes before both. */
    private void begin() {
        File chosen = chosenPackage();
        if (importPushed()) {
            return;
        }
        if (chosen != null) {
            controller.load(chosen, options());
        } else if (AssetSource.has(getAssets(), ASSET_PACKAGE)) {
            importPackage(new AssetSource(getAssets(), ASSET_PACKAGE), () -> { });
        }
    }

    /** Returns the package that was imported last, any other when that is gone, or null. */
    private File chosenPackage() {
        List<File> packages = importer().packages();
        for (File found : packages) {
            if (found.getName().equals(preferences().getString(CHOSEN, ""))) {
                return found;
            }
        }
        return packages.isEmpty() ? null : packages.get(0);
    }

    /** Imports what `edgevlm android push` has put beside the app's own files, and removes it; returns whether there was any. */
    boolean importPushed() {
        File storage = getExternalFilesDir(null);
        List<File> pushed = storage == null ? new ArrayList<>() : PackageImporter.packages(new File(storage, PUSHED));
        boolean busy = controller.state() == ChatController.State.IMPORTING;
        if (pushed.isEmpty() || busy) {
            return busy;
        }
        File source = pushed.get(0);
        importPackage(new PackageSource.Directory(source), () -> PackageImporter.delete(source));
        return true;
    }

    /** Copies a package off the main thread, does what is to be done with the source, and opens the copy. */
    void importPackage(PackageSource source, Runnable afterwards) {
        controller.importing(0);
        new Thread(() -> {
            try {
                int[] shown = {-1};
                File imported = importer().importPackage(source, (done, total) -> {
                    int percent = (int) (100 * done / Math.max(1, total));
                    if (percent != shown[0]) {
                        shown[0] = percent;
                        handler.post(() -> controller.importing(percent));
                    }
                    return true;
                });
                handler.post(() -> {
                    preferences().edit().putString(CHOSEN, imported.getName()).apply();
                    controller.load(imported, options());
                });
            } catch (EdgeVlmException error) {
                handler.post(() -> {
                    if (controller.model() == null) {
                        reload();
                    }
                    controller.importFailed(error.getMessage());
                });
            } finally {
                afterwards.run();
            }
        }, "edgevlm-import").start();
    }

    private PackageImporter importer() {
        return new PackageImporter(new File(getFilesDir(), "packages"), null);
    }

    /** Opens the package again with what the user has set. */
    void reload() {
        File chosen = chosenPackage();
        if (chosen != null) {
            controller.load(chosen, options());
        }
    }

    private Options options() {
        ChatController.Settings settings = settings();
        Options options = new Options();
        options.threads = settings.threads;
        options.maxTiles = settings.maxTiles;
        options.cacheDirectory = getCacheDir();
        options.memory = new AndroidMemoryProbe(this);
        return options;
    }

    private SharedPreferences preferences() {
        return getSharedPreferences(PREFERENCES, MODE_PRIVATE);
    }

    ChatController.Settings settings() {
        ChatController.Settings settings = new ChatController.Settings();
        settings.threads = preferences().getInt("threads", 0);
        settings.maxTiles = preferences().getInt("max_tiles", 0);
        settings.temperature = preferences().getInt("temperature_percent", 0) / 100.0;
        return settings;
    }

    void keep(ChatController.Settings settings) {
        SharedPreferences.Editor editor = preferences().edit();
        editor.putInt("threads", Math.max(0, settings.threads));
        editor.putInt("max_tiles", Math.max(0, Math.min(MAX_TILES, settings.maxTiles)));
        editor.putInt("temperature_percent", (int) Math.round(settings.temperature * 100));
        editor.apply();
    }

    /** Hidden: the pictures' features and the vision weights go. In the background, or when memory is short: the cache too. */
    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        if (level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) {
            controller.trim(TrimLevel.KEY_VALUES);
        } else if (level >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN) {
            controller.trim(TrimLevel.VISION);
        } else if (level >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW) {
            controller.trim(TrimLevel.PICTURES);
        }
    }

    AssetManager assets() {
        return getAssets();
    }
}
