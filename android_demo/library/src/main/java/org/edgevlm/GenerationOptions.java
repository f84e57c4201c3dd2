package org.edgevlm;

/** How an answer is made. The defaults are those of the package. */
public final class GenerationOptions {
    static final int DEFAULT_MAX_NEW_TOKENS = 256;
    private static final double MIN_TEMPERATURE = 1e-3;
    private static final double SMALLEST_TOP_P = 1e-9;

    public final int maxNewTokens;
    /** 0 is greedy. */
    public final double temperature;
    /** 0 turns it off. */
    public final int topK;
    /** 1 turns it off. */
    public final double topP;
    /** 0 turns it off. */
    public final double minP;
    /** 1 turns it off. */
    public final double repetitionPenalty;
    public final long seed;

    private GenerationOptions(int maxNewTokens, double temperature, int topK, double topP, double minP,
            double repetitionPenalty, long seed) throws EdgeVlmException {
        require(maxNewTokens >= 1, "maxNewTokens", maxNewTokens, "1 or more");
        require(temperature == 0 || temperature >= MIN_TEMPERATURE && !Double.isInfinite(temperature), "temperature",
            temperature, "0 (greedy) or at least 0.001");
        require(topK >= 0, "topK", topK, "0 (off) or more");
        require(topP > 0 && topP <= 1, "topP", topP, "above 0, at most 1");
        require(minP >= 0 && minP <= 1, "minP", minP, "0 to 1");
        require(repetitionPenalty > 0 && !Double.isInfinite(repetitionPenalty), "repetitionPenalty", repetitionPenalty,
            "above 0");
        this.maxNewTokens = maxNewTokens;
        this.temperature = temperature;
        this.topK = topK;
        this.topP = topP;
        this.minP = minP;
        this.repetitionPenalty = repetitionPenalty;
        this.seed = seed;
    }

    private static void require(boolean holds, String name, double value, String expected) throws EdgeVlmException {
        if (!holds) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE, name + " is " + value + ", expected " + expected);
        }
    }

    /**
     * What the package's generation config says. Packages of earlier versions hold it as the checkpoint wrote it: a
     * temperature near 0 is greedy, a top_k below 0 is off, a top_p above 1 too, and one of 0 keeps the likeliest
     * (edgevlm/generation_defaults.py).
     */
    static GenerationOptions of(Fields generation) throws EdgeVlmException {
        boolean samples = generation.flag("do_sample", false);
        double temperature = samples ? generation.real("temperature", 1) : 0;
        double topP = generation.real("top_p", 1);
        return new GenerationOptions(DEFAULT_MAX_NEW_TOKENS,
            temperature >= 0 && temperature < MIN_TEMPERATURE ? 0 : temperature,
            Math.max(generation.integer("top_k", 0), 0), topP == 0 ? SMALLEST_TOP_P : Math.min(topP, 1),
            generation.real("min_p", 0), generation.real("repetition_penalty", 1), System.nanoTime() >>> 1);
    }

    public GenerationOptions withMaxNewTokens(int value) throws EdgeVlmException {
        return new GenerationOptions(value, temperature, topK, topP, minP, repetitionPenalty, seed);
    }

    public GenerationOptions withTemperature(double value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, value, topK, topP, minP, repetitionPenalty, seed);
    }

    public GenerationOptions withTopK(int value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, temperature, value, topP, minP, repetitionPenalty, seed);
    }

    public GenerationOptions withTopP(double value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, temperature, topK, value, minP, repetitionPenalty, seed);
    }

    public GenerationOptions withMinP(double value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, temperature, topK, topP, value, repetitionPenalty, seed);
    }

    public GenerationOptions withRepetitionPenalty(double value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, temperature, topK, topP, minP, value, seed);
    }

    public GenerationOptions withSeed(long value) throws EdgeVlmException {
        return new GenerationOptions(maxNewTokens, temperature, topK, topP, minP, repetitionPenalty, value);
    }
}
