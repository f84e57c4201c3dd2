package org.edgevlm;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/**
 * One step of the normaliser or the pre-tokenizer, as `tokenizers` does it: pieces of text in, pieces of text out. The
 * export says which steps there are (export/device/tokenizer_tables.py).
 */
abstract class TextStep {
    private static final int[] BYTE_SYMBOLS = byteSymbols();

    /** Which prefix spaces are put: those for the start of a whole text, those for every section. */
    static final class Prefixes {
        final boolean first;
        final boolean any;

        Prefixes(boolean first, boolean any) {
            this.first = first;
            this.any = any;
        }
    }

    abstract List<AlignedText> apply(AlignedText text, Prefixes prefixes);

    static List<TextStep> read(Fields[] steps, TableFile file, Automaton[] automata) throws EdgeVlmException {
        List<TextStep> result = new ArrayList<>();
        for (Fields step : steps) {
            result.add(read(step, file, automata));
        }
        return result;
    }

    private static TextStep read(Fields step, TableFile file, Automaton[] automata) throws EdgeVlmException {
        String op = step.text("op");
        switch (op) {
            case "form":
                return new Form(new UnicodeForm(file, step.text("form")));
            case "prepend":
                return new Prepend(Utf8.points(step.text("text")), false);
            case "prefix":
                return new Prepend(Utf8.points(step.text("text")), true);
            case "replace":
                return new Replace(automaton(step, automata), Utf8.points(step.text("text")));
            case "strip":
                return new Strip(automaton(step, automata), step.flag("left"), step.flag("right"));
            case "split":
                return new Split(automaton(step, automata), step.text("behavior"), step.flag("invert"));
            case "bytes":
                return new Bytes();
            case "metaspace":
                return new Metaspace(Utf8.points(step.text("text")), step.text("scheme"), step.flag("split"));
            default:
                throw TableFile.damaged("device/tokenizer.bin", "the step '" + op + "' is not known to this version");
        }
    }

    private static Automaton automaton(Fields step, Automaton[] automata) throws EdgeVlmException {
        int number = step.integer("dfa");
        if (number < 0 || number >= automata.length) {
            throw TableFile.damaged("device/tokenizer.bin", "pattern " + number + " does not exist");
        }
        return automata[number];
    }

    /** Returns (start, end, isMatch) of everything, matches and what is between them. */
    private static List<int[]> spans(Automaton automaton, AlignedText text) {
        List<int[]> spans = new ArrayList<>();
        int open = 0;
        int at = 0;
        while (at < text.length) {
            int end = automaton.match(text, at);
            if (end <= at) {
                at++;
                continue;
            }
            if (at > open) {
                spans.add(new int[] {open, at, 0});
            }
            spans.add(new int[] {at, end, 1});
            at = end;
            open = end;
        }
        if (text.length > open) {
            spans.add(new int[] {open, text.length, 0});
        }
        return spans;
    }

    private static final class Form extends TextStep {
        private final UnicodeForm form;

        Form(UnicodeForm form) {
            this.form = form;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            return Collections.singletonList(form.apply(text));
        }
    }

    private static final class Prepend extends TextStep {
        private final int[] prefix;
        private final boolean unlessThere;

        Prepend(int[] prefix, boolean unlessThere) {
            this.prefix = prefix;
            this.unlessThere = unlessThere;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            if (text.length == 0 || (unlessThere && text.startsWith(prefix))) {
                return Collections.singletonList(text);
            }
            return Collections.singletonList(prepended(prefix, text));
        }
    }

    static AlignedText prepended(int[] prefix, AlignedText text) {
        AlignedText out = new AlignedText(text.length + prefix.length);
        out.insert(prefix, text.starts[0]);
        out.add(text, 0, text.length);
        return out;
    }

    private static final class Replace extends TextStep {
        private final Automaton automaton;
        private final int[] content;

        Replace(Automaton automaton, int[] content) {
            this.automaton = automaton;
            this.content = content;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            AlignedText out = new AlignedText(text.length);
            for (int[] span : spans(automaton, text)) {
                if (span[2] == 0) {
                    out.add(text, span[0], span[1]);
                } else {
                    for (int point : content) {
                        out.add(point, text.starts[span[0]], text.ends[span[1] - 1]);
                    }
                }
            }
            return Collections.singletonList(out);
        }
    }

    private static final class Strip extends TextStep {
        private final Automaton space;
        private final boolean left;
        private final boolean right;

        Strip(Automaton space, boolean left, boolean right) {
            this.space = space;
            this.left = left;
            this.right = right;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            int start = 0;
            int end = text.length;
            while (left && start < end && space.match(text, start) == start + 1) {
                start++;
            }
            while (right && end > start && space.match(text, end - 1) == end) {
                end--;
            }
            return Collections.singletonList(text.slice(start, end));
        }
    }

    private static final class Split extends TextStep {
        private final Automaton automaton;
        private final String behavior;
        private final boolean invert;

        Split(Automaton automaton, String behavior, boolean invert) {
            this.automaton = automaton;
            this.behavior = behavior;
            this.invert = invert;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            List<AlignedText> pieces = new ArrayList<>();
            for (int[] span : joined(spans(automaton, text), behavior, invert)) {
                pieces.add(text.slice(span[0], span[1]));
            }
            return pieces;
        }
    }

    /** What becomes of the matches, as SplitDelimiterBehavior of `tokenizers` has it. */
    private static List<int[]> joined(List<int[]> spans, String behavior, boolean invert) {
        List<int[]> result = new ArrayList<>();
        boolean backwards = behavior.equals("merged_with_next");
        boolean merges = backwards || behavior.equals("merged_with_previous");
        boolean previous = false;
        for (int i = 0; i < spans.size(); i++) {
            int[] span = spans.get(backwards ? spans.size() - 1 - i : i);
            boolean match = (span[2] == 1) != invert;
            int[] last = result.isEmpty() ? null : result.get(result.size() - 1);
            if (behavior.equals("removed") && match) {
                continue;
            }
            boolean extend = merges ? match && !previous : behavior.equals("contiguous") && match == previous;
            if (extend && last != null) {
                last[0] = Math.min(last[0], span[0]);
                last[1] = Math.max(last[1], span[1]);
            } else {
                result.add(span.clone());
            }
            previous = match;
        }
        if (backwards) {
            Collections.reverse(result);
        }
        return result;
    }

    private static final class Metaspace extends TextStep {
        private final int[] mark;
        private final String scheme;
        private final boolean split;

        Metaspace(int[] mark, String scheme, boolean split) {
            this.mark = mark;
            this.scheme = scheme;
            this.split = split;
        }

        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            AlignedText out = new AlignedText(text.length);
            for (int i = 0; i < text.length; i++) {
                if (text.points[i] == ' ') {
                    for (int point : mark) {
                        out.add(point, text.starts[i], text.ends[i]);
                    }
                } else {
                    out.add(text, i, i + 1);
                }
            }
            boolean prefixed = scheme.equals("always") ? prefixes.any
                : scheme.equals("first") && prefixes.first && out.length > 0 && out.starts[0] == 0;
            if (prefixed && out.length > 0 && !out.startsWith(mark)) {
                out = prepended(mark, out);
            }
            if (!split) {
                return Collections.singletonList(out);
            }
            List<int[]> spans = new ArrayList<>();
            int open = 0;
            for (int i = 0; i < out.length; i++) {
                if (out.matches(mark, i)) {
                    if (i > open) {
                        spans.add(new int[] {open, i, 0});
                    }
                    spans.add(new int[] {i, i + mark.length, 1});
                    open = i + mark.length;
                    i = open - 1;
                }
            }
            if (out.length > open) {
                spans.add(new int[] {open, out.length, 0});
            }
            List<AlignedText> pieces = new ArrayList<>();
            for (int[] span : joined(spans, "merged_with_next", false)) {
                pieces.add(out.slice(span[0], span[1]));
            }
            return pieces;
        }
    }

    private static final class Bytes extends TextStep {
        @Override
        List<AlignedText> apply(AlignedText text, Prefixes prefixes) {
            AlignedText out = new AlignedText(2 * text.length);
            byte[] bytes = new byte[4];
            for (int i = 0; i < text.length; i++) {
                int n = Utf8.put(text.points[i], bytes, 0);
                for (int k = 0; k < n; k++) {
                    out.add(BYTE_SYMBOLS[bytes[k] & 0xFF], text.starts[i], text.ends[i]);
                }
            }
            return Collections.singletonList(out);
        }
    }

    /** GPT-2's printable stand-ins of the 256 bytes: themselves where printable, else from U+0100 on. */
    static int[] byteSymbols() {
        int[] symbols = new int[256];
        int other = 0x100;
        for (int b = 0; b < 256; b++) {
            boolean printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
            symbols[b] = printable ? b : other++;
        }
        return symbols;
    }
}
