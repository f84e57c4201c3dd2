package org.edgevlm;

/** Ids and the characters [start, end) of the original text that each stands for. */
final class Tokens {
    final IntList ids = new IntList();
    final IntList starts = new IntList();
    final IntList ends = new IntList();

    void add(int id, int start, int end) {
        ids.add(id);
        starts.add(start);
        ends.add(end);
    }

    void add(int id, AlignedText text, int from, int to) {
        add(id, text.starts[from], text.ends[to - 1]);
    }

    int size() {
        return ids.size();
    }
}
