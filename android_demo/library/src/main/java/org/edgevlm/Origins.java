package org.edgevlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/**
 * Who wrote each character of a rendered chat template, found by stand-ins that move as the text does.
 *
 * <p>Every character of a message, but white space, is replaced by a stand-in of its own from the private-use planes before
 * the template runs. What only moves text moves stand-ins just as well; what looks into text is given the text that is meant,
 * and its result is written in stand-ins again. A hidden stand-in keeps its character to itself: it breaks the control tokens
 * that a user types. The same as edgevlm/origins.py, which tests compare it with.
 */
final class Origins {
    /** Who wrote a character; everybody but the assistant is a user. */
    enum Writer {
        USER, ASSISTANT
    }

    private static final int[][] PRIVATE_USE = {{0xF0000, 0xFFFFE}, {0x100000, 0x10FFFE}};

    private final Set<Integer> taken;
    private final Map<Writer, Map<Integer, Integer>> standIns = new HashMap<>();
    private final Map<Integer, Integer> hidden = new HashMap<>();
    private final Map<Integer, Writer> writers = new HashMap<>();
    private final Map<Integer, Integer> meant = new HashMap<>();
    private final Map<Integer, Integer> real = new HashMap<>();
    private int next = PRIVATE_USE[0][0];

    /** `taken` are the characters that stand for themselves somewhere in the conversation. */
    Origins(Set<Integer> taken) {
        this.taken = taken;
        for (Writer writer : Writer.values()) {
            standIns.put(writer, new HashMap<Integer, Integer>());
        }
    }

    /** Returns a character that nobody writes. */
    int marker() throws EdgeVlmException {
        while (true) {
            if (next == PRIVATE_USE[0][1]) {
                next = PRIVATE_USE[1][0];
            }
            if (next >= PRIVATE_USE[1][1]) {
                throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                    "the text has more different characters than a prompt can hold (131,000)");
            }
            if (!taken.contains(next++)) {
                return next - 1;
            }
        }
    }

    /** Gives characters their stand-ins in the order of the alphabet, so that they sort alike. */
    void learn(Set<Integer> points, Writer writer) throws EdgeVlmException {
        for (int point : new TreeSet<>(points)) {
            standIn(point, writer);
        }
    }

    private int standIn(int point, Writer writer) throws EdgeVlmException {
        if (Spaces.isPythonSpace(point)) {
            return point;
        }
        Integer found = standIns.get(writer).get(point);
        if (found == null) {
            found = marker();
            standIns.get(writer).put(point, found);
            writers.put(found, writer);
            meant.put(found, point);
            real.put(found, point);
        }
        return found;
    }

    /** Returns a stand-in that the template cannot see through. */
    int hide(int point) throws EdgeVlmException {
        Integer found = hidden.get(point);
        if (found == null) {
            found = marker();
            hidden.put(point, found);
            writers.put(found, Writer.USER);
            real.put(found, point);
        }
        return found;
    }

    /** Returns text in stand-ins; what is a stand-in already, and white space, stays. */
    int[] written(int[] points, Writer writer) throws EdgeVlmException {
        int[] result = points.clone();
        for (int i = 0; i < result.length; i++) {
            result[i] = writers.containsKey(result[i]) ? result[i] : standIn(result[i], writer);
        }
        return result;
    }

    /** Returns who wrote a character; null: the template. */
    Writer writer(int point) {
        return writers.get(point);
    }

    boolean wrote(Writer writer, int[] points, int start, int end) {
        for (int i = start; i < end; i++) {
            if (writers.get(points[i]) == writer) {
                return true;
            }
        }
        return false;
    }

    /** Returns text without any stand-in. */
    int[] real(int[] points) {
        return mapped(points, real);
    }

    int[] meant(int[] points) {
        return mapped(points, meant);
    }

    private static int[] mapped(int[] points, Map<Integer, Integer> change) {
        int[] result = points.clone();
        for (int i = 0; i < result.length; i++) {
            Integer other = change.get(result[i]);
            result[i] = other == null ? result[i] : other;
        }
        return result;
    }

    /** Returns what a template may see of a value: its texts without stand-ins that are not hidden. */
    Object meant(Object value) {
        if (value instanceof String) {
            return string(meant(Utf8.points((String) value)));
        }
        if (value instanceof List) {
            return meantAll((List<?>) value);
        }
        if (value instanceof Map) {
            Map<Object, Object> result = new LinkedHashMap<>();
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                result.put(meant(entry.getKey()), meant(entry.getValue()));
            }
            return result;
        }
        return value;
    }

    List<Object> meantAll(List<?> values) {
        List<Object> result = new ArrayList<>();
        for (Object value : values) {
            result.add(meant(value));
        }
        return result;
    }

    private static String string(int[] points) {
        return new String(points, 0, points.length);
    }

    // ---- what looks into text

    /** Returns what a filter gives, its texts in stand-ins. */
    Object filter(String name, Object value, List<Object> arguments) throws EdgeVlmException {
        switch (name) {
            case "trim":
                return method("strip", ChatValues.text(value), arguments);
            case "capitalize":
            case "upper":
            case "lower":
            case "replace":
                return method(name, ChatValues.text(value), arguments);
            case "tojson":
                return value instanceof String ? json((String) value) : ChatValues.filter(name, value, arguments);
            default:
                return ChatValues.filter(name, value, arguments);
        }
    }

    /** Returns what a method of a text or map gives, its texts in stand-ins. */
    Object method(String name, Object value, List<Object> arguments) throws EdgeVlmException {
        if (!(value instanceof String)) {
            return ChatValues.method(name, value, meantAll(arguments));
        }
        int[] text = Utf8.points((String) value);
        int[] seen = meant(text);
        List<Object> seenArguments = meantAll(arguments);
        switch (name) {
            case "upper":
            case "lower":
            case "capitalize":
                return cased(name, text, seen);
            case "strip":
            case "lstrip":
            case "rstrip":
                int left = name.equals("rstrip") ? 0 : seen.length - length("lstrip", seen, seenArguments);
                return string(Arrays.copyOfRange(text, left, left + length(name, seen, seenArguments)));
            case "replace":
                return replaced(text, seen, seenArguments, arguments);
            case "split":
                return split(text, seen, seenArguments);
            default:
                return ChatValues.method(name, string(seen), seenArguments);
        }
    }

    private static int length(String name, int[] seen, List<Object> arguments) throws EdgeVlmException {
        return Utf8.points((String) ChatValues.method(name, string(seen), arguments)).length;
    }

    private static String replaced(int[] text, int[] seen, List<Object> seenArguments, List<Object> arguments)
            throws EdgeVlmException {
        int[] old = Utf8.points((String) seenArguments.get(0));
        if (old.length == 0) {
            return (String) ChatValues.method("replace", string(text), arguments);
        }
        int[] other = Utf8.points((String) arguments.get(1));
        long limit = arguments.size() > 2 ? (Long) arguments.get(2) : -1;
        AlignedText whole = AlignedText.of(seen);
        IntList result = new IntList();
        int at = 0;
        while (at < text.length) {
            if (limit != 0 && whole.matches(old, at)) {
                result.addAll(other);
                at += old.length;
                limit--;
            } else {
                result.add(text[at++]);
            }
        }
        return string(result.toArray());
    }

    private static Object split(int[] text, int[] seen, List<Object> arguments) throws EdgeVlmException {
        if (arguments.isEmpty() || !(arguments.get(0) instanceof String)) {
            return ChatValues.method("split", string(text), arguments);  // white space has no stand-ins
        }
        int gap = Utf8.points((String) arguments.get(0)).length;
        List<Object> parts = new ArrayList<>();
        int at = 0;
        for (Object part : (List<?>) ChatValues.method("split", string(seen), arguments)) {
            int end = at + Utf8.points((String) part).length;
            parts.add(string(Arrays.copyOfRange(text, at, end)));
            at = end + gap;
        }
        return parts;
    }

    private String cased(String name, int[] text, int[] seen) throws EdgeVlmException {
        List<Object> none = new ArrayList<>();
        int[] whole = Utf8.points((String) ChatValues.method(name, string(seen), none));
        int[][] parts = new int[text.length][];
        IntList joined = new IntList();
        for (int i = 0; i < text.length; i++) {
            parts[i] = whole.length == text.length ? new int[] {whole[i]}
                : Utf8.points((String) ChatValues.method(name, string(new int[] {seen[i]}), none));
            joined.addAll(parts[i]);
        }
        if (!Arrays.equals(joined.toArray(), whole)) {
            return string(allBy(whole, text));
        }
        IntList result = new IntList();
        for (int i = 0; i < text.length; i++) {
            Writer writer = writers.get(text[i]);
            if (writer != null && !meant.containsKey(text[i])) {
                result.add(text[i]);
            } else {
                result.addAll(writer == null ? parts[i] : written(parts[i], writer));
            }
        }
        return string(result.toArray());
    }

    /** A text of which it cannot be told who wrote what is all the writers'. */
    private int[] allBy(int[] made, int[] sources) throws EdgeVlmException {
        if (wrote(Writer.USER, sources, 0, sources.length)) {
            return written(made, Writer.USER);
        }
        return wrote(Writer.ASSISTANT, sources, 0, sources.length) ? written(made, Writer.ASSISTANT) : made;
    }

    private String json(String text) throws EdgeVlmException {
        IntList result = new IntList();
        result.add('"');
        for (int point : Utf8.points(text)) {
            Writer writer = writers.get(point);
            Integer seen = meant.get(point);
            if (writer != null && seen == null) {
                result.add(point);
                continue;
            }
            String quoted = ChatValues.pythonJson(string(new int[] {seen == null ? point : seen}));
            int[] escaped = Utf8.points(quoted.substring(1, quoted.length() - 1));
            result.addAll(writer == null ? escaped : written(escaped, writer));
        }
        result.add('"');
        return string(result.toArray());
    }
}
