package org.edgevlm;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.FutureTask;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * Encodes pictures one after the other beside the language model, and keeps their features while memory allows. The vision
 * weights are mapped for the first picture and given back when nothing waits.
 */
final class PictureEncoder {
    private static final long POLL_MS = 20;

    private final NativeEngine engine;
    private final NativeEngine.Model model;
    private final ImageSpec spec;
    private final int tokensPerTile;
    private final long cacheBytes;
    private final ExecutorService thread = daemon("edgevlm-vision");
    /** Plans pictures, which must not wait for those that are being encoded. */
    private final ExecutorService planner = daemon("edgevlm-pictures");
    private final Map<String, Task> tasks = new HashMap<>();
    private final LinkedHashMap<String, ByteBuffer> kept = new LinkedHashMap<>(16, 0.75f, true);
    private NativeEngine.Tower tower;
    private double encodedMs;

    /** One picture on its way. */
    private static final class Task {
        final Cancellation cancelled = new Cancellation();
        FutureTask<ByteBuffer> result;
    }

    PictureEncoder(NativeEngine engine, NativeEngine.Model model, ImageSpec spec, int tokensPerTile, long cacheBytes) {
        this.engine = engine;
        this.model = model;
        this.spec = spec;
        this.tokensPerTile = tokensPerTile;
        this.cacheBytes = cacheBytes;
    }

    private static ExecutorService daemon(String name) {
        return Executors.newSingleThreadExecutor(runnable -> {
            Thread worker = new Thread(runnable, name);
            worker.setDaemon(true);
            return worker;
        });
    }

    /** Runs something small beside the encodings. */
    <T> Future<T> submit(Callable<T> work) throws EdgeVlmException {
        try {
            return planner.submit(work);
        } catch (RejectedExecutionException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE, "the package is closed; open it again", error);
        }
    }

    /** Begins to encode a picture unless its features are kept or on their way. */
    synchronized void start(Picture picture) throws EdgeVlmException {
        if (!kept.containsKey(picture.key())) {
            task(picture);
        }
    }

    private synchronized Task task(Picture picture) throws EdgeVlmException {
        Task task = tasks.get(picture.key());
        if (task == null || task.cancelled.isSet()) {
            Task fresh = new Task();
            fresh.result = new FutureTask<>(() -> encode(picture, fresh));
            try {
                thread.execute(fresh.result);
            } catch (RejectedExecutionException error) {
                throw new EdgeVlmException(EdgeVlmException.Kind.CANCELLED, "the package is closed", error);
            }
            tasks.put(picture.key(), fresh);
            task = fresh;
        }
        return task;
    }

    /** Returns features (C * V, D), encoding the picture or waiting for it. */
    ByteBuffer features(Picture picture, Cancellation cancelled) throws EdgeVlmException {
        while (true) {
            Task task;
            synchronized (this) {
                ByteBuffer found = kept.get(picture.key());
                if (found != null) {
                    return found;
                }
                task = task(picture);
            }
            try {
                return task.result.get(POLL_MS, TimeUnit.MILLISECONDS);
            } catch (TimeoutException | CancellationException waiting) {
                cancelled.check();
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
                throw new EdgeVlmException(EdgeVlmException.Kind.CANCELLED, "interrupted");
            } catch (ExecutionException failed) {
                Throwable cause = failed.getCause();
                if (!(cause instanceof EdgeVlmException)) {
                    throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "encoding failed: " + cause, cause);
                }
                EdgeVlmException error = (EdgeVlmException) cause;
                if (error.kind() != EdgeVlmException.Kind.CANCELLED) {
                    throw error;
                }
                // cancelled for an earlier answer: begin again, unless this one is cancelled too
                cancelled.check();
            }
        }
    }

    private ByteBuffer encode(Picture picture, Task task) throws EdgeVlmException {
        long start = System.nanoTime();
        try {
            int nTiles = picture.plan.nTiles();
            NativeEngine.Tower open = open();
            if (open.tokensPerTile() != tokensPerTile) {
                throw new EdgeVlmException(EdgeVlmException.Kind.PARITY, "image tokens do not match: the prompt has "
                    + tokensPerTile + " a tile, the vision encoder gives " + open.tokensPerTile());
            }
            int width = model.hiddenSize();
            int batch = Math.min(open.maxBatch(), nTiles);
            long tileFloats = 3L * spec.tilePx * spec.tilePx;
            ByteBuffer pixels = JniEngine.floats(batch * tileFloats);
            ByteBuffer features = JniEngine.floats((long) nTiles * tokensPerTile * width);
            int rowBytes = tokensPerTile * width * 4;
            for (int begin = 0; begin < nTiles; begin += batch) {
                int n = Math.min(batch, nTiles - begin);
                task.cancelled.check();
                engine.prepare(spec, picture.pixels, picture.maxTiles, begin, begin + n, pixels);
                task.cancelled.check();
                features.position(begin * rowBytes);
                features.limit((begin + n) * rowBytes);
                open.encode(pixels, n, features.slice(), task.cancelled);
                features.clear();
            }
            keep(picture.key(), features);
            return features;
        } finally {
            finish(picture.key(), task, (System.nanoTime() - start) / 1e6);
        }
    }

    private synchronized NativeEngine.Tower open() throws EdgeVlmException {
        if (tower == null) {
            tower = model.newTower();
        }
        return tower;
    }

    private synchronized void finish(String key, Task task, double ms) {
        encodedMs += ms;
        if (tasks.get(key) == task) {
            tasks.remove(key);
        }
        boolean idle = true;
        for (Task other : tasks.values()) {
            idle &= other.cancelled.isSet();
        }
        if (idle && tower != null) {
            tower.close();
            tower = null;
        }
    }

    private synchronized void keep(String key, ByteBuffer features) {
        kept.put(key, features);
        long total = 0;
        for (ByteBuffer buffer : kept.values()) {
            total += buffer.capacity();
        }
        Iterator<Map.Entry<String, ByteBuffer>> eldest = kept.entrySet().iterator();
        while (total > cacheBytes && eldest.hasNext()) {
            total -= eldest.next().getValue().capacity();
            eldest.remove();
        }
    }

    /** Forgets the features that are kept. */
    synchronized void drop() {
        kept.clear();
    }

    synchronized int nKept() {
        return kept.size();
    }

    synchronized boolean holdsWeights() {
        return tower != null;
    }

    /** Returns and resets the milliseconds of encoding since the last call. */
    synchronized double takeEncodedMs() {
        double ms = encodedMs;
        encodedMs = 0;
        return ms;
    }

    /** Stops what is encoded and what waits; the next use of a picture starts it again. */
    synchronized void cancel() {
        for (Task task : tasks.values()) {
            task.cancelled.set();
        }
    }

    /** Stops the thread, waits for the tile that is running, and drops everything. */
    void close() {
        cancel();
        planner.shutdown();
        thread.shutdown();
        try {
            while (!thread.awaitTermination(POLL_MS, TimeUnit.MILLISECONDS)
                    || !planner.awaitTermination(POLL_MS, TimeUnit.MILLISECONDS)) {
                cancel();
            }
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        }
        synchronized (this) {
            kept.clear();
            if (tower != null) {
                tower.close();
                tower = null;
            }
        }
    }
}
