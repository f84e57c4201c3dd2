package org.edgevlm;

/** White space by two definitions that must not follow the platform's Unicode version. */
final class Spaces {
    private Spaces() {
    }

    /** The property White_Space, as the tokenizer's library has it. */
    static boolean isWhiteSpace(int point) {
        return (point >= 0x09 && point <= 0x0D) || point == 0x20 || point == 0x85 || point == 0xA0 || point == 0x1680
            || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 || point == 0x202F
            || point == 0x205F || point == 0x3000;
    }

    /** Python's str.isspace, which templates and the prompt are defined by. */
    static boolean isPythonSpace(int point) {
        return isWhiteSpace(point) || (point >= 0x1C && point <= 0x1F);
    }

    /** Python's str.strip. */
    static String strip(String text, boolean left, boolean right) {
        int start = 0;
        int end = text.length();
        while (left && start < end && isPythonSpace(text.charAt(start))) {
            start++;
        }
        while (right && end > start && isPythonSpace(text.charAt(end - 1))) {
            end--;
        }
        return text.substring(start, end);
    }
}
