package org.edgevlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/**
 * A conversation and its pictures become token ids; what a user types never becomes markup.
 *
 * <p>The template runs on the real text, and once more on a text whose characters (but white space) are stand-ins from
 * the private-use planes, one for one; the second rendering tells what the user wrote. The whole prompt is encoded at once.
 * Only when that recognised a control token in characters of a user, it is encoded in runs between the template's own
 * control tokens. The same as edgevlm/prompt.py, which tests compare it with.
 */
final class PromptBuilder {
    private static final int[][] PRIVATE_USE = {{0xF0000, 0xFFFFE}, {0x100000, 0x10FFFE}};

    private final ChatProgram template;
    private final Tokenizer tokenizer;
    private final Manifest.Prompt spec;

    PromptBuilder(ChatProgram template, Tokenizer tokenizer, Manifest.Prompt spec) {
        this.template = template;
        this.tokenizer = tokenizer;
        this.spec = spec;
    }

    /** A prompt's text as code points, and the same with the user's characters replaced by stand-ins. */
    private static final class Rendered {
        final int[] text;
        final int[] marked;

        Rendered(int[] text, int[] marked) {
            this.text = text;
            this.marked = marked;
        }
    }

    /** Returns the ids of a conversation, image tokens written out. */
    int[] ids(List<Message> messages) throws EdgeVlmException {
        List<TilePlan> plans = new ArrayList<>();
        for (Message message : messages) {
            plans.addAll(message.pictures);
            check(message.text);
        }
        if (!plans.isEmpty() && spec == null) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                "this package is a language model alone; it takes no pictures");
        }
        if (!template.exists()) {
            if (messages.size() != 1 || !plans.isEmpty()) {
                throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
                    "the package has no chat template; it continues one plain text, without pictures and turns");
            }
            return tokenizer.encodeDocument(Utf8.points(messages.get(0).text));
        }
        int[] ids = encode(messages, plans);
        checkPictures(ids, plans);
        return ids;
    }

    private static void check(String text) throws EdgeVlmException {
        for (int point : Utf8.points(text)) {
            if (point >= 0xD800 && point < 0xE000) {
                throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                    "the text has a lone surrogate, expected valid Unicode text");
            }
        }
    }

    private int[] encode(List<Message> messages, List<TilePlan> plans) throws EdgeVlmException {
        Map<Integer, Integer> standIns = new LinkedHashMap<>();
        Set<Integer> typed = new TreeSet<>();
        for (Message message : messages) {
            for (int point : Utf8.points(message.text)) {
                typed.add(point);
            }
        }
        Set<Integer> taken = new HashSet<>(typed);
        taken.addAll(template.privatePoints());
        int[] free = unused(taken, typed.size() + 1);
        int marker = free[0];
        int n = 1;
        boolean mayForge = false;
        for (int point : typed) {
            mayForge |= tokenizer.isMarkup(point);
            if (!Spaces.isPythonSpace(point)) {
                standIns.put(point, free[n++]);
            }
        }
        boolean asList = spec != null && spec.asList;
        String real = template.render(values(messages, asList, marker, null));
        int[] marked = Utf8.points(template.render(values(messages, asList, marker, standIns)));
        Map<Integer, Integer> back = new LinkedHashMap<>();
        for (Map.Entry<Integer, Integer> entry : standIns.entrySet()) {
            back.put(entry.getValue(), entry.getKey());
        }
        int[] text = mapped(marked, back);
        int[] realPoints = Utf8.points(real);
        if (!Arrays.equals(text, realPoints) && !mayForge) {
            // The template looked into the text (upper case, say); without a character of markup nothing can be forged.
            text = realPoints;
            marked = realPoints;
        }
        Rendered rendered = new Rendered(text, marked);
        if (asList) {
            rendered = replaced(rendered, Utf8.points(spec.imageToken), marker);
        }
        return encode(expanded(rendered, marker, plans), new HashSet<>(standIns.values()));
    }

    private static int[] unused(Set<Integer> taken, int count) throws EdgeVlmException {
        int[] result = new int[count];
        int n = 0;
        for (int[] plane : PRIVATE_USE) {
            for (int point = plane[0]; point < plane[1] && n < count; point++) {
                if (!taken.contains(point)) {
                    result[n++] = point;
                }
            }
        }
        if (n < count) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                "the text has more different characters than a prompt can hold (131,000)");
        }
        return result;
    }

    private static int[] mapped(int[] points, Map<Integer, Integer> change) {
        int[] result = points.clone();
        for (int i = 0; i < result.length; i++) {
            Integer other = change.get(result[i]);
            result[i] = other == null ? result[i] : other;
        }
        return result;
    }

    private static List<Object> values(List<Message> messages, boolean asList, int marker, Map<Integer, Integer> change) {
        List<Object> result = new ArrayList<>();
        for (Message message : messages) {
            int[] points = Utf8.points(message.text);
            int[] changed = change == null ? points : mapped(points, change);
            String text = new String(changed, 0, changed.length);
            Map<String, Object> value = new LinkedHashMap<>();
            value.put("role", message.role);
            if (asList) {
                List<Object> parts = new ArrayList<>();
                for (int i = 0; i < message.pictures.size(); i++) {
                    Map<String, Object> image = new LinkedHashMap<>();
                    image.put("type", "image");
                    parts.add(image);
                }
                Map<String, Object> part = new LinkedHashMap<>();
                part.put("type", "text");
                part.put("text", text);
                parts.add(part);
                value.put("content", parts);
            } else {
                StringBuilder content = new StringBuilder();
                for (int i = 0; i < message.pictures.size(); i++) {
                    content.appendCodePoint(marker);
                }
                value.put("content", content.append(text).toString());
            }
            result.add(value);
        }
        return result;
    }

    /** Puts the marker where the template wrote the image token; those that a user typed are stand-ins. */
    private static Rendered replaced(Rendered rendered, int[] token, int marker) {
        IntList text = new IntList();
        IntList marked = new IntList();
        int i = 0;
        while (i < rendered.marked.length) {
            if (startsAt(rendered.marked, i, token)) {
                text.add(marker);
                marked.add(marker);
                i += token.length;
            } else {
                text.add(rendered.text[i]);
                marked.add(rendered.marked[i++]);
            }
        }
        return new Rendered(text.toArray(), marked.toArray());
    }

    private static boolean startsAt(int[] points, int at, int[] part) {
        if (at + part.length > points.length) {
            return false;
        }
        for (int i = 0; i < part.length; i++) {
            if (points[at + i] != part[i]) {
                return false;
            }
        }
        return true;
    }

    /** Puts each picture's text in place of its marker. */
    private Rendered expanded(Rendered rendered, int marker, List<TilePlan> plans) throws EdgeVlmException {
        if (plans.isEmpty()) {
            return rendered;
        }
        IntList text = new IntList();
        IntList marked = new IntList();
        int image = 0;
        for (int i = 0; i < rendered.marked.length; i++) {
            if (rendered.marked[i] != marker) {
                text.add(rendered.text[i]);
                marked.add(rendered.marked[i]);
                continue;
            }
            if (image < plans.size()) {
                int[] run = Utf8.points(imageText(spec, plans.get(image)));
                text.addAll(run);
                marked.addAll(run);
            }
            image++;
        }
        if (image != plans.size()) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE, "the chat template writes " + image
                + " image markers for " + plans.size() + " pictures; expected one each");
        }
        return new Rendered(text.toArray(), marked.toArray());
    }

    static String imageText(Manifest.Prompt spec, TilePlan plan) {
        StringBuilder tokens = new StringBuilder();
        for (int i = 0; i < spec.tokensPerTile; i++) {
            tokens.append(spec.imageToken);
        }
        if (plan.nTiles() == 1) {
            return spec.singlePrefix + tokens + spec.imageSuffix;
        }
        String thumbnail = plan.thumbnail ? spec.thumbnailPrefix + tokens : "";
        StringBuilder out = new StringBuilder(spec.imagePrefix);
        if (plan.thumbnailFirst) {
            out.append(thumbnail);
        }
        for (int row = 1; row <= plan.rows; row++) {
            for (int col = 1; col <= plan.cols; col++) {
                String prefix = spec.tilePrefix.replace("{row}", String.valueOf(row));
                out.append(prefix.replace("{col}", String.valueOf(col))).append(tokens);
            }
            out.append(spec.rowSuffix);
        }
        if (!plan.thumbnailFirst) {
            out.append(thumbnail);
        }
        return out.append(spec.imageSuffix).toString();
    }

    private int[] encode(Rendered rendered, Set<Integer> standIns) throws EdgeVlmException {
        Tokens tokens = tokenizer.encodeTokens(rendered.text);
        boolean forged = false;
        for (int i = 0; i < tokens.size(); i++) {
            forged |= tokenizer.isControl(tokens.ids.get(i))
                && hasAny(rendered.marked, tokens.starts.get(i), tokens.ends.get(i), standIns);
        }
        if (!forged) {
            return tokens.ids.toArray();
        }
        IntList ids = new IntList();
        int end = 0;
        Tokens marked = tokenizer.encodeTokens(rendered.marked);
        for (int i = 0; i < marked.size(); i++) {
            int start = marked.starts.get(i);
            if (tokenizer.isControl(marked.ids.get(i)) && !hasAny(rendered.marked, start, marked.ends.get(i), standIns)) {
                ids.addAll(tokenizer.encodeAsText(Arrays.copyOfRange(rendered.text, end, start), end == 0));
                ids.add(marked.ids.get(i));
                end = marked.ends.get(i);
            }
        }
        int[] rest = Arrays.copyOfRange(rendered.text, end, rendered.text.length);
        ids.addAll(tokenizer.encodeAsText(rest, end == 0));
        return ids.toArray();
    }

    private static boolean hasAny(int[] points, int start, int end, Set<Integer> set) {
        for (int i = start; i < end; i++) {
            if (set.contains(points[i])) {
                return true;
            }
        }
        return false;
    }

    private void checkPictures(int[] ids, List<TilePlan> plans) throws EdgeVlmException {
        if (spec == null) {
            return;
        }
        long expected = 0;
        for (TilePlan plan : plans) {
            expected += (long) plan.nTiles() * spec.tokensPerTile;
        }
        long found = 0;
        for (int id : ids) {
            found += id == spec.imageTokenId ? 1 : 0;
        }
        if (found != expected) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE, "image tokens do not match: the prompt has "
                + found + " placeholders, the pictures have " + expected);
        }
    }
}
