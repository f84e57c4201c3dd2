package org.edgevlm;

import java.util.List;

/** Ids in, text out, in whole characters; one for each answer. */
final class StreamDecoder {
    private static final int[] BYTE_OF = byteOf();

    private final Tokenizer tokenizer;
    private final Utf8.Decoder utf8 = new Utf8.Decoder();
    private final String kind;
    private final String[][] replacements;
    private final String dropFirst;
    private int strip;
    private boolean first = true;

    StreamDecoder(Tokenizer tokenizer) throws EdgeVlmException {
        this.tokenizer = tokenizer;
        Fields decoder = tokenizer.decoder();
        kind = decoder.text("kind");
        boolean bytes = kind.equals("bytes");
        List<?> pairs = bytes ? java.util.Collections.emptyList() : decoder.list("replace");
        replacements = new String[pairs.size()][];
        for (int i = 0; i < replacements.length; i++) {
            List<?> pair = Fields.asList(pairs.get(i), "decoder.replace");
            replacements[i] = new String[] {
                Fields.asText(pair.get(0), "decoder.replace"), Fields.asText(pair.get(1), "decoder.replace")};
        }
        dropFirst = decoder.text("drop_first", "");
        strip = decoder.integer("strip", 0);
    }

    /** Returns the text that `id` completes, often empty. */
    String push(int id) {
        if (tokenizer.isSpecial(id)) {
            return "";
        }
        byte[] piece = tokenizer.piece(id);
        StringBuilder out = new StringBuilder();
        if (kind.equals("bytes")) {
            pushByteLevel(piece, out);
            return out.toString();
        }
        if (piece.length == 0) {
            return "";
        }
        String text = Utf8.decodeStrictly(piece);
        if (kind.equals("pieces")) {
            if (first && !dropFirst.isEmpty()) {
                text = text.replace(dropFirst, "");
            }
            first = false;
            return replaced(text);
        }
        int value = byteValue(text);
        if (value >= 0) {
            utf8.push(value, out);
        } else {
            utf8.finish(out);
            out.append(replaced(text));
        }
        return stripped(out.toString());
    }

    /** Returns what was held back; bytes that are no character become U+FFFD. */
    String finish() {
        StringBuilder out = new StringBuilder();
        utf8.finish(out);
        return stripped(out.toString());
    }

    /** A piece with characters outside the byte alphabet is its own UTF-8. */
    private void pushByteLevel(byte[] piece, StringBuilder out) {
        int[] points = Utf8.points(Utf8.decodeStrictly(piece));
        boolean symbols = true;
        for (int point : points) {
            symbols &= point < BYTE_OF.length && BYTE_OF[point] >= 0;
        }
        if (symbols) {
            for (int point : points) {
                utf8.push(BYTE_OF[point], out);
            }
        } else {
            for (byte b : piece) {
                utf8.push(b & 0xFF, out);
            }
        }
    }

    private String replaced(String text) {
        for (String[] pair : replacements) {
            text = text.replace(pair[0], pair[1]);
        }
        return text;
    }

    /** Drops the spaces at the start of the whole text that the encoder put there. */
    private String stripped(String text) {
        int n = 0;
        while (strip > 0 && n < text.length()) {
            if (text.charAt(n) != ' ') {
                strip = 0;
            } else {
                n++;
                strip--;
            }
        }
        return text.substring(n);
    }

    /** Returns the byte of a piece such as {@code <0x0A>}, or -1. */
    private static int byteValue(String text) {
        if (text.length() != 6 || !text.startsWith("<0x") || text.charAt(5) != '>') {
            return -1;
        }
        int high = Character.digit(text.charAt(3), 16);
        int low = Character.digit(text.charAt(4), 16);
        boolean ascii = text.charAt(3) < 0x80 && text.charAt(4) < 0x80;
        return ascii && high >= 0 && low >= 0 ? high * 16 + low : -1;
    }

    private static int[] byteOf() {
        int[] symbols = TextStep.byteSymbols();
        int[] result = new int[0x200];
        java.util.Arrays.fill(result, -1);
        for (int b = 0; b < symbols.length; b++) {
            result[symbols[b]] = b;
        }
        return result;
    }
}
