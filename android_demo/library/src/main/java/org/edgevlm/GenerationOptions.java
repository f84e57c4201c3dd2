package org.edgevlm;

/**
 * How an answer is made. The defaults are those of the package. A package that does not sample is greedy unless a
 * temperature is given, or a filter that excludes something: 0, 1 and 0 turn topK, topP and minP off, and nothing on.
 */
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
    private final Given given;

    /** What the package says, and what the caller has given: null where the package's counts. */
    private static final class Given implements Cloneable {
        boolean samples;
        double packageTemperature;
        int packageTopK;
        double packageTopP;
        double packageMinP;
        int maxNewTokens = DEFAULT_MAX_NEW_TOKENS;
        Double temperature;
        Integer topK;
        Double topP;
        Double minP;
        double repetitionPenalty;
        long seed;

        Given copy() {
            try {
                return (Given) clone();
            } catch (CloneNotSupportedException error) {
                throw new AssertionError(error);
            }
        }
    }

    private GenerationOptions(Given given) throws EdgeVlmException {
        this.given = given;
        maxNewTokens = given.maxNewTokens;
        topK = given.topK == null ? given.packageTopK : given.topK;
        topP = given.topP == null ? given.packageTopP : given.topP;
        minP = given.minP == null ? given.packageMinP : given.minP;
        boolean filters = given.topK != null && topK != 0 || given.topP != null && topP != 1
            || given.minP != null && minP != 0;
        double unasked = given.samples || filters ? given.packageTemperature : 0;
        temperature = given.temperature == null ? unasked : given.temperature;
        repetitionPenalty = given.repetitionPenalty;
        seed = given.seed;
        require(maxNewTokens >= 1, "maxNewTokens", maxNewTokens, "1 or more");
        require(temperature == 0 || temperature >= MIN_TEMPERATURE && !Double.isInfinite(temperature), "temperature",
            temperature, "0 (greedy) or at least 0.001");
        require(topK >= 0, "topK", topK, "0 (off) or more");
        require(topP > 0 && topP <= 1, "topP", topP, "above 0, at most 1");
        require(minP >= 0 && minP <= 1, "minP", minP, "0 to 1");
        require(repetitionPenalty > 0 && !Double.isInfinite(repetitionPenalty), "repetitionPenalty", repetitionPenalty,
            "above 0");
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
        Given given = new Given();
        given.samples = generation.flag("do_sample", false);
        double temperature = generation.real("temperature", 1);
        given.packageTemperature = temperature >= 0 && temperature < MIN_TEMPERATURE ? 0 : temperature;
        given.packageTopK = Math.max(generation.integer("top_k", 0), 0);
        double topP = generation.real("top_p", 1);
        given.packageTopP = topP == 0 ? SMALLEST_TOP_P : Math.min(topP, 1);
        given.packageMinP = generation.real("min_p", 0);
        given.repetitionPenalty = generation.real("repetition_penalty", 1);
        given.seed = System.nanoTime() >>> 1;
        return new GenerationOptions(given);
    }

    public GenerationOptions withMaxNewTokens(int value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.maxNewTokens = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withTemperature(double value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.temperature = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withTopK(int value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.topK = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withTopP(double value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.topP = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withMinP(double value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.minP = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withRepetitionPenalty(double value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.repetitionPenalty = value;
        return new GenerationOptions(changed);
    }

    public GenerationOptions withSeed(long value) throws EdgeVlmException {
        Given changed = given.copy();
        changed.seed = value;
        return new GenerationOptions(changed);
    }
}
