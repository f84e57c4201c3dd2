package org.edgevlm;

/** A piece of text to ids; the spans of `out` are characters of the original text. */
interface TokenModel {
    void encode(AlignedText piece, Tokens out) throws EdgeVlmException;
}
