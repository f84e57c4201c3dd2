package org.edgevlm;

import java.io.File;
import java.nio.ByteBuffer;
import java.util.List;

/**
 * The C engine as the library sees it. {@link JniEngine} is the real one; tests put others in its place. Buffers are direct
 * and in the machine's byte order. Failures are exceptions of the status's kind.
 */
interface NativeEngine {
    /** `directory` holds plan.bin and weights.bin; fastCores keeps the threads on the big cores. */
    Model open(File directory, int threads, boolean fastCores) throws EdgeVlmException;

    /** Plans an upright picture; maxTiles lowers the number of grid tiles, 0 leaves it to the package. */
    TilePlan plan(ImageSpec spec, int height, int width, int maxTiles) throws EdgeVlmException;

    /** Writes tiles [begin, end) of a picture, normalised float32 (n, 3, S, S), into `out`. */
    void prepare(ImageSpec spec, Pixels picture, int maxTiles, int begin, int end, ByteBuffer out)
        throws EdgeVlmException;

    /** Mapped weights and threads. */
    interface Model {
        int hiddenSize();

        int vocabSize();

        int threads();

        String variant();

        long weightsBytes();

        Context newContext(int capacity) throws EdgeVlmException;

        Sampler newSampler() throws EdgeVlmException;

        /** Maps the vision weights. */
        Tower newTower() throws EdgeVlmException;

        void close();
    }

    /** A run of a prompt: n ids, or n rows of a picture's features from `firstRow` on. */
    final class Run {
        final int n;
        final ByteBuffer features;
        final int firstRow;

        Run(int n, ByteBuffer features, int firstRow) {
            this.n = n;
            this.features = features;
            this.firstRow = firstRow;
        }
    }

    /** The key-value cache. Used by one thread at a time. A call whose token is set ends as CANCELLED, at its next operation. */
    interface Context {
        /** Appends tokens; `ids` has one for each, those of pictures are not looked at. Logits of the last one. */
        void prefill(int[] ids, List<Run> runs, ByteBuffer logits, Cancellation cancelled) throws EdgeVlmException;

        void step(int token, ByteBuffer logits, Cancellation cancelled) throws EdgeVlmException;

        void truncate(int nTokens) throws EdgeVlmException;

        int nPast();

        long bytes();

        long snapshotBytes();

        void snapshot(ByteBuffer out) throws EdgeVlmException;

        void restore(ByteBuffer in) throws EdgeVlmException;

        void close();
    }

    /** Logits to the next token. */
    interface Sampler {
        void begin(GenerationOptions options) throws EdgeVlmException;

        /** `history` is a direct buffer of ints: every id so far, the prompt's text included. */
        int next(ByteBuffer logits, ByteBuffer history, int nHistory) throws EdgeVlmException;

        void close();
    }

    /** The vision encoder. */
    interface Tower {
        int tokensPerTile();

        /** Tiles that are encoded in one go. */
        int maxBatch();

        /** pixels (n, 3, S, S) to features (n, V, D). */
        void encode(ByteBuffer pixels, int nTiles, ByteBuffer features, Cancellation cancelled) throws EdgeVlmException;

        void close();
    }
}
