package org.edgevlm.app;

import android.app.Activity;
import android.content.Intent;
import android.graphics.Bitmap;
import android.os.Build;
import android.os.Bundle;
import android.os.PowerManager;
import android.widget.Button;
import android.widget.TextView;
import java.io.File;
import java.io.IOException;
import java.util.Locale;
import org.edgevlm.Answer;
import org.edgevlm.Bitmaps;
import org.edgevlm.Conversation;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;

/** Runs the standard prompt three times, shows where the time went, and shares it as JSON. */
public final class BenchmarkActivity extends Activity implements ChatController.Watcher {
    /** Extra of an intent that begins at once and leaves the JSON for `edgevlm android bench`. */
    static final String AUTOMATIC = "automatic";
    private static final String RESULT = "benchmark.json";
    private static final int SIDE_PX = 768;
    private static final String[] THERMAL = {"none", "light", "moderate", "severe", "critical", "emergency", "shutdown"};

    private Button run;
    private Button share;
    private TextView table;
    private Benchmark benchmark;
    private EdgeVlm model;
    /** Whether it shall begin as soon as the model is ready. */
    private boolean waiting;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        waiting = state == null && getIntent().getBooleanExtra(AUTOMATIC, false);
        setContentView(R.layout.benchmark);
        run = (Button) findViewById(R.id.run);
        share = (Button) findViewById(R.id.share);
        table = (TextView) findViewById(R.id.table);
        run.setOnClickListener(view -> begin(false));
        share.setOnClickListener(view -> share());
        share.setEnabled(false);
    }

    private ChatController controller() {
        return DemoApplication.of(this).controller();
    }

    @Override
    protected void onStart() {
        super.onStart();
        controller().watch(this);
    }

    @Override
    protected void onStop() {
        super.onStop();
        controller().unwatch(this);
    }

    @Override
    public void changed() {
        ChatController.State state = controller().state();
        if (!waiting) {
            return;
        }
        if (state == ChatController.State.READY) {
            waiting = false;
            begin(true);
        } else if (state == ChatController.State.FAILED || state == ChatController.State.NO_PACKAGE) {
            waiting = false;
            String problem = controller().problem();
            leave(Benchmark.refusal(problem.isEmpty() ? "there is no package on the phone" : problem));
        }
    }

    @Override
    public void streamed(String piece) {
        // nothing is asked here
    }

    private void begin(boolean automatic) {
        model = controller().model();
        if (model == null || controller().state() != ChatController.State.READY) {
            table.setText(R.string.not_ready);
            return;
        }
        run.setEnabled(false);
        share.setEnabled(false);
        benchmark = new Benchmark();
        Benchmark mine = benchmark;
        EdgeVlm measured = model;
        new Thread(() -> {
            mine.run(measured, BenchmarkActivity::standardPicture, this::thermalStatus,
                () -> runOnUiThread(this::show));
            runOnUiThread(() -> {
                run.setEnabled(true);
                share.setEnabled(!mine.answers().isEmpty());
                if (automatic) {
                    leave(json());
                }
            });
        }, "edgevlm-benchmark").start();
    }

    /** A picture that is the same everywhere: a coloured gradient with a square in it. */
    private static void standardPicture(Conversation conversation) throws EdgeVlmException {
        int[] colors = new int[SIDE_PX * SIDE_PX];
        for (int y = 0; y < SIDE_PX; y++) {
            for (int x = 0; x < SIDE_PX; x++) {
                boolean inside = x > 200 && x < 500 && y > 250 && y < 550;
                colors[y * SIDE_PX + x] = inside ? 0xFFCC2020 : 0xFF000000 | x / 3 << 16 | y / 3 << 8 | 0x80;
            }
        }
        Bitmap bitmap = Bitmap.createBitmap(colors, SIDE_PX, SIDE_PX, Bitmap.Config.ARGB_8888);
        Bitmaps.addImage(conversation, bitmap, 1);
    }

    private String thermalStatus() {
        if (Build.VERSION.SDK_INT < 29) {
            return "unknown";
        }
        int status = ((PowerManager) getSystemService(POWER_SERVICE)).getCurrentThermalStatus();
        return status >= 0 && status < THERMAL.length ? THERMAL[status] : "unknown";
    }

    private void show() {
        StringBuilder text = new StringBuilder();
        for (Answer answer : benchmark.answers()) {
            text.append(String.format(Locale.getDefault(), getString(R.string.benchmark_row), answer.encodeMs,
                answer.prefillMs, answer.prefillTokensPerSecond(), answer.decodeTokensPerSecond(),
                answer.peakResidentBytes / 1e6)).append('\n');
        }
        table.setText(text.append(benchmark.error()).toString());
    }

    private void share() {
        Intent intent = new Intent(Intent.ACTION_SEND);
        intent.setType("application/json");
        intent.putExtra(Intent.EXTRA_TEXT, json());
        startActivity(Intent.createChooser(intent, getString(R.string.share)));
    }

    private String json() {
        String device = Build.MANUFACTURER + " " + Build.MODEL + ", Android " + Build.VERSION.RELEASE;
        return benchmark.toJson(model, device, Build.FINGERPRINT);
    }

    /** Leaves the result where a computer reads it. */
    private void leave(String json) {
        try {
            Benchmark.write(new File(getExternalFilesDir(null), RESULT), json);
        } catch (IOException error) {
            table.setText(error.getMessage());
        }
    }
}
