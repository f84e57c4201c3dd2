package org.edgevlm;

/**
 * UTF-8 by our own rules, since the platforms' decoders replace broken bytes differently: each maximal part of a
 * character that cannot be completed becomes one U+FFFD (Unicode 16, section 3.9).
 */
final class Utf8 {
    private Utf8() {
    }

    static byte[] encode(int[] points, int start, int end) {
        byte[] out = new byte[4 * (end - start)];
        int n = 0;
        for (int i = start; i < end; i++) {
            n = put(points[i], out, n);
        }
        return java.util.Arrays.copyOf(out, n);
    }

    static byte[] encode(String text) {
        int[] points = points(text);
        return encode(points, 0, points.length);
    }

    /** Writes the bytes of a code point at `n` and returns where they end. */
    static int put(int point, byte[] out, int n) {
        if (point < 0x80) {
            out[n++] = (byte) point;
        } else if (point < 0x800) {
            out[n++] = (byte) (0xC0 | point >> 6);
            out[n++] = (byte) (0x80 | point & 0x3F);
        } else if (point < 0x10000) {
            out[n++] = (byte) (0xE0 | point >> 12);
            out[n++] = (byte) (0x80 | point >> 6 & 0x3F);
            out[n++] = (byte) (0x80 | point & 0x3F);
        } else {
            out[n++] = (byte) (0xF0 | point >> 18);
            out[n++] = (byte) (0x80 | point >> 12 & 0x3F);
            out[n++] = (byte) (0x80 | point >> 6 & 0x3F);
            out[n++] = (byte) (0x80 | point & 0x3F);
        }
        return n;
    }

    static int[] points(String text) {
        int[] points = new int[text.codePointCount(0, text.length())];
        for (int i = 0, n = 0; i < text.length(); i += Character.charCount(points[n++])) {
            points[n] = text.codePointAt(i);
        }
        return points;
    }

    /** Returns the text, or null when the bytes are not UTF-8. */
    static String decodeStrictly(byte[] bytes) {
        Decoder decoder = new Decoder();
        StringBuilder out = new StringBuilder(bytes.length);
        for (byte b : bytes) {
            decoder.push(b & 0xFF, out);
        }
        decoder.finish(out);
        return decoder.broken ? null : out.toString();
    }

    /** Bytes in, whole characters out. */
    static final class Decoder {
        /** Whether a U+FFFD had to be put in. */
        boolean broken;
        private int point;
        private int missing;
        private int low;
        private int high;

        void push(int b, StringBuilder out) {
            if (missing > 0) {
                if (b >= low && b <= high) {
                    point = point << 6 | b & 0x3F;
                    low = 0x80;
                    high = 0xBF;
                    if (--missing == 0) {
                        out.appendCodePoint(point);
                    }
                    return;
                }
                finish(out);
            }
            low = 0x80;
            high = 0xBF;
            if (b < 0x80) {
                out.append((char) b);
            } else if (b >= 0xC2 && b <= 0xDF) {
                point = b & 0x1F;
                missing = 1;
            } else if (b >= 0xE0 && b <= 0xEF) {
                point = b & 0x0F;
                missing = 2;
                low = b == 0xE0 ? 0xA0 : 0x80;
                high = b == 0xED ? 0x9F : 0xBF;
            } else if (b >= 0xF0 && b <= 0xF4) {
                point = b & 0x07;
                missing = 3;
                low = b == 0xF0 ? 0x90 : 0x80;
                high = b == 0xF4 ? 0x8F : 0xBF;
            } else {
                replace(out);
            }
        }

        /** Ends a character that is not complete. */
        void finish(StringBuilder out) {
            if (missing > 0) {
                missing = 0;
                replace(out);
            }
        }

        private void replace(StringBuilder out) {
            broken = true;
            out.append('\uFFFD');
        }
    }
}
