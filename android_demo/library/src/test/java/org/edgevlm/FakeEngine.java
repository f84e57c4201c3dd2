package org.edgevlm;

import java.io.File;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** An engine whose slowness and failures a test decides; it answers with the ids of `script`, over and over. */
final class FakeEngine implements NativeEngine {
    final int hidden;
    final int vocabulary;
    final int tokensPerTile;
    int[] script = {65, 66, 67};
    /** Milliseconds of a decode step and of a tile. */
    volatile long stepMs;
    volatile long tileMs;
    /** Whether prefill waits for a cancel. */
    volatile boolean prefillHangs;
    volatile boolean encodeFails;
    volatile CountDownLatch started = new CountDownLatch(1);
    final AtomicInteger prefilled = new AtomicInteger();
    final AtomicInteger encoded = new AtomicInteger();
    final AtomicInteger towers = new AtomicInteger();
    final AtomicInteger restored = new AtomicInteger();
    final AtomicInteger open = new AtomicInteger();
    final List<String> mistakes = Collections.synchronizedList(new ArrayList<>());

    FakeEngine(Manifest manifest) {
        hidden = manifest.hiddenSize;
        vocabulary = manifest.vocabSize;
        tokensPerTile = manifest.prompt == null ? 1 : manifest.prompt.tokensPerTile;
    }

    @Override
    public Model open(File directory, int threads, boolean fastCores) {
        open.incrementAndGet();
        return new FakeModel();
    }

    @Override
    public TilePlan plan(ImageSpec spec, int height, int width, int maxTiles) {
        int cols = Math.max(1, Math.min(width / 100, maxTiles == 0 ? 16 : maxTiles));
        return new TilePlan(1, cols, cols > 1, true);
    }

    @Override
    public void prepare(ImageSpec spec, Pixels picture, int maxTiles, int begin, int end, ByteBuffer out) {
        if (out.capacity() < (long) (end - begin) * 3 * spec.tilePx * spec.tilePx * 4) {
            mistakes.add("the buffer for pixels is too small");
        }
    }

    private final class FakeModel implements Model {
        @Override
        public int hiddenSize() {
            return hidden;
        }

        @Override
        public int vocabSize() {
            return vocabulary;
        }

        @Override
        public int threads() {
            return 1;
        }

        @Override
        public String variant() {
            return "fake";
        }

        @Override
        public long weightsBytes() {
            return 0;
        }

        @Override
        public Context newContext(int capacity) {
            open.incrementAndGet();
            return new FakeContext();
        }

        @Override
        public Sampler newSampler() {
            open.incrementAndGet();
            return new FakeSampler();
        }

        @Override
        public Tower newTower() {
            open.incrementAndGet();
            towers.incrementAndGet();
            return new FakeTower();
        }

        @Override
        public void close() {
            open.decrementAndGet();
        }
    }

    private final class FakeContext implements Context {
        private volatile boolean closed;
        private int past;

        private void check(Cancellation cancelled) throws EdgeVlmException {
            if (closed) {
                mistakes.add("a closed context is used");
            }
            cancelled.check();
        }

        private void rest(long ms, Cancellation cancelled) throws EdgeVlmException {
            long end = System.nanoTime() + ms * 1_000_000;
            while (System.nanoTime() < end) {
                check(cancelled);
                try {
                    Thread.sleep(1);
                } catch (InterruptedException error) {
                    Thread.currentThread().interrupt();
                }
            }
        }

        @Override
        public void prefill(int[] ids, List<Run> runs, ByteBuffer logits, Cancellation cancelled)
                throws EdgeVlmException {
            started.countDown();
            check(cancelled);
            int covered = 0;
            for (Run run : runs) {
                covered += run.n;
                if (run.features != null && run.features.capacity() < (long) (run.firstRow + run.n) * hidden * 4) {
                    mistakes.add("a run reads behind its features");
                }
            }
            if (covered != ids.length || ids.length == 0) {
                mistakes.add("the runs cover " + covered + " of " + ids.length + " tokens");
            }
            if (prefillHangs) {
                rest(60_000, cancelled);
            }
            past += ids.length;
            prefilled.addAndGet(ids.length);
        }

        @Override
        public void step(int token, ByteBuffer logits, Cancellation cancelled) throws EdgeVlmException {
            rest(stepMs, cancelled);
            check(cancelled);
            past++;
        }

        @Override
        public void truncate(int nTokens) {
            if (nTokens > past) {
                mistakes.add("truncated to more than there is");
            }
            past = nTokens;
        }

        @Override
        public int nPast() {
            return past;
        }

        @Override
        public long bytes() {
            return 1000;
        }

        @Override
        public long snapshotBytes() {
            return 8;
        }

        @Override
        public void snapshot(ByteBuffer out) {
            out.putInt(0, past);
        }

        @Override
        public void restore(ByteBuffer in) throws EdgeVlmException {
            if (in.capacity() != 8) {
                throw new EdgeVlmException(EdgeVlmException.Kind.USAGE, "the snapshot has another size");
            }
            past = in.getInt(0);
            restored.incrementAndGet();
        }

        @Override
        public void close() {
            closed = true;
            open.decrementAndGet();
        }
    }

    private final class FakeSampler implements Sampler {
        private int at;

        @Override
        public void begin(GenerationOptions options) {
            at = 0;
        }

        @Override
        public int next(ByteBuffer logits, ByteBuffer history, int nHistory) {
            return script[at++ % script.length];
        }

        @Override
        public void close() {
            open.decrementAndGet();
        }
    }

    private final class FakeTower implements Tower {
        @Override
        public int tokensPerTile() {
            return tokensPerTile;
        }

        @Override
        public int maxBatch() {
            return 4;
        }

        @Override
        public void encode(ByteBuffer pixels, int nTiles, ByteBuffer features, Cancellation cancelled)
                throws EdgeVlmException {
            started.countDown();
            if (encodeFails) {
                throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "the tower failed");
            }
            long end = System.nanoTime() + nTiles * tileMs * 1_000_000;
            while (System.nanoTime() < end) {
                cancelled.check();
                try {
                    Thread.sleep(1);
                } catch (InterruptedException error) {
                    Thread.currentThread().interrupt();
                }
            }
            encoded.addAndGet(nTiles);
        }

        @Override
        public void close() {
            open.decrementAndGet();
        }
    }

    void awaitStart() throws InterruptedException {
        if (!started.await(20, TimeUnit.SECONDS)) {
            throw new IllegalStateException("nothing has started");
        }
        started = new CountDownLatch(1);
    }
}
