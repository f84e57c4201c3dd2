package org.edgevlm.app;

import android.app.Activity;
import android.content.ClipData;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.Matrix;
import android.net.Uri;
import android.os.Bundle;
import android.provider.MediaStore;
import android.view.Menu;
import android.view.MenuItem;
import android.view.View;
import android.widget.Button;
import android.widget.EditText;
import android.widget.ImageButton;
import android.widget.LinearLayout;
import android.widget.ScrollView;
import android.widget.TextView;
import android.widget.Toast;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.util.List;
import java.util.Locale;
import org.edgevlm.Answer;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.TilePlan;

/** The one screen: the conversation, the picture with its grid, the question. */
public final class MainActivity extends Activity implements ChatController.Watcher {
    private static final int PICK_PICTURE = 1;
    private static final int TAKE_PICTURE = 2;
    private static final int PICK_FOLDER = 3;
    private static final String ACTION_IMPORT = "org.edgevlm.app.IMPORT";
    private static final String ACTION_BENCHMARK = "org.edgevlm.app.BENCHMARK";
    private static final String CAMERA_URI = "camera_uri";
    /** Pixels of the picture on the screen. */
    private static final long SHOWN_PIXELS = 500_000;

    private ChatController controller;
    private LinearLayout messages;
    private ScrollView scroll;
    private TextView streaming;
    private TextView status;
    private TileGridView grid;
    private EditText question;
    private Button send;
    private ImageButton pick;
    private ImageButton camera;
    private Uri cameraUri;
    private String shownPicture = "";
    private Bitmap shownBitmap;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        controller = DemoApplication.of(this).controller();
        messages = (LinearLayout) findViewById(R.id.messages);
        scroll = (ScrollView) findViewById(R.id.scroll);
        status = (TextView) findViewById(R.id.status);
        grid = (TileGridView) findViewById(R.id.grid);
        question = (EditText) findViewById(R.id.question);
        send = (Button) findViewById(R.id.send);
        pick = (ImageButton) findViewById(R.id.pick);
        camera = (ImageButton) findViewById(R.id.camera);
        send.setOnClickListener(view -> sendOrStop());
        pick.setOnClickListener(view -> pickPicture());
        camera.setOnClickListener(view -> takePicture());
        grid.setOnClickListener(view -> controller.detach());
        question.setText(controller.takeDraft());
        if (state != null) {
            cameraUri = state.getParcelable(CAMERA_URI);
        } else {
            receive(getIntent());
        }
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        state.putParcelable(CAMERA_URI, cameraUri);
    }

    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        receive(intent);
    }

    /** A picture that another app shares, or what `edgevlm android` asks for. */
    private void receive(Intent intent) {
        String action = intent.getAction();
        if (ACTION_BENCHMARK.equals(action)) {
            Intent page = new Intent(this, BenchmarkActivity.class);
            startActivity(page.putExtra(BenchmarkActivity.AUTOMATIC, true));
        } else if (ACTION_IMPORT.equals(action)) {
            DemoApplication.of(this).importPushed();
        } else if (Intent.ACTION_SEND.equals(action)) {
            Uri uri = intent.getParcelableExtra(Intent.EXTRA_STREAM);
            if (uri != null) {
                attach(uri);
            }
        }
    }

    @Override
    protected void onStart() {
        super.onStart();
        controller.watch(this);
    }

    @Override
    protected void onStop() {
        super.onStop();
        controller.unwatch(this);
        controller.setDraft(question.getText().toString());
        controller.save();
    }

    // ---- what the user does

    private void sendOrStop() {
        if (controller.state() == ChatController.State.ANSWERING) {
            controller.stop();
            return;
        }
        String text = question.getText().toString().trim();
        if (text.isEmpty()) {
            return;
        }
        question.setText("");
        controller.send(text, DemoApplication.of(this).settings());
    }

    private void pickPicture() {
        Intent intent = new Intent(Intent.ACTION_GET_CONTENT);
        intent.addCategory(Intent.CATEGORY_OPENABLE);
        intent.setType("image/*");
        begin(intent, PICK_PICTURE);
    }

    private void takePicture() {
        cameraUri = CameraProvider.newPicture();
        Intent intent = new Intent(MediaStore.ACTION_IMAGE_CAPTURE);
        intent.putExtra(MediaStore.EXTRA_OUTPUT, cameraUri);
        intent.setClipData(ClipData.newRawUri("", cameraUri));
        intent.addFlags(Intent.FLAG_GRANT_WRITE_URI_PERMISSION | Intent.FLAG_GRANT_READ_URI_PERMISSION);
        begin(intent, TAKE_PICTURE);
    }

    private void begin(Intent intent, int code) {
        try {
            startActivityForResult(intent, code);
        } catch (android.content.ActivityNotFoundException none) {
            tell(getString(R.string.no_app));
        }
    }

    @Override
    protected void onActivityResult(int code, int result, Intent data) {
        super.onActivityResult(code, result, data);
        if (result != RESULT_OK) {
            return;
        }
        if (code == TAKE_PICTURE && cameraUri != null) {
            try {
                File file = CameraProvider.file(getFilesDir(), cameraUri);
                if (file.length() > 0) {
                    controller.attach(file.getName());
                }
            } catch (FileNotFoundException error) {
                tell(error.getMessage());
            }
        } else if (code == PICK_PICTURE && data != null && data.getData() != null) {
            attach(data.getData());
        } else if (code == PICK_FOLDER && data != null && data.getData() != null) {
            DemoApplication.of(this).importPackage(new FolderSource(getContentResolver(), data.getData()), () -> { });
        }
    }

    /** Copies a picture in, off the main thread, and attaches it. */
    private void attach(Uri uri) {
        new Thread(() -> {
            try {
                String name = PictureFiles.copyIn(getContentResolver(), uri, getFilesDir());
                runOnUiThread(() -> controller.attach(name));
            } catch (IOException error) {
                runOnUiThread(() -> tell(error.getMessage()));
            }
        }, "edgevlm-copy").start();
    }

    private void tell(String text) {
        Toast.makeText(this, text, Toast.LENGTH_LONG).show();
    }

    @Override
    public boolean onCreateOptionsMenu(Menu menu) {
        getMenuInflater().inflate(R.menu.main, menu);
        return true;
    }

    @Override
    public boolean onOptionsItemSelected(MenuItem item) {
        int id = item.getItemId();
        if (id == R.id.new_conversation) {
            controller.newConversation();
        } else if (id == R.id.settings) {
            startActivity(new Intent(this, SettingsActivity.class));
        } else if (id == R.id.benchmark) {
            startActivity(new Intent(this, BenchmarkActivity.class));
        } else if (id == R.id.import_package) {
            begin(new Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK_FOLDER);
        } else {
            return super.onOptionsItemSelected(item);
        }
        return true;
    }

    // ---- what is shown

    @Override
    public void changed() {
        ChatController.State state = controller.state();
        boolean answering = state == ChatController.State.ANSWERING;
        messages.removeAllViews();
        for (SavedConversation.Turn turn : controller.turns()) {
            addMessage(turn.question, R.string.you_said, true);
            addMessage(turn.answer == null ? "" : turn.answer, R.string.model_said, false);
        }
        if (answering) {
            addMessage(controller.asked(), R.string.you_said, true);
        }
        streaming = answering ? addMessage(controller.answer(), R.string.model_said, false) : null;
        send.setText(answering ? R.string.stop : R.string.send);
        send.setEnabled(answering || state == ChatController.State.READY);
        pick.setEnabled(!answering);
        camera.setEnabled(!answering);
        // A question that was refused or stopped comes back, unless another has been begun.
        if (!answering && question.getText().length() == 0 && !controller.draft().isEmpty()) {
            question.setText(controller.takeDraft());
        }
        status.setText(statusText(state));
        showPicture();
        scroll.post(() -> scroll.fullScroll(View.FOCUS_DOWN));
    }

    @Override
    public void streamed(String piece) {
        if (streaming != null) {
            streaming.append(piece);
            scroll.post(() -> scroll.fullScroll(View.FOCUS_DOWN));
        }
    }

    private TextView addMessage(String text, int speaker, boolean mine) {
        TextView view = (TextView) getLayoutInflater().inflate(
            mine ? R.layout.message_mine : R.layout.message_model, messages, false);
        view.setText(text);
        // A screen reader says who speaks; the text itself follows while it streams.
        view.setAccessibilityLiveRegion(mine ? View.ACCESSIBILITY_LIVE_REGION_NONE : View.ACCESSIBILITY_LIVE_REGION_POLITE);
        view.setHint(speaker);
        messages.addView(view);
        return view;
    }

    private String statusText(ChatController.State state) {
        if (!controller.problem().isEmpty()) {
            return controller.problem();
        }
        switch (state) {
            case NO_PACKAGE:
                return getString(R.string.no_package);
            case IMPORTING:
                return getString(R.string.importing, controller.progress());
            case LOADING:
                return getString(R.string.loading);
            case ANSWERING:
                return getString(R.string.answering);
            default:
                Answer last = controller.lastAnswer();
                return last == null ? getString(R.string.ready) : String.format(Locale.getDefault(),
                    getString(R.string.stages), last.encodeMs, last.prefillMs, last.decodeTokensPerSecond());
        }
    }

    /** Shows the last attached picture, decoded small, and its grid once it is planned. */
    private void showPicture() {
        List<String> attached = controller.attached();
        List<TilePlan> plans = controller.plans();
        String name = attached.isEmpty() ? "" : attached.get(attached.size() - 1);
        TilePlan plan = !attached.isEmpty() && plans.size() >= attached.size() ? plans.get(plans.size() - 1) : null;
        if (name.equals(shownPicture)) {
            grid.show(shownBitmap, plan);
            return;
        }
        shownPicture = name;
        shownBitmap = null;
        grid.show(null, null);
        if (name.isEmpty()) {
            return;
        }
        new Thread(() -> {
            try {
                File file = controller.pictureFile(name);
                Bitmap upright = upright(PictureFiles.decode(file, SHOWN_PIXELS), PictureFiles.orientation(file));
                runOnUiThread(() -> {
                    if (name.equals(shownPicture)) {
                        shownBitmap = upright;
                        changed();
                    }
                });
            } catch (EdgeVlmException unreadable) {
                runOnUiThread(() -> tell(unreadable.getMessage()));
            }
        }, "edgevlm-preview").start();
    }

    private static Bitmap upright(Bitmap stored, int orientation) {
        float[] turn = {0, 0, 0, 180, 180, 90, 90, 270, 270};
        boolean mirrored = orientation == 2 || orientation == 4 || orientation == 5 || orientation == 7;
        Matrix matrix = new Matrix();
        if (mirrored) {
            matrix.postScale(-1, 1);
        }
        matrix.postRotate(orientation == 5 ? 270 : orientation == 7 ? 90 : turn[orientation]);
        return Bitmap.createBitmap(stored, 0, 0, stored.getWidth(), stored.getHeight(), matrix, true);
    }
}
