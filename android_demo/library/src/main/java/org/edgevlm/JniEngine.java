package org.edgevlm;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;

/** The C engine through JNI. Texts cross as UTF-8 bytes, never as Java strings. */
final class JniEngine implements NativeEngine {
    private static final int FLOAT_BYTES = 4;

    private static JniEngine loaded;

    private JniEngine() {
    }

    /** Loads the library `edgevlm_jni` of the app, which needs `edgevlm`, or, on a desktop, the file of the system property org.edgevlm.library. */
    static synchronized JniEngine load() throws EdgeVlmException {
        if (loaded == null) {
            String path = System.getProperty("org.edgevlm.library");
            try {
                if (path == null) {
                    System.loadLibrary("edgevlm_jni");
                } else {
                    System.load(path);
                }
                if (abiVersion() < 0) {
                    throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                        "the engine and its JNI part are of different versions; build both from one version");
                }
            } catch (UnsatisfiedLinkError error) {
                throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                    "the native library cannot be loaded (" + error.getMessage() + ")", error);
            }
            loaded = new JniEngine();
        }
        return loaded;
    }

    static native int abiVersion();

    static native byte[] lastError();

    static native int modelOpen(
        byte[] directory, int threads, byte[] variant, boolean fastCores, long[] out);

    static native byte[] modelInfo(long model, long[] out);

    static native void modelClose(long model);

    static native int contextNew(long model, int capacity, long[] out);

    static native long contextBytes(long context);

    static native void contextFree(long context);

    static native int prefill(
        long context, int[] ids, int[] runs, Object[] features, int width, ByteBuffer logits, int vocabulary,
        ByteBuffer cancel);

    static native int step(long context, int token, ByteBuffer logits, int vocabulary, ByteBuffer cancel);

    static native int truncate(long context, int nTokens);

    static native int nPast(long context);

    static native long snapshotBytes(long context);

    static native int snapshot(long context, ByteBuffer buffer, long size);

    static native int restore(long context, ByteBuffer buffer, long size);

    static native int planTiles(int[] integers, double[] reals, int height, int width, int maxTiles, int[] out);

    static native int prepareTiles(int[] integers, double[] reals, ByteBuffer pixels, int height, int width,
        int pixelBytes, int orientation, int maxTiles, int begin, int end, ByteBuffer out);

    static native int samplerNew(int vocabulary, long[] out);

    static native int samplerBegin(long sampler, double temperature, int topK, double topP, double minP,
        double repetitionPenalty, long seed);

    static native int samplerNext(long sampler, ByteBuffer logits, int vocabulary, ByteBuffer history, int nHistory);

    static native void samplerFree(long sampler);

    static native int towerNew(long model, long[] out);

    static native int encode(long tower, ByteBuffer pixels, int nTiles, ByteBuffer features, ByteBuffer cancel);

    static native void towerFree(long tower);

    /** Raises the exception that belongs to a status. */
    private static void check(int status) throws EdgeVlmException {
        if (status != 0) {
            String message = Utf8.decodeStrictly(lastError());
            EdgeVlmException.Kind kind = EdgeVlmException.Kind.of(status);
            boolean told = message != null && !message.isEmpty();
            throw new EdgeVlmException(kind, told ? message : "the engine refused the call (" + kind + ")");
        }
    }

    @Override
    public Model open(File directory, int threads, boolean fastCores) throws EdgeVlmException {
        long[] handle = new long[1];
        check(modelOpen(Utf8.encode(directory.getPath()), threads, null, fastCores, handle));
        return new JniModel(handle[0]);
    }

    @Override
    public TilePlan plan(ImageSpec spec, int height, int width, int maxTiles) throws EdgeVlmException {
        int[] out = new int[3];
        check(planTiles(spec.integers, spec.reals, height, width, maxTiles, out));
        return new TilePlan(out[0], out[1], out[2] != 0, spec.thumbnailFirst && out[2] != 0);
    }

    @Override
    public void prepare(ImageSpec spec, Pixels picture, int maxTiles, int begin, int end, ByteBuffer out)
            throws EdgeVlmException {
        check(prepareTiles(spec.integers, spec.reals, picture.bytes, picture.height, picture.width, picture.pixelBytes,
            picture.orientation, maxTiles, begin, end, out));
    }

    private static final class JniModel implements Model {
        private final long handle;
        private final long[] info = new long[7];
        private final String variant;
        private boolean closed;

        JniModel(long handle) {
            this.handle = handle;
            variant = Utf8.decodeStrictly(modelInfo(handle, info));
        }

        @Override
        public int hiddenSize() {
            return (int) info[0];
        }

        @Override
        public int vocabSize() {
            return (int) info[1];
        }

        @Override
        public long weightsBytes() {
            return info[5];
        }

        @Override
        public int threads() {
            return (int) info[6];
        }

        @Override
        public String variant() {
            return variant;
        }

        @Override
        public Context newContext(int capacity) throws EdgeVlmException {
            long[] context = new long[1];
            check(contextNew(handle, capacity, context));
            return new JniContext(context[0], hiddenSize(), vocabSize());
        }

        @Override
        public Sampler newSampler() throws EdgeVlmException {
            return new JniSampler(vocabSize());
        }

        @Override
        public Tower newTower() throws EdgeVlmException {
            long[] out = new long[6];
            check(towerNew(handle, out));
            return new JniTower(out);
        }

        @Override
        public synchronized void close() {
            if (!closed) {
                closed = true;
                modelClose(handle);
            }
        }
    }

    private static final class JniContext implements Context {
        private final int width;
        private final int vocabulary;
        private long handle;

        JniContext(long handle, int width, int vocabulary) {
            this.handle = handle;
            this.width = width;
            this.vocabulary = vocabulary;
        }

        @Override
        public void prefill(int[] ids, List<Run> runs, ByteBuffer logits, Cancellation cancelled)
                throws EdgeVlmException {
            int[] table = new int[3 * runs.size()];
            List<Object> features = new ArrayList<>();
            for (int i = 0; i < runs.size(); i++) {
                Run run = runs.get(i);
                table[3 * i] = run.n;
                table[3 * i + 1] = run.features == null ? -1 : features.size();
                table[3 * i + 2] = run.firstRow;
                if (run.features != null) {
                    features.add(run.features);
                }
            }
            check(JniEngine.prefill(
                handle, ids, table, features.toArray(), width, logits, vocabulary, cancelled.flag));
        }

        @Override
        public void step(int token, ByteBuffer logits, Cancellation cancelled) throws EdgeVlmException {
            check(JniEngine.step(handle, token, logits, vocabulary, cancelled.flag));
        }

        @Override
        public void truncate(int nTokens) throws EdgeVlmException {
            check(JniEngine.truncate(handle, nTokens));
        }

        @Override
        public int nPast() {
            return JniEngine.nPast(handle);
        }

        @Override
        public long bytes() {
            return contextBytes(handle);
        }

        @Override
        public long snapshotBytes() {
            return JniEngine.snapshotBytes(handle);
        }

        @Override
        public void snapshot(ByteBuffer out) throws EdgeVlmException {
            check(JniEngine.snapshot(handle, out, out.capacity()));
        }

        @Override
        public void restore(ByteBuffer in) throws EdgeVlmException {
            check(JniEngine.restore(handle, in, in.capacity()));
        }

        @Override
        public void close() {
            if (handle != 0) {
                contextFree(handle);
                handle = 0;
            }
        }
    }

    private static final class JniTower implements Tower {
        private final long[] info;

        JniTower(long[] info) {
            this.info = info;
        }

        @Override
        public int tokensPerTile() {
            return (int) info[1];
        }

        @Override
        public int maxBatch() {
            return (int) info[2];
        }

        @Override
        public void encode(ByteBuffer pixels, int nTiles, ByteBuffer features, Cancellation cancelled)
                throws EdgeVlmException {
            check(JniEngine.encode(info[0], pixels, nTiles, features, cancelled.flag));
        }

        @Override
        public void close() {
            if (info[0] != 0) {
                towerFree(info[0]);
                info[0] = 0;
            }
        }
    }

    private static final class JniSampler implements Sampler {
        private final int vocabulary;
        private long handle;

        JniSampler(int vocabulary) throws EdgeVlmException {
            this.vocabulary = vocabulary;
            long[] out = new long[1];
            check(samplerNew(vocabulary, out));
            handle = out[0];
        }

        @Override
        public void begin(GenerationOptions options) throws EdgeVlmException {
            check(samplerBegin(handle, options.temperature, options.topK, options.topP, options.minP,
                options.repetitionPenalty, options.seed));
        }

        @Override
        public int next(ByteBuffer logits, ByteBuffer history, int nHistory) throws EdgeVlmException {
            int token = samplerNext(handle, logits, vocabulary, history, nHistory);
            if (token < 0) {
                check(-token);
            }
            return token;
        }

        @Override
        public void close() {
            if (handle != 0) {
                samplerFree(handle);
                handle = 0;
            }
        }
    }

    static ByteBuffer floats(long count) throws EdgeVlmException {
        if (count * FLOAT_BYTES > Integer.MAX_VALUE) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "a buffer of " + count + " numbers is too large");
        }
        try {
            return ByteBuffer.allocateDirect((int) (count * FLOAT_BYTES)).order(ByteOrder.nativeOrder());
        } catch (OutOfMemoryError error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                "there is no memory for a buffer of " + count * FLOAT_BYTES / 1_000_000 + " MB", error);
        }
    }
}
