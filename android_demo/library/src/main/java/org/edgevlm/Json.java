package org.edgevlm;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Strict JSON: what RFC 8259 does not have is an error, and so are a key that stands twice, a lone surrogate and deep
 * nesting. Objects are maps in order, arrays lists, whole numbers Long, other numbers Double.
 */
final class Json {
    private static final int MAX_DEPTH = 100;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** Raised with the position; the caller says which file it was. */
    static final class FormatException extends Exception {
        private static final long serialVersionUID = 1L;

        FormatException(String message) {
            super(message);
        }
    }

    static Object parse(byte[] utf8) throws FormatException {
        String text = Utf8.decodeStrictly(utf8);
        if (text == null) {
            throw new FormatException("it is not UTF-8");
        }
        Json json = new Json(text);
        Object value = json.value(0);
        json.skipSpace();
        if (json.at != text.length()) {
            throw json.wrong("something follows the value");
        }
        return value;
    }

    private FormatException wrong(String what) {
        return new FormatException(what + " at character " + at);
    }

    private void skipSpace() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char next() throws FormatException {
        if (at >= text.length()) {
            throw wrong("the text ends too early");
        }
        return text.charAt(at++);
    }

    private boolean take(char expected) {
        skipSpace();
        if (at < text.length() && text.charAt(at) == expected) {
            at++;
            return true;
        }
        return false;
    }

    private Object value(int depth) throws FormatException {
        if (depth > MAX_DEPTH) {
            throw wrong("the nesting is too deep");
        }
        skipSpace();
        char first = next();
        switch (first) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                at--;
                return number();
        }
    }

    private Object word(String word, Object value) throws FormatException {
        if (!text.startsWith(word, at - 1)) {
            throw wrong("an unknown word");
        }
        at += word.length() - 1;
        return value;
    }

    private Map<String, Object> object(int depth) throws FormatException {
        Map<String, Object> result = new LinkedHashMap<>();
        if (take('}')) {
            return result;
        }
        do {
            skipSpace();
            if (next() != '"') {
                at--;
                throw wrong("expected a key");
            }
            String key = string();
            if (!take(':')) {
                throw wrong("expected ':'");
            }
            if (result.containsKey(key)) {
                throw wrong("the key '" + key + "' stands twice");
            }
            result.put(key, value(depth + 1));
        } while (take(','));
        if (!take('}')) {
            throw wrong("expected ',' or '}'");
        }
        return result;
    }

    private List<Object> array(int depth) throws FormatException {
        List<Object> result = new ArrayList<>();
        if (take(']')) {
            return result;
        }
        do {
            result.add(value(depth + 1));
        } while (take(','));
        if (!take(']')) {
            throw wrong("expected ',' or ']'");
        }
        return result;
    }

    private String string() throws FormatException {
        StringBuilder result = new StringBuilder();
        while (true) {
            char c = next();
            if (c == '"') {
                break;
            }
            if (c < 0x20) {
                throw wrong("a control character in a string");
            }
            result.append(c == '\\' ? escape() : c);
        }
        for (int i = 0; i < result.length(); i++) {
            char c = result.charAt(i);
            if (Character.isHighSurrogate(c) && i + 1 < result.length() && Character.isLowSurrogate(result.charAt(i + 1))) {
                i++;
            } else if (Character.isSurrogate(c)) {
                throw wrong("a lone surrogate in a string");
            }
        }
        return result.toString();
    }

    private char escape() throws FormatException {
        char c = next();
        int simple = "\"\\/bfnrt".indexOf(c);
        if (simple >= 0) {
            return "\"\\/\b\f\n\r\t".charAt(simple);
        }
        if (c != 'u') {
            throw wrong("an unknown escape");
        }
        int code = 0;
        for (int i = 0; i < 4; i++) {
            int digit = "0123456789abcdefABCDEF".indexOf(next());
            if (digit < 0) {
                throw wrong("a broken \\u escape");
            }
            code = code * 16 + (digit > 15 ? digit - 6 : digit);
        }
        return (char) code;
    }

    private Object number() throws FormatException {
        int start = at;
        if (at < text.length() && text.charAt(at) == '-') {
            at++;
        }
        int whole = digits();
        boolean isWhole = true;
        if (whole == 0 || (whole > 1 && text.charAt(at - whole) == '0')) {
            throw wrong("expected a value");
        }
        if (at < text.length() && text.charAt(at) == '.') {
            at++;
            isWhole = false;
            if (digits() == 0) {
                throw wrong("a number without digits after its point");
            }
        }
        if (at < text.length() && (text.charAt(at) == 'e' || text.charAt(at) == 'E')) {
            at++;
            isWhole = false;
            if (at < text.length() && (text.charAt(at) == '+' || text.charAt(at) == '-')) {
                at++;
            }
            if (digits() == 0) {
                throw wrong("a number without digits in its exponent");
            }
        }
        String source = text.substring(start, at);
        try {
            if (isWhole) {
                return Long.valueOf(source);
            }
            double value = Double.parseDouble(source);
            if (Double.isInfinite(value)) {
                throw wrong("a number out of range");
            }
            return value;
        } catch (NumberFormatException error) {
            throw wrong("a number out of range");
        }
    }

    private int digits() {
        int start = at;
        while (at < text.length() && text.charAt(at) >= '0' && text.charAt(at) <= '9') {
            at++;
        }
        return at - start;
    }

    /** Returns the JSON text of maps, lists, strings, numbers, booleans and null. */
    static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            out.append('{');
            String comma = "";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(comma);
                quote(String.valueOf(entry.getKey()), out);
                out.append(": ");
                write(entry.getValue(), out);
                comma = ", ";
            }
            out.append('}');
        } else if (value instanceof Iterable) {
            out.append('[');
            String comma = "";
            for (Object item : (Iterable<?>) value) {
                out.append(comma);
                write(item, out);
                comma = ", ";
            }
            out.append(']');
        } else if (value == null || value instanceof Boolean || value instanceof Long || value instanceof Integer) {
            out.append(value);
        } else if (value instanceof Number) {
            double number = ((Number) value).doubleValue();
            out.append(Double.isNaN(number) || Double.isInfinite(number) ? "null" : String.valueOf(number));
        } else {
            quote(value.toString(), out);
        }
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20 || Character.isSurrogate(c) || c == '\u2028' || c == '\u2029') {
                out.append("\\u");
                for (int shift = 12; shift >= 0; shift -= 4) {
                    out.append("0123456789abcdef".charAt(c >> shift & 15));
                }
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }
}
