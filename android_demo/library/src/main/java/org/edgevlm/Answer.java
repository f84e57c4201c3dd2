package org.edgevlm;

import java.util.LinkedHashMap;
import java.util.Map;

/** One answer, and where the time went. */
public final class Answer {
    /** Why an answer ended. */
    public enum Finish {
        STOP, LENGTH, CANCELLED
    }

    public final String text;
    /** The tokens generated, without the one that ended the turn. */
    public final int[] tokenIds;
    public final Finish finish;
    /** With the image tokens. */
    public final int promptTokens;
    public final int imageTokens;
    /** Prompt tokens whose cache rows were there already. */
    public final int reusedTokens;
    /** Milliseconds of opening the package; 0 after the first answer. */
    public final double loadMs;
    /** Milliseconds of encoding pictures since the answer before, in the background too. */
    public final double encodeMs;
    public final double prefillMs;
    public final double decodeMs;
    /** From the question to the first token. */
    public final double firstTokenMs;
    public final double totalMs;
    public final long peakResidentBytes;

    Answer(String text, int[] tokenIds, Finish finish, int[] counts, double[] milliseconds, long peakResidentBytes) {
        this.text = text;
        this.tokenIds = tokenIds;
        this.finish = finish;
        promptTokens = counts[0];
        imageTokens = counts[1];
        reusedTokens = counts[2];
        loadMs = milliseconds[0];
        encodeMs = milliseconds[1];
        prefillMs = milliseconds[2];
        decodeMs = milliseconds[3];
        firstTokenMs = milliseconds[4];
        totalMs = milliseconds[5];
        this.peakResidentBytes = peakResidentBytes;
    }

    public double prefillTokensPerSecond() {
        return prefillMs > 0 ? (promptTokens - reusedTokens) * 1e3 / prefillMs : 0;
    }

    /** The first token comes from the prefill. */
    public double decodeTokensPerSecond() {
        return decodeMs > 0 && tokenIds.length > 1 ? (tokenIds.length - 1) * 1e3 / decodeMs : 0;
    }

    /** Returns the numbers as a JSON object, without the text. */
    public String toJson() {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("finish", finish.name().toLowerCase(java.util.Locale.ROOT));
        map.put("prompt_tokens", promptTokens);
        map.put("image_tokens", imageTokens);
        map.put("reused_tokens", reusedTokens);
        map.put("new_tokens", tokenIds.length);
        map.put("load_ms", loadMs);
        map.put("encode_ms", encodeMs);
        map.put("prefill_ms", prefillMs);
        map.put("decode_ms", decodeMs);
        map.put("first_token_ms", firstTokenMs);
        map.put("total_ms", totalMs);
        map.put("prefill_tok_per_s", prefillTokensPerSecond());
        map.put("decode_tok_per_s", decodeTokensPerSecond());
        map.put("peak_rss_bytes", peakResidentBytes);
        return Json.write(map);
    }
}
