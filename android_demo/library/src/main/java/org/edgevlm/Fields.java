package org.edgevlm;

import java.util.List;
import java.util.Map;

/** Typed reading of parsed JSON; a missing key or a wrong type is a PACKAGE error that names the place. */
final class Fields {
    private final Map<?, ?> map;
    private final String where;

    Fields(Object value, String where) throws EdgeVlmException {
        if (!(value instanceof Map)) {
            throw wrong(where, "an object", value);
        }
        this.map = (Map<?, ?>) value;
        this.where = where;
    }

    static EdgeVlmException wrong(String where, String expected, Object found) {
        String kind = found == null ? "nothing" : "a " + found.getClass().getSimpleName();
        return new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
            where + ": expected " + expected + ", found " + kind + "; copy or export the package again");
    }

    boolean has(String key) {
        return map.get(key) != null;
    }

    Object get(String key) {
        return map.get(key);
    }

    String text(String key) throws EdgeVlmException {
        return asText(map.get(key), where + "." + key);
    }

    String text(String key, String fallback) throws EdgeVlmException {
        return map.containsKey(key) ? text(key) : fallback;
    }

    static String asText(Object value, String where) throws EdgeVlmException {
        if (!(value instanceof String)) {
            throw wrong(where, "a text", value);
        }
        return (String) value;
    }

    int integer(String key) throws EdgeVlmException {
        return asInteger(map.get(key), where + "." + key);
    }

    int integer(String key, int fallback) throws EdgeVlmException {
        return map.containsKey(key) ? integer(key) : fallback;
    }

    static int asInteger(Object value, String where) throws EdgeVlmException {
        long number = asLong(value, where);
        if (number != (int) number) {
            throw wrong(where, "a smaller number", value);
        }
        return (int) number;
    }

    long whole(String key) throws EdgeVlmException {
        return asLong(map.get(key), where + "." + key);
    }

    private static long asLong(Object value, String where) throws EdgeVlmException {
        if (!(value instanceof Long)) {
            throw wrong(where, "a whole number", value);
        }
        return (Long) value;
    }

    double real(String key, double fallback) throws EdgeVlmException {
        return map.containsKey(key) ? asReal(map.get(key), where + "." + key) : fallback;
    }

    static double asReal(Object value, String where) throws EdgeVlmException {
        if (!(value instanceof Long) && !(value instanceof Double)) {
            throw wrong(where, "a number", value);
        }
        return ((Number) value).doubleValue();
    }

    boolean flag(String key) throws EdgeVlmException {
        Object value = map.get(key);
        if (!(value instanceof Boolean)) {
            throw wrong(where + "." + key, "true or false", value);
        }
        return (Boolean) value;
    }

    boolean flag(String key, boolean fallback) throws EdgeVlmException {
        return map.containsKey(key) ? flag(key) : fallback;
    }

    Fields object(String key) throws EdgeVlmException {
        return new Fields(map.get(key), where + "." + key);
    }

    List<?> list(String key) throws EdgeVlmException {
        return asList(map.get(key), where + "." + key);
    }

    static List<?> asList(Object value, String where) throws EdgeVlmException {
        if (!(value instanceof List)) {
            throw wrong(where, "a list", value);
        }
        return (List<?>) value;
    }

    int[] integers(String key) throws EdgeVlmException {
        List<?> list = list(key);
        int[] result = new int[list.size()];
        for (int i = 0; i < result.length; i++) {
            result[i] = asInteger(list.get(i), where + "." + key);
        }
        return result;
    }

    double[] reals(String key) throws EdgeVlmException {
        List<?> list = list(key);
        double[] result = new double[list.size()];
        for (int i = 0; i < result.length; i++) {
            result[i] = asReal(list.get(i), where + "." + key);
        }
        return result;
    }

    /** The objects of a list. */
    Fields[] objects(String key) throws EdgeVlmException {
        List<?> list = list(key);
        Fields[] result = new Fields[list.size()];
        for (int i = 0; i < result.length; i++) {
            result[i] = new Fields(list.get(i), where + "." + key + "[" + i + "]");
        }
        return result;
    }
}
