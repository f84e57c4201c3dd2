package org.edgevlm;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A chat template compiled at export (device/chat.json), with Python's meaning of values. It is data from a stranger:
 * steps and text are limited. Values are {@link ChatValues#UNDEFINED}, null, Boolean, Long, String, List and Map.
 */
final class ChatProgram {
    private static final String FILE = "device/chat.json";
    private static final int VERSION = 1;
    private static final int PRIVATE_PLANES = 0xF0000;
    private static final int MAX_STEPS = 1_000_000;
    private static final int MAX_CHARS = 8 << 20;

    private final List<?> program;
    private final Set<Integer> privatePoints = new HashSet<>();

    /** `json` is the file; a package of a base model has no template and its program is null. */
    ChatProgram(byte[] json) throws EdgeVlmException {
        Object parsed;
        try {
            parsed = Json.parse(json);
        } catch (Json.FormatException error) {
            throw TableFile.damaged(FILE, "it is not JSON (" + error.getMessage() + ")");
        }
        Fields fields = new Fields(parsed, FILE);
        if (fields.integer("version") != VERSION) {
            throw TableFile.damaged(FILE,
                "it has version " + fields.integer("version") + ", this library reads " + VERSION);
        }
        program = fields.has("program") ? fields.list("program") : null;
        collectPrivate(program);
    }

    private void collectPrivate(Object value) {
        if (value instanceof List) {
            for (Object item : (List<?>) value) {
                collectPrivate(item);
            }
        } else if (value instanceof String) {
            for (int point : Utf8.points((String) value)) {
                if (point >= PRIVATE_PLANES) {
                    privatePoints.add(point);
                }
            }
        }
    }

    /** Characters of the private-use planes that the template itself has. */
    Set<Integer> privatePoints() {
        return privatePoints;
    }

    boolean exists() {
        return program != null;
    }

    /** Returns the text of a conversation; messages are maps with `role` and `content`, perhaps in stand-ins of `origins`. */
    String render(List<?> messages, Origins origins) throws EdgeVlmException {
        Run run = new Run(messages, origins);
        try {
            run.block(program);
        } catch (Leave leave) {
            throw broken("'" + leave.kind + "' stands outside a loop");
        } catch (ClassCastException | IndexOutOfBoundsException | NullPointerException | ArithmeticException error) {
            throw broken("a value has the wrong kind");
        }
        return run.out.toString();
    }

    static EdgeVlmException broken(String what) {
        return new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
            "the package's chat template cannot be run: " + what);
    }

    /** A `break` or `continue` on its way to its loop. */
    private static final class Leave extends RuntimeException {
        private static final long serialVersionUID = 1L;
        final String kind;

        Leave(String kind) {
            super(kind, null, false, false);
            this.kind = kind;
        }
    }

    private static final class Run {
        StringBuilder out = new StringBuilder();
        private final List<Map<String, Object>> scopes = new ArrayList<>();
        private final Origins origins;
        private int steps;

        Run(List<?> messages, Origins origins) {
            this.origins = origins;
            Map<String, Object> scope = new LinkedHashMap<>();
            scope.put("messages", messages);
            scopes.add(scope);
        }

        private void tick() throws EdgeVlmException {
            if (++steps > MAX_STEPS || out.length() > MAX_CHARS) {
                throw broken("it takes more than " + MAX_STEPS + " steps or makes too long a text");
            }
        }

        void block(Object body) throws EdgeVlmException {
            for (Object item : (List<?>) body) {
                tick();
                statement((List<?>) item);
            }
        }

        private void statement(List<?> s) throws EdgeVlmException {
            String kind = (String) s.get(0);
            switch (kind) {
                case "text":
                    out.append((String) s.get(1));
                    return;
                case "print":
                    out.append(ChatValues.text(value(s.get(1))));
                    return;
                case "if":
                    block(ChatValues.truth(value(s.get(1))) ? s.get(2) : s.get(3));
                    return;
                case "for":
                    loop(s);
                    return;
                case "set":
                    scope().put((String) s.get(1), value(s.get(2)));
                    return;
                case "set_block":
                    StringBuilder outer = out;
                    out = new StringBuilder();
                    block(s.get(2));
                    scope().put((String) s.get(1), out.toString());
                    out = outer;
                    return;
                case "set_attr":
                    ChatValues.map(lookUp((String) s.get(1))).put((String) s.get(2), value(s.get(3)));
                    return;
                case "break":
                case "continue":
                    throw new Leave(kind);
                default:
                    throw broken("the statement '" + kind + "' is not known to this version");
            }
        }

        private Map<String, Object> scope() {
            return scopes.get(scopes.size() - 1);
        }

        private Object lookUp(String name) {
            for (int i = scopes.size() - 1; i >= 0; i--) {
                if (scopes.get(i).containsKey(name)) {
                    return scopes.get(i).get(name);
                }
            }
            return ChatValues.UNDEFINED;
        }

        private void loop(List<?> s) throws EdgeVlmException {
            List<?> names = (List<?>) s.get(1);
            List<Object> kept = new ArrayList<>();
            for (Object item : ChatValues.items(value(s.get(2)))) {
                tick();
                scopes.add(bound(names, item));
                if (s.get(3) == null || ChatValues.truth(value(s.get(3)))) {
                    kept.add(item);
                }
                scopes.remove(scopes.size() - 1);
            }
            int depth = scopes.size();
            for (int i = 0; i < kept.size(); i++) {
                Map<String, Object> inner = bound(names, kept.get(i));
                inner.put("loop", loopValues(kept, i));
                scopes.add(inner);
                try {
                    block(s.get(4));
                } catch (Leave leave) {
                    if (leave.kind.equals("break")) {
                        break;
                    }
                } finally {
                    while (scopes.size() > depth) {
                        scopes.remove(scopes.size() - 1);
                    }
                }
            }
            if (kept.isEmpty()) {
                block(s.get(5));
            }
        }

        private static Map<String, Object> bound(List<?> names, Object item) throws EdgeVlmException {
            Map<String, Object> scope = new LinkedHashMap<>();
            if (names.size() == 1) {
                scope.put((String) names.get(0), item);
                return scope;
            }
            List<?> values = ChatValues.items(item);
            if (values.size() != names.size()) {
                throw broken("a loop over " + names.size() + " names gets " + values.size() + " values");
            }
            for (int i = 0; i < names.size(); i++) {
                scope.put((String) names.get(i), values.get(i));
            }
            return scope;
        }

        private static Map<String, Object> loopValues(List<Object> items, int index) {
            long n = items.size();
            Map<String, Object> loop = new LinkedHashMap<>();
            loop.put("index", index + 1L);
            loop.put("index0", (long) index);
            loop.put("first", index == 0);
            loop.put("last", index == n - 1);
            loop.put("length", n);
            loop.put("revindex", n - index);
            loop.put("revindex0", n - index - 1);
            loop.put("previtem", index > 0 ? items.get(index - 1) : ChatValues.UNDEFINED);
            loop.put("nextitem", index + 1 < n ? items.get(index + 1) : ChatValues.UNDEFINED);
            return loop;
        }

        private List<Object> values(List<?> nodes, int from) throws EdgeVlmException {
            List<Object> result = new ArrayList<>();
            for (int i = from; i < nodes.size(); i++) {
                result.add(value(nodes.get(i)));
            }
            return result;
        }

        private Object value(Object node) throws EdgeVlmException {
            tick();
            List<?> e = (List<?>) node;
            String kind = (String) e.get(0);
            switch (kind) {
                case "const":
                    return e.get(1);
                case "undefined":
                    return ChatValues.UNDEFINED;
                case "name":
                    return lookUp((String) e.get(1));
                case "and":
                case "or":
                    Object left = value(e.get(1));
                    return ChatValues.truth(left) == kind.equals("and") ? value(e.get(2)) : left;
                case "cond":
                    return value(ChatValues.truth(value(e.get(1))) ? e.get(2) : e.get(3));
                case "not":
                    return !ChatValues.truth(value(e.get(1)));
                case "compare":
                    return compare(e);
                case "list":
                    return values(e, 1);
                case "dict":
                    Map<String, Object> map = new LinkedHashMap<>();
                    for (Object pair : e.subList(1, e.size())) {
                        map.put((String) value(((List<?>) pair).get(0)), value(((List<?>) pair).get(1)));
                    }
                    return map;
                case "test":
                    return ChatValues.test((String) e.get(1), origins.meant(value(e.get(2))), origins.meantAll(values(e, 3)));
                case "filter":
                    return origins.filter((String) e.get(1), value(e.get(2)), values(e, 3));
                case "method":
                    return origins.method((String) e.get(1), value(e.get(2)), values(e, 3));
                case "call":
                    return call(e);
                case "item":
                    return ChatValues.item(value(e.get(1)), origins.meant(value(e.get(2))));
                default:
                    return ChatValues.operation(kind, values(e, 1));
            }
        }

        private boolean compare(List<?> e) throws EdgeVlmException {
            Object left = value(e.get(1));
            for (int i = 2; i < e.size(); i += 2) {
                Object right = value(e.get(i + 1));
                if (!ChatValues.compare(origins.meant(left), (String) e.get(i), origins.meant(right))) {
                    return false;
                }
                left = right;
            }
            return true;
        }

        private Object call(List<?> e) throws EdgeVlmException {
            List<Object> arguments = values((List<?>) e.get(2), 0);
            Map<String, Object> named = new LinkedHashMap<>();
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) e.get(3)).entrySet()) {
                named.put((String) entry.getKey(), value(entry.getValue()));
            }
            switch ((String) e.get(1)) {
                case "namespace":
                    return named;
                case "range":
                    return range(arguments);
                case "raise_exception":
                    String reason = arguments.isEmpty() ? "no reason given" : ChatValues.text(arguments.get(0));
                    throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                        "the chat template refuses these messages: " + reason);
                case "strftime_now":
                    return ChatClock.format((String) arguments.get(0), new java.util.GregorianCalendar());
                default:
                    throw broken("the function '" + e.get(1) + "' is not known to this version");
            }
        }

        private List<Object> range(List<Object> arguments) throws EdgeVlmException {
            long start = arguments.size() > 1 ? (Long) arguments.get(0) : 0;
            long stop = (Long) arguments.get(arguments.size() > 1 ? 1 : 0);
            long step = arguments.size() > 2 ? (Long) arguments.get(2) : 1;
            if (step == 0) {
                throw broken("a range has the step 0");
            }
            List<Object> result = new ArrayList<>();
            for (long i = start; step > 0 ? i < stop : i > stop; i += step) {
                tick();
                result.add(i);
            }
            return Collections.unmodifiableList(result);
        }
    }
}
