package org.edgevlm;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The prefill and decode loop: ids and features in, text and one Answer out. Used by the engine's thread only. */
final class TokenLoop {
    private final KeyValueStore cache;
    private final NativeEngine.Sampler sampler;
    private final Tokenizer tokenizer;
    private final int[] eos;
    private final ByteBuffer logits;
    private final ByteBuffer history;
    private final MemoryProbe memory;

    TokenLoop(KeyValueStore cache, NativeEngine.Model model, Tokenizer tokenizer, int[] eos, MemoryProbe memory)
            throws EdgeVlmException {
        this.cache = cache;
        this.tokenizer = tokenizer;
        this.eos = eos.clone();
        this.memory = memory;
        sampler = model.newSampler();
        logits = JniEngine.floats(model.vocabSize());
        history = JniEngine.floats(cache.capacity() + 1L);
        Arrays.sort(this.eos);
    }

    /** A prompt: what every token is, and where the features of its pictures come from. */
    static final class Prompt {
        final int[] ids;
        /** An id, or a negative number that stands for one row of one picture. */
        final long[] keys;
        final List<Picture> pictures;
        /** Where the picture's rows begin in the prompt, row by row; for each picture its first token. */
        final int[] rowPicture;
        final int[] rowIndex;
        final int imageTokens;

        /** rowPicture holds for each token the picture it is a row of, or -1; rowIndex which row. */
        Prompt(int[] ids, long[] keys, List<Picture> pictures, int[] rowPicture, int[] rowIndex, int imageTokens) {
            this.ids = ids;
            this.keys = keys;
            this.pictures = pictures;
            this.rowPicture = rowPicture;
            this.rowIndex = rowIndex;
            this.imageTokens = imageTokens;
        }
    }

    /** What stands around the loop. */
    interface Stages {
        /** Returns the features of a picture, waiting for them. */
        ByteBuffer features(Picture picture) throws EdgeVlmException;

        /** Returns how many milliseconds pictures were encoded since it was last asked. */
        double takeEncodedMs();

        /** The prompt has been computed; the next stage has not begun. */
        void prefilled();
    }

    /** Hears pieces of text. */
    interface Sink {
        void text(String piece);
    }

    Answer run(Prompt prompt, Stages stages, GenerationOptions options, Cancellation cancelled, Sink sink,
            double loadMs) throws EdgeVlmException {
        long start = System.nanoTime();
        int nPrompt = prompt.ids.length;
        NativeEngine.Context context = cache.prepare(prompt.keys);
        int reused = context.nPast();
        long[] keys = Arrays.copyOf(prompt.keys, cache.capacity() + 1);
        // A picture's placeholders stand for no text: nobody has said them, and they may have no logit.
        int said = 0;
        for (int i = 0; i < nPrompt; i++) {
            if (prompt.rowPicture[i] < 0) {
                history.putInt(4 * said++, prompt.ids[i]);
            }
        }
        int n = nPrompt;
        IntList generated = new IntList();
        StringBuilder shown = new StringBuilder();
        StreamDecoder decoder = new StreamDecoder(tokenizer);
        double prefillMs = 0;
        double firstMs = 0;
        long decodeStart = 0;
        Answer.Finish finish;
        try {
            List<NativeEngine.Run> runs = runs(prompt, reused, stages);
            cancelled.check();
            long prefillStart = System.nanoTime();
            context.prefill(Arrays.copyOfRange(prompt.ids, reused, nPrompt), runs, logits, cancelled);
            prefillMs = milliseconds(prefillStart);
            stages.prefilled();
            sampler.begin(options);
            decodeStart = System.nanoTime();
            while (true) {
                int token = sampler.next(logits, history, said);
                firstMs = firstMs > 0 ? firstMs : milliseconds(start);
                if (Arrays.binarySearch(eos, token) >= 0) {
                    finish = Answer.Finish.STOP;
                    break;
                }
                generated.add(token);
                history.putInt(4 * said++, token);
                keys[n++] = token;
                show(decoder.push(token), shown, sink);
                if (generated.size() == options.maxNewTokens || context.nPast() == cache.capacity()) {
                    finish = Answer.Finish.LENGTH;
                    break;
                }
                cancelled.check();
                context.step(token, logits, cancelled);
            }
        } catch (EdgeVlmException error) {
            if (error.kind() != EdgeVlmException.Kind.CANCELLED) {
                throw error;
            }
            finish = Answer.Finish.CANCELLED;
        } finally {
            cache.hold(Arrays.copyOf(keys, n));
        }
        double decodeMs = decodeStart == 0 ? 0 : milliseconds(decodeStart);
        show(decoder.finish(), shown, sink);
        return new Answer(shown.toString(), generated.toArray(), finish,
            new int[] {nPrompt, prompt.imageTokens, reused},
            new double[] {loadMs, stages.takeEncodedMs(), prefillMs, decodeMs, firstMs, milliseconds(start)},
            memory.peakBytes());
    }

    private static void show(String piece, StringBuilder shown, Sink sink) {
        if (!piece.isEmpty()) {
            shown.append(piece);
            sink.text(piece);
        }
    }

    private static double milliseconds(long start) {
        return (System.nanoTime() - start) / 1e6;
    }

    /** Cuts the tokens from `first` on into runs of ids and of rows of one picture. */
    private static List<NativeEngine.Run> runs(Prompt prompt, int first, Stages stages) throws EdgeVlmException {
        List<NativeEngine.Run> runs = new ArrayList<>();
        int at = first;
        while (at < prompt.ids.length) {
            int picture = prompt.rowPicture[at];
            int end = at + 1;
            while (end < prompt.ids.length && prompt.rowPicture[end] == picture) {
                end++;
            }
            ByteBuffer rows = picture < 0 ? null : stages.features(prompt.pictures.get(picture));
            runs.add(new NativeEngine.Run(end - at, rows, picture < 0 ? 0 : prompt.rowIndex[at]));
            at = end;
        }
        return runs;
    }

    void close() {
        sampler.close();
    }
}
