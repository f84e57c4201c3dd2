package org.edgevlm;

import java.nio.DoubleBuffer;
import java.util.Arrays;

/** Unigram as `tokenizers` does it: the most likely path over the bytes, runs of unknown characters as one. */
final class UnigramModel implements TokenModel {
    private static final double UNKNOWN_PENALTY = 10.0;

    private final Pieces pieces;
    private final double[] scores;
    private final int[] byteIds;
    private final int unknownId;
    private final double unknownScore;

    UnigramModel(TableFile file, Fields config, Pieces pieces) throws EdgeVlmException {
        this.pieces = pieces;
        DoubleBuffer stored = file.doubles("scores");
        scores = new double[stored.remaining()];
        stored.get(scores);
        unknownId = config.integer("unk_id");
        byteIds = config.flag("byte_fallback") ? pieces.byteIds() : null;
        double lowest = Double.POSITIVE_INFINITY;
        for (double score : scores) {
            lowest = Math.min(lowest, score);
        }
        unknownScore = lowest - UNKNOWN_PENALTY;
        for (int row = 0; row < pieces.rows(); row++) {
            if (pieces.idAt(row) >= scores.length) {
                throw TableFile.damaged("device/tokenizer.bin", "a piece has no score");
            }
        }
    }

    @Override
    public void encode(AlignedText piece, Tokens out) throws EdgeVlmException {
        byte[] bytes = Utf8.encode(piece.points, 0, piece.length);
        int[] charAt = new int[bytes.length + 1];
        int n = 0;
        byte[] one = new byte[4];
        for (int i = 0; i < piece.length; i++) {
            int end = n + Utf8.put(piece.points[i], one, 0);
            Arrays.fill(charAt, n, end, i);
            n = end;
        }
        charAt[bytes.length] = piece.length;
        int[] from = new int[bytes.length + 1];
        int[] id = new int[bytes.length + 1];
        bestPath(bytes, charAt, from, id);
        int[] cuts = new int[bytes.length + 1];
        int nCuts = 0;
        int end = bytes.length;
        while (end > 0) {
            int start = from[end];
            while (id[end] == unknownId && start > 0 && id[start] == unknownId) {
                start = from[start];
            }
            cuts[nCuts++] = end;
            end = start;
        }
        int start = 0;
        for (int i = nCuts - 1; i >= 0; i--) {
            add(piece, bytes, start, cuts[i], charAt, out);
            start = cuts[i];
        }
    }

    private void bestPath(byte[] bytes, int[] charAt, int[] from, int[] id) throws EdgeVlmException {
        double[] best = new double[bytes.length + 1];
        Arrays.fill(from, -1);
        int start = 0;
        while (start < bytes.length) {
            int next = start + 1;
            while (next < bytes.length && charAt[next] == charAt[start]) {
                next++;
            }
            boolean single = false;
            int low = 0;
            int high = pieces.rows();
            for (int end = start; end < bytes.length && low < high; end++) {
                int depth = end - start;
                int value = bytes[end] & 0xFF;
                low = pieces.lowerBound(low, high, depth, value);
                high = pieces.lowerBound(low, high, depth, value + 1);
                if (low < high && pieces.length(pieces.idAt(low)) == depth + 1) {
                    int token = pieces.idAt(low);
                    relax(best, from, id, start, end + 1, token, scores[token]);
                    single |= end + 1 == next;
                }
            }
            if (!single) {
                if (unknownId < 0) {
                    throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                        "the text has a character that this model's vocabulary does not know");
                }
                relax(best, from, id, start, next, unknownId, unknownScore);
            }
            start = next;
        }
    }

    private static void relax(double[] best, int[] from, int[] id, int start, int end, int token, double score) {
        double candidate = score + best[start];
        if (from[end] < 0 || candidate > best[end]) {
            best[end] = candidate;
            from[end] = start;
            id[end] = token;
        }
    }

    private void add(AlignedText piece, byte[] bytes, int start, int end, int[] charAt, Tokens out) {
        int first = charAt[start];
        int last = charAt[end - 1] + 1;
        int id = pieces.find(bytes, start, end);
        if (id >= 0) {
            out.add(id, piece, first, last);
            return;
        }
        boolean known = byteIds != null;
        for (int i = start; known && i < end; i++) {
            known = byteIds[bytes[i] & 0xFF] >= 0;
        }
        if (known) {
            for (int i = start; i < end; i++) {
                out.add(byteIds[bytes[i] & 0xFF], piece, first, last);
            }
        } else {
            out.add(unknownId, piece, first, last);
        }
    }
}
