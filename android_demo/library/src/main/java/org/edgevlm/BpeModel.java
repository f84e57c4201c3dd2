package org.edgevlm;

import java.nio.IntBuffer;

/** BPE as `tokenizers` does it: characters first, then the merge of lowest rank, leftmost first. */
final class BpeModel implements TokenModel {
    private final Pieces pieces;
    private final IntBuffer charPoints;
    private final IntBuffer charIds;
    private final IntBuffer mergeStart;
    private final IntBuffer mergeRight;
    private final IntBuffer mergeRank;
    private final IntBuffer mergeId;
    private final int[] byteIds;
    private final int unknownId;
    private final boolean fuseUnknown;
    private final boolean ignoreMerges;

    BpeModel(TableFile file, Fields config, Pieces pieces) throws EdgeVlmException {
        this.pieces = pieces;
        charPoints = file.ints("char.points");
        charIds = file.ints("char.ids");
        mergeStart = file.ints("merge.start");
        mergeRight = file.ints("merge.right");
        mergeRank = file.ints("merge.rank");
        mergeId = file.ints("merge.id");
        unknownId = config.integer("unk_id");
        fuseUnknown = config.flag("fuse_unk");
        ignoreMerges = config.flag("ignore_merges");
        byteIds = config.flag("byte_fallback") ? pieces.byteIds() : null;
        boolean sound = charIds.limit() == charPoints.limit() && mergeStart.limit() > 0
            && mergeRank.limit() == mergeRight.limit() && mergeId.limit() == mergeRight.limit();
        for (int i = 0; sound && i + 1 < mergeStart.limit(); i++) {
            sound = mergeStart.get(i) >= 0 && mergeStart.get(i) <= mergeStart.get(i + 1);
        }
        if (!sound || mergeStart.get(mergeStart.limit() - 1) > mergeRight.limit()) {
            throw TableFile.damaged("device/tokenizer.bin", "its merges are not consistent");
        }
    }

    @Override
    public void encode(AlignedText piece, Tokens out) {
        if (piece.length == 0) {
            return;
        }
        if (ignoreMerges) {
            byte[] bytes = Utf8.encode(piece.points, 0, piece.length);
            int id = pieces.find(bytes, 0, bytes.length);
            if (id >= 0) {
                out.add(id, piece, 0, piece.length);
                return;
            }
        }
        Word word = symbols(piece);
        merge(word);
        for (int at = 0; at < word.size; at++) {
            if (word.id[at] >= 0) {
                out.add(word.id[at], piece, word.from[at], word.to[at]);
            }
        }
    }

    /** Symbols as a linked list: each covers characters [from, to) of the piece; id -1 was merged away. */
    private static final class Word {
        final int[] id;
        final int[] from;
        final int[] to;
        final int[] next;
        final int[] previous;
        int size;

        Word(int capacity) {
            id = new int[capacity];
            from = new int[capacity];
            to = new int[capacity];
            next = new int[capacity];
            previous = new int[capacity];
        }

        void add(int token, int start, int end) {
            id[size] = token;
            from[size] = start;
            to[size] = end;
            previous[size] = size - 1;
            next[size] = size + 1;
            size++;
        }
    }

    private Word symbols(AlignedText piece) {
        Word word = new Word(4 * piece.length);
        byte[] bytes = new byte[4];
        int unknownFrom = -1;
        int unknownTo = -1;
        for (int i = 0; i < piece.length; i++) {
            int found = TableFile.find(charPoints, 0, charPoints.limit(), piece.points[i]);
            if (found >= 0) {
                if (unknownFrom >= 0) {
                    word.add(unknownId, unknownFrom, unknownTo);
                    unknownFrom = -1;
                }
                word.add(charIds.get(found), i, i + 1);
                continue;
            }
            int n = byteIds == null ? 0 : Utf8.put(piece.points[i], bytes, 0);
            boolean known = n > 0;
            for (int k = 0; k < n; k++) {
                known &= byteIds[bytes[k] & 0xFF] >= 0;
            }
            if (known) {
                for (int k = 0; k < n; k++) {
                    word.add(byteIds[bytes[k] & 0xFF], i, i + 1);
                }
            } else if (unknownId >= 0) {
                if (unknownFrom >= 0 && !fuseUnknown) {
                    word.add(unknownId, unknownFrom, unknownTo);
                    unknownFrom = -1;
                }
                unknownFrom = unknownFrom < 0 ? i : unknownFrom;
                unknownTo = i + 1;
            }
        }
        if (unknownFrom >= 0) {
            word.add(unknownId, unknownFrom, unknownTo);
        }
        return word;
    }

    private int findMerge(int left, int right) {
        if (left + 1 >= mergeStart.limit()) {
            return -1;
        }
        return TableFile.find(mergeRight, mergeStart.get(left), mergeStart.get(left + 1), right);
    }

    private void merge(Word word) {
        Heap heap = new Heap(word.size);
        for (int at = 0; at + 1 < word.size; at++) {
            offer(heap, word, at);
        }
        while (heap.size > 0) {
            int at = (int) heap.top();
            int result = heap.topValue();
            heap.pop();
            int right = word.next[at];
            if (word.id[at] < 0 || right >= word.size) {
                continue;
            }
            int found = findMerge(word.id[at], word.id[right]);
            if (found < 0 || mergeId.get(found) != result) {
                continue;
            }
            word.id[at] = result;
            word.to[at] = word.to[right];
            word.id[right] = -1;
            word.next[at] = word.next[right];
            if (word.next[at] < word.size) {
                word.previous[word.next[at]] = at;
            }
            if (word.previous[at] >= 0) {
                offer(heap, word, word.previous[at]);
            }
            offer(heap, word, at);
        }
    }

    private void offer(Heap heap, Word word, int at) {
        int right = word.next[at];
        if (right >= word.size) {
            return;
        }
        int found = findMerge(word.id[at], word.id[right]);
        if (found >= 0) {
            heap.push((long) mergeRank.get(found) << 32 | at, mergeId.get(found));
        }
    }

    /** A binary heap of (rank, position), smallest first, with the id that the merge makes. */
    private static final class Heap {
        private long[] keys;
        private int[] values;
        int size;

        Heap(int capacity) {
            keys = new long[Math.max(4, capacity)];
            values = new int[keys.length];
        }

        long top() {
            return keys[0];
        }

        int topValue() {
            return values[0];
        }

        void push(long key, int value) {
            if (size == keys.length) {
                keys = java.util.Arrays.copyOf(keys, 2 * size);
                values = java.util.Arrays.copyOf(values, 2 * size);
            }
            int at = size++;
            while (at > 0 && keys[(at - 1) / 2] > key) {
                keys[at] = keys[(at - 1) / 2];
                values[at] = values[(at - 1) / 2];
                at = (at - 1) / 2;
            }
            keys[at] = key;
            values[at] = value;
        }

        void pop() {
            long key = keys[--size];
            int value = values[size];
            int at = 0;
            while (2 * at + 1 < size) {
                int child = 2 * at + 1;
                if (child + 1 < size && keys[child + 1] < keys[child]) {
                    child++;
                }
                if (keys[child] >= key) {
                    break;
                }
                keys[at] = keys[child];
                values[at] = values[child];
                at = child;
            }
            keys[at] = key;
            values[at] = value;
        }
    }
}
