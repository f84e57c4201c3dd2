package org.edgevlm;

import java.util.Arrays;

/** Code points, each with the range of characters of the original text that it came from. */
final class AlignedText {
    int[] points;
    int[] starts;
    int[] ends;
    int length;

    AlignedText(int capacity) {
        points = new int[capacity];
        starts = new int[capacity];
        ends = new int[capacity];
    }

    static AlignedText of(int[] points) {
        AlignedText text = new AlignedText(points.length);
        for (int i = 0; i < points.length; i++) {
            text.add(points[i], i, i + 1);
        }
        return text;
    }

    void add(int point, int start, int end) {
        if (length == points.length) {
            int capacity = Math.max(16, 2 * length);
            points = Arrays.copyOf(points, capacity);
            starts = Arrays.copyOf(starts, capacity);
            ends = Arrays.copyOf(ends, capacity);
        }
        points[length] = point;
        starts[length] = start;
        ends[length++] = end;
    }

    /** Adds characters that nothing in the original stands for. */
    void insert(int[] added, int at) {
        for (int point : added) {
            add(point, at, at);
        }
    }

    void add(AlignedText other, int from, int to) {
        for (int i = from; i < to; i++) {
            add(other.points[i], other.starts[i], other.ends[i]);
        }
    }

    AlignedText slice(int from, int to) {
        AlignedText part = new AlignedText(to - from);
        part.add(this, from, to);
        return part;
    }

    boolean startsWith(int[] prefix) {
        return matches(prefix, 0);
    }

    boolean matches(int[] other, int at) {
        if (at + other.length > length) {
            return false;
        }
        for (int i = 0; i < other.length; i++) {
            if (points[at + i] != other[i]) {
                return false;
            }
        }
        return true;
    }
}
