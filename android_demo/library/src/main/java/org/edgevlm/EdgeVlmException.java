package org.edgevlm;

/** Every failure that a caller can cause or meet. The message is one sentence: what failed, on which thing, what to do. */
public final class EdgeVlmException extends Exception {
    private static final long serialVersionUID = 1L;

    /** What kind of failure it is; the same kinds as the desktop's exit codes. */
    public enum Kind {
        /** A wrong argument or call. */
        USAGE(2),
        /** A package is missing, damaged, unsafe or of another version. */
        PACKAGE(3),
        /** The package is sound, but asks for something that this library does not do. */
        UNSUPPORTED(4),
        /** Numbers that must agree do not. */
        PARITY(5),
        /** A picture cannot be used. */
        IMAGE(6),
        /** The prompt does not fit into the context. */
        CONTEXT_FULL(7),
        /** The device cannot run this: memory, storage, CPU. */
        BACKEND(8),
        /** The caller cancelled or closed. */
        CANCELLED(130);

        /** The exit code of the desktop's command line for this kind. */
        public final int code;

        Kind(int code) {
            this.code = code;
        }

        static Kind of(int code) {
            for (Kind kind : values()) {
                if (kind.code == code) {
                    return kind;
                }
            }
            return BACKEND;
        }
    }

    private final Kind kind;

    public EdgeVlmException(Kind kind, String message) {
        super(message);
        this.kind = kind;
    }

    public EdgeVlmException(Kind kind, String message, Throwable cause) {
        super(message, cause);
        this.kind = kind;
    }

    public Kind kind() {
        return kind;
    }
}
