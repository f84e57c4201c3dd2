package org.edgevlm;

import java.io.File;

/** How a package is opened. Fields left alone take what is best for the device. */
public final class Options {
    /** Threads for the language model; 0 takes one for each big core, at most 4. */
    public int threads;
    /** Whether those threads stay on the big cores, where a phone has two kinds. */
    public boolean fastCores = true;
    /** Tokens that a conversation can hold; 0 takes the package's, at most 4,096. */
    public int contextTokens;
    /** Largest number of grid tiles of a picture; 0 takes the package's. */
    public int maxTiles;
    /** Refuse a package that needs more than this; 0 compares only with what the device has left. */
    public long memoryBudgetBytes;
    /** Where the key-value cache is put down under memory pressure; null drops it instead. */
    public File cacheDirectory;
    /** What tells how much memory is left. */
    public MemoryProbe memory = new MemoryProbe();
    /** Architecture of the compiled package: "arm64" or "x86_64"; null takes this machine's. */
    public String arch;
    /** Features of pictures that are kept for later questions. */
    public long pictureCacheBytes = 128L << 20;

    static String hostArch() {
        String arch = System.getProperty("os.arch", "");
        return arch.equals("aarch64") || arch.startsWith("arm64") ? "arm64" : arch.equals("amd64") ? "x86_64" : arch;
    }
}
