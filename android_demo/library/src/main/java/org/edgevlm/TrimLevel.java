package org.edgevlm;

/** How much is given back under memory pressure; each level includes those before it. */
public enum TrimLevel {
    /** Features of pictures; a picture that is asked about again is encoded again. */
    PICTURES,
    /** The vision weights; they are mapped again for the next picture. */
    VISION,
    /** The key-value cache, put into a file; the next question reads it back. */
    KEY_VALUES
}
