package org.edgevlm;

import java.nio.IntBuffer;
import java.nio.ShortBuffer;

/** A pattern of the pre-tokenizer, compiled at export. State 0 is dead, 1 the start; the last class is the end. */
final class Automaton {
    private static final int MATCH = 0x8000;
    private static final int BMP = 0x10000;

    private final byte[] classOf = new byte[BMP];
    private final IntBuffer starts;
    private final IntBuffer classes;
    private final short[] table;
    private final int nClasses;

    Automaton(TableFile file, int number, int nStates) throws EdgeVlmException {
        starts = file.ints("dfa" + number + ".starts");
        classes = file.ints("dfa" + number + ".classes");
        ShortBuffer rows = file.shorts("dfa" + number + ".table");
        table = new short[rows.remaining()];
        rows.get(table);
        nClasses = nStates < 2 ? 0 : table.length / nStates;
        check(nStates);
        int run = 0;
        for (int point = 0; point < BMP; point++) {
            while (run + 1 < starts.limit() && starts.get(run + 1) <= point) {
                run++;
            }
            classOf[point] = (byte) classes.get(run);
        }
    }

    private void check(int nStates) throws EdgeVlmException {
        boolean sound = nClasses > 1 && nClasses <= 128 && table.length == nStates * nClasses && starts.limit() > 0
            && starts.get(0) == 0 && classes.limit() == starts.limit();
        for (int i = 0; sound && i < table.length; i++) {
            sound = (table[i] & ~MATCH & 0xFFFF) < nStates;
        }
        for (int i = 0; sound && i < classes.limit(); i++) {
            sound = classes.get(i) >= 0 && classes.get(i) < nClasses - 1;
        }
        if (!sound) {
            throw TableFile.damaged("device/tokenizer.bin", "a pattern's table is not consistent");
        }
    }

    private int classOf(int point) {
        if (point < BMP) {
            return classOf[point];
        }
        int low = 0;
        int high = starts.limit() - 1;
        while (low < high) {
            int middle = (low + high + 1) >>> 1;
            if (starts.get(middle) <= point) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return classes.get(low);
    }

    /** Returns where the match that begins at `at` ends, or -1. */
    int match(AlignedText text, int at) {
        int state = 1;
        int end = -1;
        for (int i = at; state != 0; i++) {
            int kind = i < text.length ? classOf(text.points[i]) : nClasses - 1;
            int entry = table[state * nClasses + kind];
            if ((entry & MATCH) != 0) {
                end = i;
            }
            state = entry & ~MATCH & 0xFFFF;
        }
        return end;
    }
}
