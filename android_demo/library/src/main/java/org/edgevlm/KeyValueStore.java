package org.edgevlm;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.util.Arrays;

/**
 * The key-value cache and what every token in it is, so that a new prompt computes only what follows the common prefix. Under
 * memory pressure it is put into a file. Used by the engine's thread only. The engine's rows have the same bits however a
 * prompt was split into calls, so any prefix can be taken, and the answer is what it would be from nothing.
 */
final class KeyValueStore {
    private final NativeEngine.Model model;
    private final int capacity;
    private final File file;
    private volatile NativeEngine.Context context;
    private long[] held = new long[0];
    private boolean onDisk;

    /** `directory` is where the cache is put down; null drops it instead. */
    KeyValueStore(NativeEngine.Model model, int capacity, File directory) throws EdgeVlmException {
        this.model = model;
        this.capacity = capacity;
        file = directory == null ? null : new File(directory, "edgevlm-key-values.bin");
        context = model.newContext(capacity);
    }

    int capacity() {
        return capacity;
    }

    /** Returns the context with the longest prefix of `keys` that it has, at most all but the last token. */
    NativeEngine.Context prepare(long[] keys) throws EdgeVlmException {
        if (context == null) {
            context = model.newContext(capacity);
            readBack();
        }
        int shared = 0;
        int most = Math.min(held.length, keys.length - 1);
        while (shared < most && held[shared] == keys[shared]) {
            shared++;
        }
        context.truncate(shared);
        held = Arrays.copyOf(keys, shared);
        return context;
    }

    /** Says what the tokens in the context are now. */
    void hold(long[] keys) {
        held = Arrays.copyOf(keys, Math.min(keys.length, context == null ? 0 : context.nPast()));
    }

    /** Puts the cache into its file, or drops it when that is not possible. */
    void putDown() {
        NativeEngine.Context open = context;
        if (open == null) {
            return;
        }
        onDisk = file != null && open.nPast() > 0 && write(open);
        if (!onDisk) {
            held = new long[0];
        }
        context = null;
        open.close();
    }

    private boolean write(NativeEngine.Context open) {
        long size = open.snapshotBytes();
        if (size > Integer.MAX_VALUE || file.getParentFile().getUsableSpace() < size) {
            return false;
        }
        try (RandomAccessFile out = new RandomAccessFile(file, "rw")) {
            out.setLength(size);
            // The file is mapped, so that the copy needs no memory of its own.
            open.snapshot(out.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, size));
            return true;
        } catch (IOException | EdgeVlmException error) {
            delete();
            return false;
        }
    }

    private void readBack() {
        if (!onDisk) {
            return;
        }
        onDisk = false;
        try (RandomAccessFile in = new RandomAccessFile(file, "r")) {
            ByteBuffer bytes = in.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, in.length());
            context.restore(bytes);
        } catch (IOException | EdgeVlmException error) {
            // Not there any more or damaged: everything is computed again.
            held = new long[0];
        }
        delete();
    }

    private void delete() {
        if (file != null && file.exists() && !file.delete()) {
            file.deleteOnExit();
        }
    }

    boolean isInMemory() {
        return context != null;
    }

    boolean isOnDisk() {
        return onDisk;
    }

    long bytes() {
        NativeEngine.Context open = context;
        return open == null ? 0 : open.bytes();
    }

    void close() {
        NativeEngine.Context open = context;
        context = null;
        held = new long[0];
        if (open != null) {
            open.close();
        }
        if (onDisk) {
            onDisk = false;
            delete();
        }
    }
}
