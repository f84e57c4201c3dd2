package org.edgevlm;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Text to token ids and back, by the tables that the export made from tokenizer.json.
 *
 * <p>Text of a user never becomes a control token: {@link #encodeAsText} takes {@code <image>} or {@code <|im_end|>} as
 * the characters they are. Thread-safe after construction.
 */
final class Tokenizer {
    private static final String FILE = "device/tokenizer.bin";

    private final Pieces pieces;
    private final TokenModel model;
    private final List<TextStep> normalizer;
    private final List<TextStep> preTokenizer;
    private final AddedTokens[] all;
    private final AddedTokens[] plain;
    private final Set<Integer> control = new HashSet<>();
    private final Set<Integer> special = new HashSet<>();
    private final Set<Integer> forbidden = new HashSet<>();
    private final Set<Integer> markup = new HashSet<>();
    private final int[] before;
    private final int[] after;
    private final Fields decoder;

    Tokenizer(ByteBuffer bytes) throws EdgeVlmException {
        TableFile file = new TableFile(bytes, FILE);
        Fields config;
        try {
            config = new Fields(Json.parse(file.array("config")), FILE);
        } catch (Json.FormatException error) {
            throw TableFile.damaged(FILE, "its configuration is not JSON (" + error.getMessage() + ")");
        }
        int[] states = config.integers("n_states");
        Automaton[] automata = new Automaton[states.length];
        for (int i = 0; i < states.length; i++) {
            automata[i] = new Automaton(file, i, states[i]);
        }
        pieces = new Pieces(file);
        Fields modelFields = config.object("model");
        boolean unigram = modelFields.text("kind").equals("unigram");
        model = unigram ? new UnigramModel(file, modelFields, pieces) : new BpeModel(file, modelFields, pieces);
        normalizer = TextStep.read(config.objects("normalizer"), file, automata);
        preTokenizer = TextStep.read(config.objects("pre_tokenizer"), file, automata);
        List<AddedTokens.Token> added = new ArrayList<>();
        for (Fields fields : config.objects("added")) {
            AddedTokens.Token token = new AddedTokens.Token(fields);
            added.add(token);
            if (token.control) {
                control.add(token.id);
            }
            if (token.special) {
                special.add(token.id);
            }
        }
        all = new AddedTokens[] {new AddedTokens(added, false, true), new AddedTokens(added, true, true)};
        plain = new AddedTokens[] {new AddedTokens(added, false, false), new AddedTokens(added, true, false)};
        addAll(forbidden, config.integers("forbidden"));
        addAll(markup, Utf8.points(config.text("markup")));
        before = config.integers("before");
        after = config.integers("after");
        decoder = config.object("decoder");
    }

    private static void addAll(Set<Integer> set, int[] items) {
        for (int item : items) {
            set.add(item);
        }
    }

    int size() {
        return pieces.size;
    }

    boolean isControl(int id) {
        return control.contains(id);
    }

    boolean isSpecial(int id) {
        return special.contains(id);
    }

    /** Whether plain text may not give this control token; it may give the one for unknown characters. */
    boolean isForbidden(int id) {
        return forbidden.contains(id);
    }

    /** Whether no control token can be written without this character. */
    boolean isMarkup(int point) {
        return markup.contains(point);
    }

    /** Returns the UTF-8 of an id's vocabulary entry. */
    byte[] piece(int id) {
        return pieces.text(id);
    }

    Fields decoder() {
        return decoder;
    }

    /** Returns the tokens of a text, control tokens recognised, with the characters each stands for. */
    Tokens encodeTokens(int[] text) throws EdgeVlmException {
        return encode(text, all, true);
    }

    /** Returns the ids of a text without control tokens; `atStart`: nothing stands before it in the prompt. */
    int[] encodeAsText(int[] text, boolean atStart) throws EdgeVlmException {
        IntList ids = new IntList();
        encodeAsText(text, atStart ? Place.START : Place.INNER, ids);
        return ids.toArray();
    }

    /** Returns the ids of a whole text with what the tokenizer puts around it (often a BOS). */
    int[] encodeDocument(int[] text) throws EdgeVlmException {
        IntList ids = new IntList();
        ids.addAll(before);
        encodeAsText(text, Place.START, ids);
        ids.addAll(after);
        return ids.toArray();
    }

    /** Where a stretch of text stands: a prefix space is put at its start or not. */
    private enum Place {
        START, INNER, JOINED
    }

    private void encodeAsText(int[] text, Place place, IntList ids) throws EdgeVlmException {
        Tokens tokens = encode(text, plain, place == Place.START, place != Place.JOINED);
        for (int i = 0; i < tokens.size(); i++) {
            if (forbidden.contains(tokens.ids.get(i))) {
                // A Unigram vocabulary can spell a control token out of plain characters. Cut in two, it cannot.
                int start = tokens.starts.get(i);
                int end = tokens.ends.get(i);
                if (end - start < 2) {
                    throw new EdgeVlmException(EdgeVlmException.Kind.USAGE, "the text has '"
                        + new String(text, start, end - start) + "', which this model can only read as control");
                }
                int middle = (start + end) / 2;
                encodeAsText(Arrays.copyOfRange(text, 0, middle), place, ids);
                encodeAsText(Arrays.copyOfRange(text, middle, text.length), Place.JOINED, ids);
                return;
            }
        }
        ids.addAll(tokens.ids.toArray());
    }

    private Tokens encode(int[] text, AddedTokens[] added, boolean firstPrefix) throws EdgeVlmException {
        return encode(text, added, firstPrefix, true);
    }

    /** `firstPrefix`: a prefix for the start of the text only is put there; `anyPrefix`: one for every section is. */
    private Tokens encode(int[] text, AddedTokens[] added, boolean firstPrefix, boolean anyPrefix)
            throws EdgeVlmException {
        Tokens out = new Tokens();
        AlignedText whole = AlignedText.of(text);
        TextStep.Prefixes prefixes = new TextStep.Prefixes(firstPrefix, anyPrefix);
        for (AddedTokens.Part part : added[0].split(whole)) {
            if (part.token != null) {
                out.add(part.token.id, whole, part.start, part.end);
                continue;
            }
            AlignedText normal = whole.slice(part.start, part.end);
            for (TextStep step : normalizer) {
                normal = step.apply(normal, prefixes).get(0);
            }
            for (AddedTokens.Part inner : added[1].split(normal)) {
                if (inner.token != null) {
                    out.add(inner.token.id, normal, inner.start, inner.end);
                } else {
                    encodeSection(normal.slice(inner.start, inner.end), prefixes, out);
                }
            }
        }
        return out;
    }

    private void encodeSection(AlignedText section, TextStep.Prefixes prefixes, Tokens out) throws EdgeVlmException {
        List<AlignedText> current = new ArrayList<>();
        current.add(section);
        for (TextStep step : preTokenizer) {
            List<AlignedText> next = new ArrayList<>();
            for (AlignedText piece : current) {
                for (AlignedText result : step.apply(piece, prefixes)) {
                    if (result.length > 0) {
                        next.add(result);
                    }
                }
            }
            current = next;
        }
        for (AlignedText piece : current) {
            model.encode(piece, out);
        }
    }
}
