package org.edgevlm;

/** A flag that one thread sets and another looks at. */
final class Cancellation {
    private volatile boolean set;

    void set() {
        set = true;
    }

    boolean isSet() {
        return set;
    }

    void check() throws EdgeVlmException {
        if (set) {
            throw new EdgeVlmException(EdgeVlmException.Kind.CANCELLED, "cancelled");
        }
    }
}
