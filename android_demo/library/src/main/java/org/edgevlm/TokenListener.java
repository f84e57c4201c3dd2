package org.edgevlm;

/** Hears an answer as it appears. Called on the library's thread; exactly one of onDone and onError ends an answer. */
public interface TokenListener {
    /** The next piece of text: whole characters, never half of one. */
    void onText(String text);

    /** The answer is complete, reached its length, or was cancelled. */
    void onDone(Answer answer);

    /** There is no answer. The conversation is as it was, pictures still attached. */
    void onError(EdgeVlmException error);
}
