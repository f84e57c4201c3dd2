package org.edgevlm;

import java.nio.ByteBuffer;
import java.nio.IntBuffer;

/** The vocabulary: the text of every id, and the ids of the model's own pieces by their bytes. */
final class Pieces {
    private static final String HEX = "0123456789ABCDEF";

    private final IntBuffer offsets;
    private final ByteBuffer texts;
    private final IntBuffer order;
    final int size;

    Pieces(TableFile file) throws EdgeVlmException {
        offsets = file.ints("piece.offsets");
        texts = file.bytes("piece.texts");
        order = file.ints("piece.order");
        size = offsets.limit() - 1;
        boolean sound = size >= 0;
        for (int i = 0; sound && i < size; i++) {
            sound = offsets.get(i) >= 0 && offsets.get(i) <= offsets.get(i + 1) && offsets.get(i + 1) <= texts.limit();
        }
        for (int i = 0; sound && i < order.limit(); i++) {
            sound = order.get(i) >= 0 && order.get(i) < size;
        }
        if (!sound) {
            throw TableFile.damaged("device/tokenizer.bin", "its vocabulary is not consistent");
        }
    }

    /** Returns the UTF-8 of an id's text; empty for an id that has none. */
    byte[] text(int id) {
        if (id < 0 || id >= size) {
            return new byte[0];
        }
        byte[] text = new byte[offsets.get(id + 1) - offsets.get(id)];
        for (int i = 0; i < text.length; i++) {
            text[i] = texts.get(offsets.get(id) + i);
        }
        return text;
    }

    int length(int id) {
        return offsets.get(id + 1) - offsets.get(id);
    }

    /** Returns the id of the model's piece with these bytes, or -1. */
    int find(byte[] bytes, int start, int end) {
        int low = 0;
        int high = order.limit() - 1;
        while (low <= high) {
            int middle = (low + high) >>> 1;
            int sign = compare(order.get(middle), bytes, start, end);
            if (sign == 0) {
                return order.get(middle);
            }
            if (sign < 0) {
                low = middle + 1;
            } else {
                high = middle - 1;
            }
        }
        return -1;
    }

    private int compare(int id, byte[] bytes, int start, int end) {
        int from = offsets.get(id);
        int n = offsets.get(id + 1) - from;
        for (int i = 0; i < n && start + i < end; i++) {
            int difference = (texts.get(from + i) & 0xFF) - (bytes[start + i] & 0xFF);
            if (difference != 0) {
                return difference;
            }
        }
        return n - (end - start);
    }

    int rows() {
        return order.limit();
    }

    int idAt(int row) {
        return order.get(row);
    }

    /** Returns the first row in [low, high) whose byte `depth` is at least `value`; shorter pieces come first. */
    int lowerBound(int low, int high, int depth, int value) {
        while (low < high) {
            int middle = (low + high) >>> 1;
            int id = order.get(middle);
            int found = depth < length(id) ? texts.get(offsets.get(id) + depth) & 0xFF : -1;
            if (found < value) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    /** Returns the ids of the 256 byte pieces (`<0x0A>`), -1 where there is none. */
    int[] byteIds() {
        int[] ids = new int[256];
        for (int b = 0; b < 256; b++) {
            String name = "<0x" + HEX.charAt(b >> 4) + HEX.charAt(b & 15) + ">";
            byte[] bytes = Utf8.encode(name);
            ids[b] = find(bytes, 0, bytes.length);
        }
        return ids;
    }
}
