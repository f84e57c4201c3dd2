package org.edgevlm;

import java.nio.IntBuffer;

/** NFC, NFD, NFKC or NFKD by the tables of the package; Hangul by arithmetic. */
final class UnicodeForm {
    private static final int S_BASE = 0xAC00;
    private static final int L_BASE = 0x1100;
    private static final int V_BASE = 0x1161;
    private static final int T_BASE = 0x11A7;
    private static final int L_COUNT = 19;
    private static final int V_COUNT = 21;
    private static final int T_COUNT = 28;
    private static final int S_COUNT = L_COUNT * V_COUNT * T_COUNT;

    private final IntBuffer points;
    private final IntBuffer offsets;
    private final IntBuffer texts;
    private final IntBuffer marks;
    private final IntBuffer markClasses;
    private final IntBuffer pairs;
    private final int lowest;

    UnicodeForm(TableFile file, String form) throws EdgeVlmException {
        points = file.ints(form + ".points");
        offsets = file.ints(form + ".offsets");
        texts = file.ints(form + ".texts");
        marks = file.ints(form + ".marks");
        markClasses = file.ints(form + ".mark_classes");
        pairs = file.ints(form + ".pairs");
        boolean sound = offsets.limit() == points.limit() + 1 && markClasses.limit() == marks.limit()
            && pairs.limit() % 3 == 0;
        for (int i = 0; sound && i < points.limit(); i++) {
            sound = offsets.get(i) >= 0 && offsets.get(i) <= offsets.get(i + 1) && offsets.get(i + 1) <= texts.limit();
        }
        if (!sound) {
            throw TableFile.damaged("device/tokenizer.bin", "its Unicode tables are not consistent");
        }
        int first = points.limit() > 0 ? points.get(0) : S_BASE;
        lowest = Math.min(first, marks.limit() > 0 ? marks.get(0) : S_BASE);
    }

    AlignedText apply(AlignedText text) {
        boolean plain = true;
        for (int i = 0; plain && i < text.length; i++) {
            plain = text.points[i] < lowest;
        }
        if (plain) {
            return text;
        }
        AlignedText decomposed = decompose(text);
        sortMarks(decomposed);
        return pairs.limit() == 0 ? decomposed : compose(decomposed);
    }

    private AlignedText decompose(AlignedText text) {
        AlignedText out = new AlignedText(text.length + 8);
        for (int i = 0; i < text.length; i++) {
            int point = text.points[i];
            int start = text.starts[i];
            int end = text.ends[i];
            int index = point - S_BASE;
            if (index >= 0 && index < S_COUNT) {
                out.add(L_BASE + index / (V_COUNT * T_COUNT), start, end);
                out.add(V_BASE + index % (V_COUNT * T_COUNT) / T_COUNT, start, end);
                if (index % T_COUNT != 0) {
                    out.add(T_BASE + index % T_COUNT, start, end);
                }
                continue;
            }
            int found = TableFile.find(points, 0, points.limit(), point);
            if (found < 0) {
                out.add(point, start, end);
            } else {
                for (int k = offsets.get(found); k < offsets.get(found + 1); k++) {
                    out.add(texts.get(k), start, end);
                }
            }
        }
        return out;
    }

    private int combiningClass(int point) {
        int found = TableFile.find(marks, 0, marks.limit(), point);
        return found < 0 ? 0 : markClasses.get(found);
    }

    /** Sorts each run of marks by their class, equal ones in their order. */
    private void sortMarks(AlignedText text) {
        int run = 0;
        int[] classes = new int[text.length];
        for (int i = 0; i < text.length; i++) {
            classes[i] = combiningClass(text.points[i]);
            if (classes[i] == 0) {
                run = i + 1;
                continue;
            }
            for (int k = i; k > run && classes[k - 1] > classes[k]; k--) {
                swap(classes, k);
                swap(text.points, k);
                swap(text.starts, k);
                swap(text.ends, k);
            }
        }
    }

    private static void swap(int[] array, int at) {
        int kept = array[at];
        array[at] = array[at - 1];
        array[at - 1] = kept;
    }

    private AlignedText compose(AlignedText text) {
        AlignedText out = new AlignedText(text.length);
        int starter = -1;
        int lastClass = 0;
        for (int i = 0; i < text.length; i++) {
            int point = text.points[i];
            int kind = combiningClass(point);
            boolean open = starter >= 0 && (out.length == starter + 1 || (lastClass < kind && lastClass != 0));
            int composed = open ? pair(out.points[starter], point) : -1;
            if (composed >= 0) {
                out.points[starter] = composed;
                out.starts[starter] = Math.min(out.starts[starter], text.starts[i]);
                out.ends[starter] = Math.max(out.ends[starter], text.ends[i]);
                continue;
            }
            if (kind == 0) {
                starter = out.length;
            }
            lastClass = kind;
            out.add(point, text.starts[i], text.ends[i]);
        }
        return out;
    }

    private int pair(int first, int second) {
        int l = first - L_BASE;
        int v = second - V_BASE;
        if (l >= 0 && l < L_COUNT && v >= 0 && v < V_COUNT) {
            return S_BASE + (l * V_COUNT + v) * T_COUNT;
        }
        int s = first - S_BASE;
        int t = second - T_BASE;
        if (s >= 0 && s < S_COUNT && s % T_COUNT == 0 && t > 0 && t < T_COUNT) {
            return first + t;
        }
        int low = 0;
        int high = pairs.limit() / 3 - 1;
        while (low <= high) {
            int middle = (low + high) >>> 1;
            int a = pairs.get(3 * middle);
            int b = pairs.get(3 * middle + 1);
            if (a == first && b == second) {
                return pairs.get(3 * middle + 2);
            }
            if (a < first || (a == first && b < second)) {
                low = middle + 1;
            } else {
                high = middle - 1;
            }
        }
        return -1;
    }
}
