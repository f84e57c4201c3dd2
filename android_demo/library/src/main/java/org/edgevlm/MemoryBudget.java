package org.edgevlm;

/** What a package will need, computed from its manifest before anything is loaded. */
public final class MemoryBudget {
    private static final int CHUNK_TOKENS = 128;
    private static final long FIXED_BYTES = 24L << 20;
    private static final int SCALE_BYTES = 4;
    /** Activations alive at once in a block, in units of the hidden size: residual, norm, q, k, v, gate, up, ... */
    private static final int LIVE_WIDTHS = 32;

    public final int contextTokens;
    public final long weightsBytes;
    public final long keyValueBytes;
    public final long visionBytes;
    /** Activations, logits, tables. */
    public final long workBytes;

    MemoryBudget(Manifest manifest, String directory, int contextTokens) throws EdgeVlmException {
        this.contextTokens = contextTokens;
        long weights = size(manifest, directory + "/weights.bin");
        weightsBytes = Math.max(0, weights - manifest.untouchedBytes(directory, contextTokens));
        visionBytes = size(manifest, directory + "/vision.bin");
        keyValueBytes = contextTokens * bytesPerToken(manifest, manifest.kvBits(directory));
        long width = (long) manifest.hiddenSize * LIVE_WIDTHS + manifest.vocabSize / CHUNK_TOKENS * 3L;
        workBytes = CHUNK_TOKENS * width * 4 + FIXED_BYTES + size(manifest, manifest.tokenizerPath);
    }

    private static long size(Manifest manifest, String path) {
        Manifest.Entry entry = path == null ? null : manifest.file(path);
        return entry == null ? 0 : entry.sizeBytes;
    }

    private static long bytesPerToken(Manifest manifest, int[][] kvBits) {
        long total = 0;
        for (int[] bits : kvBits) {
            for (int part : bits) {
                long values = (long) manifest.nKeyValueHeads * manifest.headDim;
                total += part >= 16 ? values * 4 : values * part / 8 + (long) manifest.nKeyValueHeads * SCALE_BYTES;
            }
        }
        return total;
    }

    public long totalBytes() {
        return weightsBytes + keyValueBytes + visionBytes + workBytes;
    }

    /** Refuses, with the numbers, what is above the budget or what the device has left. */
    void check(MemoryProbe probe, long budgetBytes) throws EdgeVlmException {
        if (budgetBytes > 0 && totalBytes() > budgetBytes) {
            throw tooLarge("the budget is " + megabytes(budgetBytes) + "; raise it");
        }
        long available = probe.availableBytes();
        if (available >= 0 && totalBytes() > available - probe.thresholdBytes()) {
            throw tooLarge(megabytes(available) + " are available, of which the system keeps "
                + megabytes(probe.thresholdBytes()) + "; close other apps");
        }
    }

    private EdgeVlmException tooLarge(String limit) {
        return new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "the model needs " + megabytes(totalBytes())
            + " at a context of " + contextTokens + " tokens (" + this + "), " + limit
            + ", choose a smaller context or a smaller package");
    }

    @Override
    public String toString() {
        return "weights " + megabytes(weightsBytes) + ", key-value cache " + megabytes(keyValueBytes)
            + (visionBytes > 0 ? ", vision " + megabytes(visionBytes) : "") + ", work " + megabytes(workBytes);
    }

    static String megabytes(long bytes) {
        return (bytes + 500_000) / 1_000_000 + " MB";
    }
}
