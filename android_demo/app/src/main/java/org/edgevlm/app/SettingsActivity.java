package org.edgevlm.app;

import android.app.Activity;
import android.os.Bundle;
import android.widget.SeekBar;
import android.widget.TextView;
import java.util.Locale;

/** Threads, tile budget, temperature. What was changed counts when the page is left. */
public final class SettingsActivity extends Activity {
    private ChatController.Settings settings;
    private int threadsBefore;
    private int tilesBefore;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.settings);
        settings = DemoApplication.of(this).settings();
        threadsBefore = settings.threads;
        tilesBefore = settings.maxTiles;
        row(R.id.threads, R.id.threads_label, Runtime.getRuntime().availableProcessors(), settings.threads);
        row(R.id.tiles, R.id.tiles_label, 16, settings.maxTiles);
        row(R.id.temperature, R.id.temperature_label, 20, (int) Math.round(settings.temperature * 10));
        show();
    }

    private void row(int bar, int label, int most, int value) {
        SeekBar seek = (SeekBar) findViewById(bar);
        seek.setMax(most);
        seek.setProgress(value);
        findViewById(label).setLabelFor(bar);
        seek.setOnSeekBarChangeListener(new SeekBar.OnSeekBarChangeListener() {
            @Override
            public void onProgressChanged(SeekBar changed, int progress, boolean byUser) {
                read();
                show();
            }

            @Override
            public void onStartTrackingTouch(SeekBar touched) {
                // nothing to do
            }

            @Override
            public void onStopTrackingTouch(SeekBar released) {
                // nothing to do
            }
        });
    }

    private void read() {
        settings.threads = progress(R.id.threads);
        settings.maxTiles = progress(R.id.tiles);
        settings.temperature = progress(R.id.temperature) / 10.0;
    }

    private int progress(int bar) {
        return ((SeekBar) findViewById(bar)).getProgress();
    }

    private void show() {
        label(R.id.threads_label, settings.threads == 0 ? getString(R.string.threads_automatic)
            : getString(R.string.threads, settings.threads));
        label(R.id.tiles_label, settings.maxTiles == 0 ? getString(R.string.tiles_automatic)
            : getString(R.string.tiles, settings.maxTiles));
        label(R.id.temperature_label, settings.temperature == 0 ? getString(R.string.temperature_greedy)
            : String.format(Locale.getDefault(), getString(R.string.temperature), settings.temperature));
    }

    private void label(int id, String text) {
        ((TextView) findViewById(id)).setText(text);
    }

    @Override
    protected void onPause() {
        super.onPause();
        DemoApplication application = DemoApplication.of(this);
        application.keep(settings);
        if (settings.threads != threadsBefore || settings.maxTiles != tilesBefore) {
            threadsBefore = settings.threads;
            tilesBefore = settings.maxTiles;
            application.reload();
        }
    }
}
