package org.edgevlm;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Tokens that are cut out of a text before the model sees it: at each place the longest one. */
final class AddedTokens {
    /** One added token. */
    static final class Token {
        final int id;
        final int[] text;
        final boolean special;
        final boolean control;
        final boolean normalized;
        final boolean stripsLeft;
        final boolean stripsRight;

        Token(Fields fields) throws EdgeVlmException {
            id = fields.integer("id");
            text = Utf8.points(fields.text("text"));
            special = fields.flag("special");
            control = fields.flag("control");
            normalized = fields.flag("normalized");
            stripsLeft = fields.flag("lstrip");
            stripsRight = fields.flag("rstrip");
        }
    }

    /** A stretch of text; `token` is null where it is text for the model. */
    static final class Part {
        final Token token;
        final int start;
        final int end;

        Part(Token token, int start, int end) {
            this.token = token;
            this.start = start;
            this.end = end;
        }
    }

    private final Map<Integer, List<Token>> byFirst = new HashMap<>();

    /** `normalized`: the tokens that are looked for in normalised text, or the others; `control`: with control tokens. */
    AddedTokens(List<Token> tokens, boolean normalized, boolean control) {
        for (Token token : tokens) {
            if (token.text.length > 0 && token.normalized == normalized && (control || !token.control)) {
                List<Token> same = byFirst.get(token.text[0]);
                if (same == null) {
                    same = new ArrayList<>();
                    byFirst.put(token.text[0], same);
                }
                int at = 0;
                while (at < same.size() && same.get(at).text.length >= token.text.length) {
                    at++;
                }
                same.add(at, token);
            }
        }
    }

    List<Part> split(AlignedText text) {
        List<Part> parts = new ArrayList<>();
        int open = 0;
        int at = 0;
        while (at < text.length && !byFirst.isEmpty()) {
            Token token = longest(text, at);
            if (token == null) {
                at++;
                continue;
            }
            int start = at;
            int end = at + token.text.length;
            at = end;
            while (token.stripsLeft && start > open && Spaces.isWhiteSpace(text.points[start - 1])) {
                start--;
            }
            while (token.stripsRight && end < text.length && Spaces.isWhiteSpace(text.points[end])) {
                end++;
            }
            if (start > open) {
                parts.add(new Part(null, open, start));
            }
            parts.add(new Part(token, start, end));
            open = end;
        }
        if (text.length > open) {
            parts.add(new Part(null, open, text.length));
        }
        return parts;
    }

    private Token longest(AlignedText text, int at) {
        List<Token> candidates = byFirst.get(text.points[at]);
        if (candidates != null) {
            for (Token token : candidates) {
                if (text.matches(token.text, at)) {
                    return token;
                }
            }
        }
        return null;
    }
}
