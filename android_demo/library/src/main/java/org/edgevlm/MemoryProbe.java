package org.edgevlm;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;

/** What the device has left, and what this process has used. */
public class MemoryProbe {
    private final File proc;

    /** Reads /proc, which works on any Linux; an app may tell more (see AndroidMemoryProbe). */
    public MemoryProbe() {
        this(new File("/proc"));
    }

    MemoryProbe(File proc) {
        this.proc = proc;
    }

    /** Bytes that can be used before the system begins to kill, or -1 when that is unknown. */
    public long availableBytes() {
        return kilobytes(new File(proc, "meminfo"), "MemAvailable:");
    }

    /** Bytes below which the system is short of memory. */
    public long thresholdBytes() {
        return 128L << 20;
    }

    /** Largest resident size that this process has had, or -1. */
    public long peakBytes() {
        return kilobytes(new File(proc, "self/status"), "VmHWM:");
    }

    /** Whether the system is short of memory now. */
    public final boolean isShort() {
        long available = availableBytes();
        return available >= 0 && available < thresholdBytes();
    }

    private static long kilobytes(File file, String key) {
        try (BufferedReader reader = new BufferedReader(new InputStreamReader(new FileInputStream(file), "UTF-8"))) {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                if (line.startsWith(key)) {
                    int end = line.indexOf("kB");
                    return Long.parseLong(line.substring(key.length(), end < 0 ? line.length() : end).trim()) * 1024;
                }
            }
        } catch (IOException | NumberFormatException error) {
            return -1;
        }
        return -1;
    }
}
