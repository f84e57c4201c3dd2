package org.edgevlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** edgevlm.json, as far as a device needs it. The desktop's schema (edgevlm/spec.py) is the definition. */
final class Manifest {
    static final String NAME = "edgevlm.json";
    static final int SCHEMA_VERSION = 1;
    private static final int PLAN_VERSION_TABLES = 2;
    private static final List<?> UNSTATED_KV_BITS = Arrays.asList(8L, 8L);
    static final long MAX_BYTES = 32 << 20;

    /** One file of the package. */
    static final class Entry {
        final String path;
        final long sizeBytes;
        final String sha256;

        Entry(Fields fields) throws EdgeVlmException {
            path = fields.text("path");
            sizeBytes = fields.whole("size_bytes");
            sha256 = fields.text("sha256");
            if (!isSafePath(path) || sizeBytes < 0 || sha256.length() != 64) {
                throw damaged("the entry of '" + path + "' is unsafe or broken");
            }
        }
    }

    /** How the image marker of a chat template is expanded. */
    static final class Prompt {
        final String imageToken;
        final int imageTokenId;
        final int tokensPerTile;
        final String imagePrefix;
        final String singlePrefix;
        final String tilePrefix;
        final String rowSuffix;
        final String thumbnailPrefix;
        final String imageSuffix;
        final boolean asList;

        Prompt(Fields fields) throws EdgeVlmException {
            imageToken = fields.text("image_token");
            imageTokenId = fields.integer("image_token_id");
            tokensPerTile = fields.integer("tokens_per_tile");
            imagePrefix = fields.text("image_prefix", "");
            singlePrefix = fields.text("single_prefix", "");
            tilePrefix = fields.text("tile_prefix", "");
            rowSuffix = fields.text("row_suffix", "");
            thumbnailPrefix = fields.text("thumbnail_prefix", "");
            imageSuffix = fields.text("image_suffix", "");
            asList = fields.text("content_format", "string").equals("list");
            if (tokensPerTile < 1 || tokensPerTile > 1 << 16 || imageToken.isEmpty()) {
                throw damaged("prompt.tokens_per_tile is " + tokensPerTile);
            }
        }
    }

    final String name;
    final String arch;
    /** null for a language model. */
    final Fields processor;
    /** null for a language model. */
    final Prompt prompt;
    final int hiddenSize;
    final int nLayers;
    final int nKeyValueHeads;
    final int headDim;
    final int vocabSize;
    final int maxPositions;
    final int defaultContext;
    final int[] eosTokenIds;
    final Fields generation;
    final List<Entry> files = new ArrayList<>();
    private final Map<String, Entry> byPath = new HashMap<>();
    private final Map<String, String> planByArch = new HashMap<>();
    private final Map<String, Integer> versionByPlan = new HashMap<>();
    private final Map<String, int[][]> kvBitsByPlan = new HashMap<>();
    /** Paths in the package; null where there is none. */
    final String tokenizerPath;
    final String chatPath;
    private final List<String> missing = new ArrayList<>();

    Manifest(byte[] json) throws EdgeVlmException {
        Object parsed;
        try {
            parsed = Json.parse(json);
        } catch (Json.FormatException error) {
            throw damaged("it is not valid JSON (" + error.getMessage() + ")");
        }
        Fields root = new Fields(parsed, NAME);
        int version = root.integer("schema_version");
        if (version != SCHEMA_VERSION) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE, NAME + ": the package has schema version "
                + version + ", this app reads " + SCHEMA_VERSION + "; update the app or export the package again");
        }
        name = root.text("name");
        arch = root.text("arch");
        processor = root.has("processor") ? root.object("processor") : null;
        prompt = root.has("prompt") ? new Prompt(root.object("prompt")) : null;
        Fields decoder = root.object("decoder");
        hiddenSize = ranged(decoder, "hidden_size", 1 << 16);
        nLayers = ranged(decoder, "num_hidden_layers", 1 << 16);
        nKeyValueHeads = ranged(decoder, "num_key_value_heads", 1 << 16);
        headDim = ranged(decoder, "head_dim", 1 << 16);
        vocabSize = ranged(decoder, "vocab_size", 1 << 24);
        maxPositions = ranged(decoder, "max_position_embeddings", 1 << 24);
        defaultContext = ranged(decoder, "default_context", maxPositions);
        int rank = decoder.integer("position_rank", 1);
        if (rank != 1) {
            throw new EdgeVlmException(EdgeVlmException.Kind.UNSUPPORTED,
                NAME + ": positions of rank " + rank + " (M-RoPE) are not implemented on devices");
        }
        generation = root.object("generation");
        eosTokenIds = generation.integers("eos_token_ids");
        for (Fields fields : root.objects("files")) {
            Entry entry = new Entry(fields);
            if (byPath.put(entry.path, entry) != null) {
                throw damaged("the file '" + entry.path + "' is listed twice");
            }
            files.add(entry);
        }
        if (root.has("compiled")) {
            for (Fields fields : root.objects("compiled")) {
                planByArch.put(fields.text("arch"), listed(fields.text("plan")));
                versionByPlan.put(fields.text("plan"), fields.integer("plan_version"));
                kvBitsByPlan.put(fields.text("plan"), kvBits(fields));
            }
        }
        Fields device = root.has("device") ? root.object("device") : null;
        tokenizerPath = device == null || !device.has("tokenizer") ? null : listed(device.text("tokenizer"));
        chatPath = device == null || !device.has("chat") ? null : listed(device.text("chat"));
        if (device != null && device.has("missing")) {
            for (Object reason : device.list("missing")) {
                missing.add(Fields.asText(reason, "device.missing"));
            }
        }
        if ((processor == null) != (prompt == null)) {
            throw damaged("one of 'processor' and 'prompt' is given without the other");
        }
    }

    private static int ranged(Fields fields, String key, int most) throws EdgeVlmException {
        int value = fields.integer(key);
        if (value < 1 || value > most) {
            throw damaged(key + " is " + value + ", expected 1 to " + most);
        }
        return value;
    }

    private String listed(String path) throws EdgeVlmException {
        if (!byPath.containsKey(path)) {
            throw damaged("it names '" + path + "', which its files lack");
        }
        return path;
    }

    static EdgeVlmException damaged(String what) {
        return new EdgeVlmException(
            EdgeVlmException.Kind.PACKAGE, NAME + ": " + what + "; copy or export the package again");
    }

    Entry file(String path) {
        return byPath.get(path);
    }

    /** Returns the directory (in the package) of what was compiled for `arch`, or null. */
    String planDirectory(String arch) {
        String plan = planByArch.get(arch);
        return plan == null || plan.lastIndexOf('/') < 0 ? null : plan.substring(0, plan.lastIndexOf('/'));
    }

    /** Returns per layer the bits of keys and of values of the cache that the plan in `directory` asks for. */
    int[][] kvBits(String directory) throws EdgeVlmException {
        int[][] found = kvBitsByPlan.get(directory + "/plan.bin");
        if (found == null) {
            throw damaged("nothing is compiled in '" + directory + "'");
        }
        return found;
    }

    /** Packages that were compiled before the bits were written down have 8 and 8 in every layer. */
    private int[][] kvBits(Fields compiled) throws EdgeVlmException {
        List<?> stated = compiled.has("kv_bits") ? compiled.list("kv_bits") : new ArrayList<>();
        int[][] found = new int[nLayers][2];
        for (int i = 0; i < nLayers; i++) {
            List<?> pair = stated.isEmpty() ? UNSTATED_KV_BITS
                : Fields.asList(i < stated.size() ? stated.get(i) : null, "compiled.kv_bits");
            for (int part = 0; part < 2; part++) {
                found[i][part] = Fields.asInteger(part < pair.size() ? pair.get(part) : null, "compiled.kv_bits");
            }
        }
        return found;
    }

    /**
     * Returns the bytes of weights.bin in `directory` that a context never reads: plans up to version 2 have cosines and
     * sines of all positions there, and only rows of the context are touched.
     */
    long untouchedBytes(String directory, int contextTokens) {
        Integer version = versionByPlan.get(directory + "/plan.bin");
        if (version == null || version > PLAN_VERSION_TABLES) {
            return 0;
        }
        return Math.max(0L, maxPositions - contextTokens) * headDim * 4;
    }

    /** Refuses a package that a device cannot talk with, with the reasons that the export wrote down. */
    void requireDeviceFiles() throws EdgeVlmException {
        if (tokenizerPath != null && chatPath != null) {
            return;
        }
        StringBuilder reasons = new StringBuilder();
        for (String reason : missing) {
            reasons.append("; ").append(reason);
        }
        String advice = missing.isEmpty() ? "; run `edgevlm compile` on it once more" : "";
        throw new EdgeVlmException(EdgeVlmException.Kind.UNSUPPORTED,
            "the package has no tokenizer or no chat template for devices" + reasons + advice);
    }

    /** Whether a path is relative and stays inside; the same rule as the desktop's. */
    static boolean isSafePath(String path) {
        if (path.isEmpty() || path.indexOf('\\') >= 0 || path.indexOf(':') >= 0) {
            return false;
        }
        for (int i = 0; i < path.length(); i++) {
            if (path.charAt(i) < 32) {
                return false;
            }
        }
        int start = 0;
        while (start <= path.length()) {
            int slash = path.indexOf('/', start);
            int end = slash < 0 ? path.length() : slash;
            String part = path.substring(start, end);
            if (part.isEmpty() || part.equals(".") || part.equals("..")) {
                return false;
            }
            start = end + 1;
        }
        return true;
    }
}
