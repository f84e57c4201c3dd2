package org.edgevlm;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.IntBuffer;
import java.nio.ShortBuffer;
import java.util.HashMap;
import java.util.Map;

/** device/tokenizer.bin: named sections of little-endian numbers, read where they are mapped. */
final class TableFile {
    private static final int MAGIC = 'E' | 'V' << 8 | 'T' << 16 | 'K' << 24;
    private static final int VERSION = 1;
    private static final int HEAD_BYTES = 16;
    private static final int NAME_BYTES = 24;
    private static final int ENTRY_BYTES = NAME_BYTES + 16;

    private final ByteBuffer data;
    private final Map<String, int[]> sections = new HashMap<>();

    TableFile(ByteBuffer bytes, String name) throws EdgeVlmException {
        data = bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN);
        int size = data.limit();
        if (size < HEAD_BYTES || data.getInt(0) != MAGIC) {
            throw damaged(name, "it does not begin as a table file");
        }
        if (data.getInt(4) != VERSION) {
            throw damaged(name, "it has version " + data.getInt(4) + ", this library reads " + VERSION);
        }
        int count = data.getInt(8);
        if (count < 0 || count > (size - HEAD_BYTES) / ENTRY_BYTES) {
            throw damaged(name, "its list of sections is cut off");
        }
        for (int i = 0; i < count; i++) {
            int entry = HEAD_BYTES + i * ENTRY_BYTES;
            StringBuilder section = new StringBuilder();
            for (int k = 0; k < NAME_BYTES && data.get(entry + k) != 0; k++) {
                section.append((char) (data.get(entry + k) & 0x7F));
            }
            long offset = data.getLong(entry + NAME_BYTES);
            long length = data.getLong(entry + NAME_BYTES + 8);
            if (offset < 0 || length < 0 || offset % 8 != 0 || offset > size || length > size - offset) {
                throw damaged(name, "section '" + section + "' lies outside the file");
            }
            sections.put(section.toString(), new int[] {(int) offset, (int) length});
        }
    }

    static EdgeVlmException damaged(String name, String what) {
        return new EdgeVlmException(
            EdgeVlmException.Kind.PACKAGE, name + ": " + what + "; copy or compile the package again");
    }

    ByteBuffer bytes(String name) throws EdgeVlmException {
        int[] place = sections.get(name);
        if (place == null) {
            throw damaged("device/tokenizer.bin", "section '" + name + "' is missing");
        }
        ByteBuffer view = data.duplicate();
        view.position(place[0]);
        view.limit(place[0] + place[1]);
        return view.slice().order(ByteOrder.LITTLE_ENDIAN);
    }

    byte[] array(String name) throws EdgeVlmException {
        ByteBuffer view = bytes(name);
        byte[] array = new byte[view.remaining()];
        view.get(array);
        return array;
    }

    IntBuffer ints(String name) throws EdgeVlmException {
        return bytes(name).asIntBuffer();
    }

    ShortBuffer shorts(String name) throws EdgeVlmException {
        return bytes(name).asShortBuffer();
    }

    DoubleBuffer doubles(String name) throws EdgeVlmException {
        return bytes(name).asDoubleBuffer();
    }

    /** Returns where `value` stands in ascending `sorted`, or -1. */
    static int find(IntBuffer sorted, int from, int to, int value) {
        int low = from;
        int high = to - 1;
        while (low <= high) {
            int middle = (low + high) >>> 1;
            int found = sorted.get(middle);
            if (found == value) {
                return middle;
            }
            if (found < value) {
                low = middle + 1;
            } else {
                high = middle - 1;
            }
        }
        return -1;
    }
}
