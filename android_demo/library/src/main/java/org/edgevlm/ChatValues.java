package org.edgevlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Values of chat programs with the meaning that Python and Jinja give them. */
final class ChatValues {
    /** What is not there: false, empty, printed as nothing. */
    static final Object UNDEFINED = new Object();

    private ChatValues() {
    }

    static boolean truth(Object value) {
        if (value == null || value == UNDEFINED) {
            return false;
        }
        if (value instanceof Boolean) {
            return (Boolean) value;
        }
        if (value instanceof Long) {
            return (Long) value != 0;
        }
        if (value instanceof String) {
            return !((String) value).isEmpty();
        }
        return value instanceof List ? !((List<?>) value).isEmpty() : !((Map<?, ?>) value).isEmpty();
    }

    /** What is printed of a value. */
    static String text(Object value) throws EdgeVlmException {
        if (value == UNDEFINED) {
            return "";
        }
        if (value == null) {
            return "None";
        }
        if (value instanceof Boolean) {
            return (Boolean) value ? "True" : "False";
        }
        if (value instanceof String || value instanceof Long) {
            return value.toString();
        }
        throw ChatProgram.broken("it prints a list or map");
    }

    /** What a loop goes over. */
    static List<?> items(Object value) throws EdgeVlmException {
        if (value == UNDEFINED) {
            return new ArrayList<>();
        }
        if (value instanceof List) {
            return (List<?>) value;
        }
        if (value instanceof Map) {
            return new ArrayList<>(((Map<?, ?>) value).keySet());
        }
        if (value instanceof String) {
            List<Object> characters = new ArrayList<>();
            for (int point : Utf8.points((String) value)) {
                characters.add(new String(Character.toChars(point)));
            }
            return characters;
        }
        throw ChatProgram.broken("it loops over what is no list");
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> map(Object value) throws EdgeVlmException {
        if (!(value instanceof Map)) {
            throw ChatProgram.broken("it stores a field where no namespace is");
        }
        return (Map<String, Object>) value;
    }

    private static boolean equal(Object left, Object right) {
        if (left instanceof Boolean && right instanceof Long) {
            return ((Boolean) left ? 1 : 0) == (Long) right;
        }
        if (left instanceof Long && right instanceof Boolean) {
            return equal(right, left);
        }
        return left == null ? right == null : left.equals(right);
    }

    static boolean compare(Object left, String op, Object right) throws EdgeVlmException {
        switch (op) {
            case "==":
                return equal(left, right);
            case "!=":
                return !equal(left, right);
            case "in":
            case "not in":
                return contains(right, left) == op.equals("in");
            default:
                break;
        }
        int sign;
        if (left instanceof Long && right instanceof Long) {
            sign = ((Long) left).compareTo((Long) right);
        } else if (left instanceof String && right instanceof String) {
            int[] a = Utf8.points((String) left);
            int[] b = Utf8.points((String) right);
            int i = 0;
            while (i < a.length && i < b.length && a[i] == b[i]) {
                i++;
            }
            sign = i < a.length && i < b.length ? a[i] - b[i] : a.length - b.length;
        } else {
            throw ChatProgram.broken("it compares values of different kinds");
        }
        switch (op) {
            case "<":
                return sign < 0;
            case "<=":
                return sign <= 0;
            case ">":
                return sign > 0;
            case ">=":
                return sign >= 0;
            default:
                throw ChatProgram.broken("the comparison '" + op + "' is not known to this version");
        }
    }

    private static boolean contains(Object container, Object item) throws EdgeVlmException {
        if (container instanceof String) {
            if (!(item instanceof String)) {
                throw ChatProgram.broken("it looks in a text for what is no text");
            }
            return ((String) container).contains((String) item);
        }
        for (Object found : items(container)) {
            if (equal(found, item)) {
                return true;
            }
        }
        return false;
    }

    static Object operation(String kind, List<Object> values) throws EdgeVlmException {
        Object first = values.get(0);
        switch (kind) {
            case "neg":
                return -(Long) first;
            case "concat":
                StringBuilder joined = new StringBuilder();
                for (Object value : values) {
                    joined.append(text(value));
                }
                return joined.toString();
            case "slice":
                return slice(first, (Long) values.get(1), (Long) values.get(2), (Long) values.get(3));
            default:
                break;
        }
        Object second = values.get(1);
        if (kind.equals("add") && first instanceof String && second instanceof String) {
            return (String) first + second;
        }
        if (kind.equals("add") && first instanceof List && second instanceof List) {
            List<Object> both = new ArrayList<>((List<?>) first);
            both.addAll((List<?>) second);
            return both;
        }
        if (!(first instanceof Long) || !(second instanceof Long)) {
            throw ChatProgram.broken("it calculates with what is no number");
        }
        long a = (Long) first;
        long b = (Long) second;
        switch (kind) {
            case "add":
                return a + b;
            case "sub":
                return a - b;
            case "mul":
                return a * b;
            case "div":
                return floorDiv(a, b);
            case "mod":
                return a - floorDiv(a, b) * b;
            default:
                throw ChatProgram.broken("the expression '" + kind + "' is not known to this version");
        }
    }

    private static long floorDiv(long a, long b) {
        long quotient = a / b;
        return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
    }

    static Object item(Object value, Object key) throws EdgeVlmException {
        if (value == UNDEFINED) {
            throw ChatProgram.broken("it takes a part of something undefined");
        }
        if (value instanceof Map) {
            return ((Map<?, ?>) value).containsKey(key) ? ((Map<?, ?>) value).get(key) : UNDEFINED;
        }
        if (key instanceof Long && (value instanceof List || value instanceof String)) {
            List<?> items = items(value);
            long at = (Long) key < 0 ? (Long) key + items.size() : (Long) key;
            return at >= 0 && at < items.size() ? items.get((int) at) : UNDEFINED;
        }
        return UNDEFINED;
    }

    private static Object slice(Object value, Long start, Long stop, Long step) throws EdgeVlmException {
        List<?> items = items(value);
        int n = items.size();
        long by = step == null ? 1 : step;
        if (by == 0) {
            throw ChatProgram.broken("a slice has the step 0");
        }
        long low = by > 0 ? 0 : -1;
        long high = by > 0 ? n : n - 1;
        long from = start == null ? (by > 0 ? low : high) : bounded(start, n, low, high);
        long to = stop == null ? (by > 0 ? high : low) : bounded(stop, n, low, high);
        List<Object> part = new ArrayList<>();
        for (long i = from; by > 0 ? i < to : i > to; i += by) {
            part.add(items.get((int) i));
        }
        if (!(value instanceof String)) {
            return part;
        }
        StringBuilder text = new StringBuilder();
        for (Object character : part) {
            text.append(character);
        }
        return text.toString();
    }

    private static long bounded(long index, int n, long low, long high) {
        return Math.max(low, Math.min(high, index < 0 ? index + n : index));
    }

    static boolean test(String name, Object value, List<Object> arguments) throws EdgeVlmException {
        boolean isContainer = value instanceof List || value instanceof Map || value instanceof String;
        switch (name) {
            case "eq":
            case "equalto":
            case "==":
                return equal(value, arguments.get(0));
            case "ne":
            case "!=":
                return !equal(value, arguments.get(0));
            case "in":
                return contains(arguments.get(0), value);
            case "defined":
                return value != UNDEFINED;
            case "undefined":
                return value == UNDEFINED;
            case "none":
                return value == null;
            case "string":
                return value instanceof String;
            case "mapping":
                return value instanceof Map;
            case "iterable":
            case "sequence":
                return isContainer || value == UNDEFINED;
            case "boolean":
                return value instanceof Boolean;
            case "true":
                return Boolean.TRUE.equals(value);
            case "false":
                return Boolean.FALSE.equals(value);
            case "number":
                return value instanceof Long || value instanceof Boolean;
            case "integer":
                return value instanceof Long;
            case "odd":
            case "even":
                return ((Long) value % 2 != 0) == name.equals("odd");
            default:
                throw ChatProgram.broken("the test '" + name + "' is not known to this version");
        }
    }

    static Object filter(String name, Object value, List<Object> arguments) throws EdgeVlmException {
        switch (name) {
            case "default":
            case "d":
                boolean useFalse = arguments.size() > 1 && truth(arguments.get(1));
                boolean missing = value == UNDEFINED || (useFalse && !truth(value));
                return missing ? (arguments.isEmpty() ? "" : arguments.get(0)) : value;
            case "length":
            case "count":
                return (long) items(value).size();
            case "first":
            case "last":
                List<?> items = items(value);
                return items.isEmpty() ? UNDEFINED : items.get(name.equals("first") ? 0 : items.size() - 1);
            case "list":
                return items(value);
            case "join":
                StringBuilder joined = new StringBuilder();
                String separator = "";
                for (Object item : items(value)) {
                    joined.append(separator).append(text(item));
                    separator = arguments.isEmpty() ? "" : (String) arguments.get(0);
                }
                return joined.toString();
            case "tojson":
                if (value instanceof List || value instanceof Map || value == UNDEFINED) {
                    throw ChatProgram.broken("it writes a list or map as JSON");
                }
                return pythonJson(value);
            case "string":
                return text(value);
            case "trim":
                return method("strip", text(value), arguments);
            default:
                return method(name, text(value), arguments);
        }
    }

    /** Python's json.dumps of a scalar with ensure_ascii off. */
    static String pythonJson(Object value) {
        if (!(value instanceof String)) {
            return value == null ? "null" : value.toString();
        }
        StringBuilder out = new StringBuilder("\"");
        String text = (String) value;
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            int simple = "\"\\\b\f\n\r\t".indexOf(c);
            if (simple >= 0) {
                out.append('\\').append("\"\\bfnrt".charAt(simple));
            } else if (c < 0x20) {
                out.append("\\u00").append(c >> 4).append("0123456789abcdef".charAt(c & 15));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    static Object method(String name, Object value, List<Object> arguments) throws EdgeVlmException {
        if (value instanceof Map) {
            return mapMethod(name, (Map<?, ?>) value, arguments);
        }
        if (!(value instanceof String)) {
            throw ChatProgram.broken("it calls '" + name + "' on what is no text");
        }
        String text = (String) value;
        String first = arguments.isEmpty() || !(arguments.get(0) instanceof String) ? null : (String) arguments.get(0);
        switch (name) {
            case "strip":
                return strip(text, first, true, true);
            case "lstrip":
                return strip(text, first, true, false);
            case "rstrip":
                return strip(text, first, false, true);
            case "startswith":
                return text.startsWith((String) arguments.get(0));
            case "endswith":
                return text.endsWith((String) arguments.get(0));
            case "upper":
                return text.toUpperCase(Locale.ROOT);
            case "lower":
                return text.toLowerCase(Locale.ROOT);
            case "capitalize":
                if (text.isEmpty()) {
                    return text;
                }
                int head = Character.charCount(text.codePointAt(0));
                return new String(Character.toChars(Character.toTitleCase(text.codePointAt(0))))
                    + text.substring(head).toLowerCase(Locale.ROOT);
            case "replace":
                return replace(text, (String) arguments.get(0), (String) arguments.get(1),
                    arguments.size() > 2 ? (Long) arguments.get(2) : -1);
            case "split":
                return split(text, first, arguments.size() > 1 ? (Long) arguments.get(1) : -1);
            default:
                throw ChatProgram.broken("the method '" + name + "' is not known to this version");
        }
    }

    private static String replace(String text, String old, String other, long limit) throws EdgeVlmException {
        if (limit < 0) {
            return text.replace(old, other);
        }
        if (old.isEmpty()) {
            throw ChatProgram.broken("it replaces nothing, a number of times");
        }
        StringBuilder result = new StringBuilder();
        int at = 0;
        for (int found; limit > 0 && (found = text.indexOf(old, at)) >= 0; limit--) {
            result.append(text, at, found).append(other);
            at = found + old.length();
        }
        return result.append(text, at, text.length()).toString();
    }

    private static Object mapMethod(String name, Map<?, ?> map, List<Object> arguments) throws EdgeVlmException {
        switch (name) {
            case "get":
                Object fallback = arguments.size() > 1 ? arguments.get(1) : null;
                return map.containsKey(arguments.get(0)) ? map.get(arguments.get(0)) : fallback;
            case "keys":
                return new ArrayList<Object>(map.keySet());
            case "items":
                List<Object> pairs = new ArrayList<>();
                for (Map.Entry<?, ?> entry : map.entrySet()) {
                    pairs.add(Arrays.asList(entry.getKey(), entry.getValue()));
                }
                return pairs;
            default:
                throw ChatProgram.broken("the method '" + name + "' of a map is not known to this version");
        }
    }

    private static String strip(String text, String characters, boolean left, boolean right) {
        if (characters == null) {
            return Spaces.strip(text, left, right);
        }
        int[] points = Utf8.points(text);
        int start = 0;
        int end = points.length;
        while (left && start < end && characters.indexOf(points[start]) >= 0) {
            start++;
        }
        while (right && end > start && characters.indexOf(points[end - 1]) >= 0) {
            end--;
        }
        return new String(points, start, end - start);
    }

    private static List<Object> split(String text, String separator, long limit) throws EdgeVlmException {
        if (separator == null ? limit >= 0 : separator.isEmpty()) {
            throw ChatProgram.broken("it splits a text in a way that is not known to this version");
        }
        List<Object> parts = new ArrayList<>();
        int start = 0;
        if (separator == null) {
            int[] points = Utf8.points(text);
            int open = -1;
            for (int i = 0; i <= points.length; i++) {
                boolean space = i == points.length || Spaces.isPythonSpace(points[i]);
                if (space && open >= 0) {
                    parts.add(new String(points, open, i - open));
                    open = -1;
                } else if (!space && open < 0) {
                    open = i;
                }
            }
            return parts;
        }
        while (limit < 0 || parts.size() < limit) {
            int found = text.indexOf(separator, start);
            if (found < 0) {
                break;
            }
            parts.add(text.substring(start, found));
            start = found + separator.length();
        }
        parts.add(text.substring(start));
        return parts;
    }
}
