package org.edgevlm;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;

/**
 * Turns with pictures on one package. The whole conversation is rendered for each turn; only what is new is computed.
 *
 * <p>All methods may be called from any thread.
 */
public final class Conversation {
    /** One question and its answer. */
    private static final class Turn {
        final String text;
        final List<Picture> pictures;
        final String answer;

        Turn(String text, List<Picture> pictures, String answer) {
            this.text = text;
            this.pictures = pictures;
            this.answer = answer;
        }
    }

    private final EdgeVlm model;
    private final String system;
    private final List<Turn> turns = new ArrayList<>();
    private final List<Future<Picture>> attached = new ArrayList<>();

    Conversation(EdgeVlm model, String system) {
        this.model = model;
        this.system = system;
    }

    /** Attaches a picture of R G B bytes, row by row, to the next question, and begins to encode it. */
    public Future<TilePlan> addImage(byte[] rgb, int width, int height) throws EdgeVlmException {
        ByteBuffer bytes = ByteBuffer.allocateDirect(rgb.length);
        bytes.put(rgb).clear();
        return addImage(new Pixels(bytes, width, height, 3, 1), true);
    }

    /**
     * Attaches a picture whose pixels stand in a direct buffer (3 bytes a pixel, or 4 of which the last is not looked at), and
     * which must be turned by EXIF's `orientation` (1: it is upright). The buffer must not change any more.
     */
    public Future<TilePlan> addImage(ByteBuffer pixels, int width, int height, int pixelBytes, int orientation)
            throws EdgeVlmException {
        return addImage(new Pixels(pixels, width, height, pixelBytes, orientation), true);
    }

    /** As {@link #addImage(ByteBuffer, int, int, int, int)}, for a turn to restore: encoded only when it is needed. */
    public Future<TilePlan> restoreImage(ByteBuffer pixels, int width, int height, int pixelBytes, int orientation)
            throws EdgeVlmException {
        return addImage(new Pixels(pixels, width, height, pixelBytes, orientation), false);
    }

    private Future<TilePlan> addImage(Pixels pixels, boolean encode) throws EdgeVlmException {
        model.requireOpen();
        if (model.encoder == null) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                "this package is a language model and takes no pictures");
        }
        int maxTiles = model.options.maxTiles;
        Future<Picture> planned = model.encoder.submit(() -> {
            Picture picture = Picture.of(pixels, model.engine, model.imageSpec, maxTiles);
            if (encode) {
                model.encoder.start(picture);
            }
            return picture;
        });
        synchronized (this) {
            attached.add(planned);
        }
        return model.encoder.submit(() -> planned.get().plan);
    }

    /** Takes the attached pictures off again. */
    public synchronized void removeImages() {
        attached.clear();
    }

    /** Asks with the package's options; see {@link #send(String, GenerationOptions, TokenListener)}. */
    public Future<Answer> send(String text, TokenListener listener) throws EdgeVlmException {
        return send(text, model.generationOptions(), listener);
    }

    /**
     * Asks about the attached pictures and everything before. Returns at once; the listener hears the answer. A question that
     * is refused, or cancelled before its first token, leaves the conversation as it was, pictures still attached.
     */
    public Future<Answer> send(String text, GenerationOptions options, TokenListener listener)
            throws EdgeVlmException {
        Cancellation cancelled = new Cancellation();
        Callable<Answer> work = () -> {
            Answer answer;
            try {
                answer = answer(text, options, cancelled, listener);
            } catch (EdgeVlmException error) {
                model.ended(cancelled);
                listener.onError(error);
                throw error;
            } catch (RuntimeException | OutOfMemoryError error) {
                model.ended(cancelled);
                EdgeVlmException told = new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                    "the answer failed inside the library (" + error + ")", error);
                listener.onError(told);
                throw told;
            }
            model.ended(cancelled);
            listener.onDone(answer);
            return answer;
        };
        return model.submit(cancelled, work);
    }

    /** Ends the running answer. Safe from any thread; an answer cancelled after its first token stays as far as it came. */
    public void cancel() {
        model.cancel();
    }

    /** Number of answered questions. */
    public synchronized int size() {
        return turns.size();
    }

    /**
     * Puts back a turn of an earlier run of the app, with the pictures that {@link #restoreImage} attached; nothing is computed
     * until the next question.
     */
    public void restoreTurn(String question, String answer) throws EdgeVlmException {
        List<Future<Picture>> mine;
        synchronized (this) {
            mine = new ArrayList<>(attached);
        }
        List<Picture> pictures = planned(mine);
        synchronized (this) {
            turns.add(new Turn(question, pictures, answer));
            attached.removeAll(mine);
        }
    }

    private static List<Picture> planned(List<Future<Picture>> futures) throws EdgeVlmException {
        List<Picture> pictures = new ArrayList<>();
        for (Future<Picture> future : futures) {
            try {
                pictures.add(future.get());
            } catch (ExecutionException failed) {
                if (failed.getCause() instanceof EdgeVlmException) {
                    throw (EdgeVlmException) failed.getCause();
                }
                throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE,
                    "the picture cannot be planned (" + failed.getCause() + ")", failed.getCause());
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
                throw new EdgeVlmException(EdgeVlmException.Kind.CANCELLED, "interrupted");
            }
        }
        return pictures;
    }

    private Answer answer(String text, GenerationOptions options, Cancellation cancelled, TokenListener listener)
            throws EdgeVlmException {
        List<Future<Picture>> mine;
        List<Turn> before;
        synchronized (this) {
            mine = new ArrayList<>(attached);
            before = new ArrayList<>(turns);
        }
        List<Picture> own = planned(mine);
        TokenLoop.Prompt prompt = model.prompt(messages(before, text, own), pictures(before, own));
        if (model.missingTokens(prompt, options) > 0) {
            own = fitted(before, text, own, options, prompt);
            prompt = model.prompt(messages(before, text, own), pictures(before, own));
        }
        cancelled.check();
        Answer answer = model.answer(prompt, options, cancelled, listener::onText);
        if (answer.finish == Answer.Finish.CANCELLED && answer.text.isEmpty()) {
            return answer;
        }
        synchronized (this) {
            turns.add(new Turn(text, own, answer.text));
            attached.removeAll(mine);
        }
        return answer;
    }

    /** Returns the new pictures with as many tiles as fit; refuses when not even one each does. */
    private List<Picture> fitted(List<Turn> before, String text, List<Picture> own, GenerationOptions options,
            TokenLoop.Prompt prompt) throws EdgeVlmException {
        int largest = 0;
        for (Picture picture : own) {
            largest = Math.max(largest, picture.plan.rows * picture.plan.cols);
        }
        for (int budget = largest - 1; budget >= 1; budget--) {
            List<Picture> fewer = new ArrayList<>();
            for (Picture picture : own) {
                fewer.add(picture.within(budget, model.engine, model.imageSpec));
            }
            TokenLoop.Prompt shorter = model.prompt(messages(before, text, fewer), pictures(before, fewer));
            if (model.missingTokens(shorter, options) <= 0) {
                return fewer;
            }
        }
        throw model.doesNotFit(prompt, options);
    }

    private List<Message> messages(List<Turn> before, String text, List<Picture> own) {
        List<Message> messages = new ArrayList<>();
        List<TilePlan> none = Collections.emptyList();
        if (system != null) {
            messages.add(new Message("system", system, none));
        }
        for (Turn turn : before) {
            messages.add(new Message("user", turn.text, plans(turn.pictures)));
            messages.add(new Message("assistant", turn.answer, none));
        }
        messages.add(new Message("user", text, plans(own)));
        return messages;
    }

    private static List<TilePlan> plans(List<Picture> pictures) {
        List<TilePlan> plans = new ArrayList<>();
        for (Picture picture : pictures) {
            plans.add(picture.plan);
        }
        return plans;
    }

    private static List<Picture> pictures(List<Turn> before, List<Picture> own) {
        List<Picture> all = new ArrayList<>();
        for (Turn turn : before) {
            all.addAll(turn.pictures);
        }
        all.addAll(own);
        return all;
    }
}
