package org.edgevlm;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Ends one call, and no other: made when the call begins and handed down to every stage of it. One thread sets it, the
 * one that works looks at it, the C engine too.
 */
final class Cancellation {
    /** What the engine looks at between two operations: an ev_cancel_flag. */
    final ByteBuffer flag = ByteBuffer.allocateDirect(4).order(ByteOrder.nativeOrder());
    private volatile boolean set;

    void set() {
        flag.putInt(0, 1);
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
