package org.edgevlm.app;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.edgevlm.Answer;
import org.edgevlm.Conversation;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.GenerationOptions;
import org.edgevlm.Options;
import org.edgevlm.TilePlan;
import org.edgevlm.TokenListener;
import org.edgevlm.TrimLevel;

/**
 * What the one screen does, without a screen: it outlives activities, holds the model and the conversation, and tells whoever
 * looks at it. Its methods are called on the main thread; so are those of its watcher. No Android in here, so that it runs
 * on a desktop in tests.
 */
final class ChatController {
    /** What can be done now. */
    enum State {
        NO_PACKAGE, IMPORTING, LOADING, READY, ANSWERING, FAILED
    }

    /** Hears that something has changed and should be drawn again. */
    interface Watcher {
        void changed();

        /** New text of the running answer. */
        void streamed(String piece);
    }

    /** Attaches a picture file to a conversation. */
    interface PictureReader {
        Future<TilePlan> attach(Conversation conversation, File picture, boolean restore) throws EdgeVlmException;
    }

    /** What the user may set. */
    static final class Settings {
        int threads;
        int maxTiles;
        double temperature;
        /** Longest answer in tokens; 0 is the model's own. */
        int maxNewTokens;
    }

    /** Opens a package; tests put something slow in its place. */
    interface Opener {
        EdgeVlm open(File packageDirectory, Options options) throws EdgeVlmException;
    }

    private final File directory;
    private final Executor main;
    private final PictureReader pictures;
    private final Opener opener;
    private final ExecutorService work = Executors.newSingleThreadExecutor();
    private Watcher watcher;
    private State state = State.NO_PACKAGE;
    private String problem = "";
    private int progress;
    private EdgeVlm model;
    private Conversation conversation;
    private SavedConversation saved;
    private String asked = "";
    private final StringBuilder answer = new StringBuilder();
    private final List<TilePlan> plans = new ArrayList<>();
    private Answer last;

    /** `directory` is where the conversation and its pictures are kept; `main` runs things on the main thread. */
    ChatController(File directory, Executor main, PictureReader pictures, Opener opener) {
        this.directory = directory;
        this.main = main;
        this.pictures = pictures;
        this.opener = opener;
        saved = SavedConversation.read(savedFile());
    }

    private File savedFile() {
        return new File(directory, "conversation.bin");
    }

    void watch(Watcher newWatcher) {
        watcher = newWatcher;
        changed();
    }

    void unwatch(Watcher oldWatcher) {
        if (watcher == oldWatcher) {
            watcher = null;
        }
    }

    private void changed() {
        if (watcher != null) {
            watcher.changed();
        }
    }

    State state() {
        return state;
    }

    String problem() {
        return problem;
    }

    /** Per cent of an import. */
    int progress() {
        return progress;
    }

    List<SavedConversation.Turn> turns() {
        return Collections.unmodifiableList(saved.turns);
    }

    List<String> attached() {
        return Collections.unmodifiableList(saved.attached);
    }

    String draft() {
        return saved.draft;
    }

    /** Returns the draft for a screen that shows it from now on, so that it does not come back once it is deleted there. */
    String takeDraft() {
        String draft = saved.draft;
        saved.draft = "";
        return draft;
    }

    /** The question that is being answered. */
    String asked() {
        return asked;
    }

    /** The answer that is being written. */
    String answer() {
        return answer.toString();
    }

    /** How the attached pictures are cut, as far as it is known yet. */
    List<TilePlan> plans() {
        return Collections.unmodifiableList(plans);
    }

    /** Numbers of the last answer, or null. */
    Answer lastAnswer() {
        return last;
    }

    EdgeVlm model() {
        return model;
    }

    File pictureFile(String name) {
        return new File(directory, name);
    }

    // ---- package

    void importing(int percent) {
        state = State.IMPORTING;
        progress = percent;
        changed();
    }

    /** An import has failed; a package that is open stays open, one that is being opened goes on. */
    void importFailed(String message) {
        State without = state == State.LOADING ? State.LOADING : State.FAILED;
        state = model == null ? without : State.READY;
        problem = message;
        changed();
    }

    private void failed(String message) {
        state = State.FAILED;
        problem = message;
        changed();
    }

    /** Opens a package off the main thread and puts the saved conversation back. */
    void load(File packageDirectory, Options options) {
        state = State.LOADING;
        problem = "";
        changed();
        EdgeVlm old = model;
        model = null;
        conversation = null;
        work.execute(() -> {
            if (old != null) {
                old.close();
            }
            try {
                EdgeVlm opened = opener.open(packageDirectory, options);
                // By way of the main thread, which owns the turns: an answer that the close has ended is among them by then.
                main.execute(() -> restoreInto(opened, new ArrayList<>(saved.turns)));
            } catch (EdgeVlmException error) {
                main.execute(() -> failed(error.getMessage()));
            }
        });
    }

    private void restoreInto(EdgeVlm opened, List<SavedConversation.Turn> turns) {
        work.execute(() -> {
            try {
                Conversation restored = restore(opened, turns);
                main.execute(() -> loaded(opened, restored));
            } catch (EdgeVlmException error) {
                opened.close();
                main.execute(() -> failed(error.getMessage()));
            }
        });
    }

    private Conversation restore(EdgeVlm opened, List<SavedConversation.Turn> turns) throws EdgeVlmException {
        Conversation restored = opened.newConversation(null);
        for (SavedConversation.Turn turn : turns) {
            if (turn.answer == null) {
                continue;
            }
            for (String name : turn.pictures) {
                if (opened.takesPictures() && pictureFile(name).isFile()) {
                    pictures.attach(restored, pictureFile(name), true);
                }
            }
            restored.restoreTurn(turn.question, turn.answer);
        }
        return restored;
    }

    private void loaded(EdgeVlm opened, Conversation restored) {
        model = opened;
        conversation = restored;
        state = State.READY;
        List<String> names = new ArrayList<>(saved.attached);
        plans.clear();
        for (String name : names) {
            attachNow(name);
        }
        changed();
    }

    // ---- conversation

    void setDraft(String text) {
        saved.draft = text;
    }

    /** Attaches a picture file of `directory` to the next question; encoding begins at once. */
    void attach(String name) {
        saved.attached.add(name);
        save();
        if (conversation != null) {
            attachNow(name);
        }
        changed();
    }

    private void attachNow(String name) {
        Conversation mine = conversation;
        work.execute(() -> {
            try {
                TilePlan plan = pictures.attach(mine, pictureFile(name), false).get();
                main.execute(() -> {
                    plans.add(plan);
                    changed();
                });
            } catch (EdgeVlmException | InterruptedException | java.util.concurrent.ExecutionException error) {
                Throwable cause = error.getCause() == null ? error : error.getCause();
                main.execute(() -> {
                    saved.attached.remove(name);
                    problem = cause.getMessage();
                    changed();
                });
            }
        });
    }

    void detach() {
        saved.attached.clear();
        plans.clear();
        if (conversation != null) {
            conversation.removeImages();
        }
        save();
        changed();
    }

    /** Asks; the answer streams to the watcher. */
    void send(String text, Settings settings) {
        if (state != State.READY) {
            return;
        }
        answer.setLength(0);
        asked = text;
        problem = "";
        state = State.ANSWERING;
        saved.draft = "";
        Listener listener = new Listener(text, new ArrayList<>(saved.attached));
        EdgeVlm mine = model;
        Conversation to = conversation;
        // Behind the pictures that are still being attached.
        work.execute(() -> {
            try {
                GenerationOptions options = mine.generationOptions().withTemperature(settings.temperature);
                to.send(text, settings.maxNewTokens == 0 ? options : options.withMaxNewTokens(settings.maxNewTokens), listener);
            } catch (EdgeVlmException error) {
                listener.onError(error);
            }
        });
        changed();
    }

    private final class Listener implements TokenListener {
        private final String question;
        private final List<String> names;

        Listener(String question, List<String> names) {
            this.question = question;
            this.names = names;
        }

        @Override
        public void onText(String text) {
            main.execute(() -> {
                answer.append(text);
                if (watcher != null) {
                    watcher.streamed(text);
                }
            });
        }

        @Override
        public void onDone(Answer done) {
            main.execute(() -> {
                last = done;
                if (done.text.isEmpty() && done.finish == Answer.Finish.CANCELLED) {
                    saved.draft = question;
                } else {
                    saved.turns.add(new SavedConversation.Turn(question, names, done.text));
                    saved.attached.removeAll(names);
                    plans.clear();
                }
                ended("");
            });
        }

        @Override
        public void onError(EdgeVlmException error) {
            main.execute(() -> {
                saved.draft = question;
                ended(error.getMessage());
            });
        }

        private void ended(String message) {
            answer.setLength(0);
            problem = message;
            state = state == State.ANSWERING ? State.READY : state;
            save();
            changed();
        }
    }

    void stop() {
        if (conversation != null) {
            conversation.cancel();
        }
    }

    void newConversation() {
        stop();
        for (SavedConversation.Turn turn : saved.turns) {
            for (String name : turn.pictures) {
                delete(name);
            }
        }
        for (String name : saved.attached) {
            delete(name);
        }
        saved = new SavedConversation();
        plans.clear();
        last = null;
        problem = "";
        if (model != null) {
            conversation = model.newConversation(null);
        }
        save();
        changed();
    }

    private void delete(String name) {
        File file = pictureFile(name);
        if (file.isFile() && !file.delete()) {
            problem = file + " cannot be removed";
        }
    }

    /** Writes the conversation, so that a killed process finds it again. */
    void save() {
        try {
            saved.write(savedFile());
        } catch (IOException error) {
            problem = error.getMessage();
        }
    }

    void trim(TrimLevel level) {
        if (model != null) {
            model.trim(level);
        }
    }

    void close() {
        EdgeVlm old = model;
        model = null;
        conversation = null;
        work.execute(() -> {
            if (old != null) {
                old.close();
            }
        });
        work.shutdown();
    }
}
