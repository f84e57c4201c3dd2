package org.edgevlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A conversation and its pictures become token ids; what a user types never becomes markup.
 *
 * <p>The template runs on the text of the messages, and once more on stand-ins for its characters ({@link Origins}), which
 * tell who wrote each character. The whole prompt is encoded at once. Only when that recognised a control token in characters
 * that may not write it, it is encoded in runs between the tokens that stand. The template may write everything, the assistant
 * control tokens that are not special, users none. The same as edgevlm/prompt.py, which tests compare it with.
 */
final class PromptBuilder {
    private final ChatProgram template;
    private final Tokenizer tokenizer;
    private final Manifest.Prompt spec;

    PromptBuilder(ChatProgram template, Tokenizer tokenizer, Manifest.Prompt spec) {
        this.template = template;
        this.tokenizer = tokenizer;
        this.spec = spec;
    }

    /** A prompt's text as code points, and the same in stand-ins. */
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
        Map<Origins.Writer, Set<Integer>> typed = new EnumMap<>(Origins.Writer.class);
        Set<Integer> taken = new HashSet<>(template.privatePoints());
        boolean mayForge = false;
        for (Origins.Writer writer : Origins.Writer.values()) {
            typed.put(writer, new HashSet<Integer>());
        }
        for (Message message : messages) {
            for (int point : Utf8.points(message.text)) {
                typed.get(writer(message)).add(point);
                taken.add(point);
                mayForge |= tokenizer.isMarkup(point);
            }
        }
        Origins origins = new Origins(taken);
        int marker = origins.marker();
        List<int[]> shown = new ArrayList<>();
        for (Message message : messages) {
            shown.add(shown(message, origins));
        }
        for (Origins.Writer writer : Origins.Writer.values()) {
            origins.learn(typed.get(writer), writer);
        }
        List<int[]> inStandIns = new ArrayList<>();
        for (int i = 0; i < shown.size(); i++) {
            inStandIns.add(origins.written(shown.get(i), writer(messages.get(i))));
        }
        boolean asList = spec != null && spec.asList;
        int[] plain = Utf8.points(template.render(values(messages, asList, marker, shown), origins));
        int[] marked = Utf8.points(template.render(values(messages, asList, marker, inStandIns), origins));
        if (!Arrays.equals(origins.meant(marked), origins.meant(plain))) {
            // Where nothing that was written has a character of markup, nothing can be forged.
            if (mayForge) {
                throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE, "the chat template changes the text of messages in "
                    + "a way that does not tell what was typed from what is markup; use another chat template");
            }
            marked = plain;
        }
        Rendered rendered = new Rendered(origins.real(marked), marked);
        if (asList) {
            rendered = replaced(rendered, Utf8.points(spec.imageToken), marker);
        }
        return encode(expanded(rendered, marker, plans), origins);
    }

    private static Origins.Writer writer(Message message) {
        return message.role.equals("assistant") ? Origins.Writer.ASSISTANT : Origins.Writer.USER;
    }

    /** Returns a message's text as the template may read it: a user's with the control tokens in it broken. */
    private int[] shown(Message message, Origins origins) throws EdgeVlmException {
        int[] points = Utf8.points(message.text);
        if (writer(message) == Origins.Writer.ASSISTANT) {
            return points;
        }
        while (true) {
            Tokens tokens = tokenizer.encodeTokens(points);
            int[] after = points.clone();
            for (int t = 0; t < tokens.size(); t++) {
                if (!tokenizer.isForbidden(tokens.ids.get(t))) {
                    continue;
                }
                for (int i = tokens.starts.get(t); i < tokens.ends.get(t); i++) {
                    if (origins.writer(after[i]) == null && !Spaces.isPythonSpace(after[i])) {
                        after[i] = origins.hide(after[i]);
                        break;
                    }
                }
            }
            if (Arrays.equals(after, points)) {
                return points;
            }
            points = after;
        }
    }

    private static List<Object> values(List<Message> messages, boolean asList, int marker, List<int[]> texts) {
        List<Object> result = new ArrayList<>();
        for (int m = 0; m < messages.size(); m++) {
            Message message = messages.get(m);
            String text = new String(texts.get(m), 0, texts.get(m).length);
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

    private int[] encode(Rendered rendered, Origins origins) throws EdgeVlmException {
        Tokens tokens = tokenizer.encodeTokens(rendered.text);
        boolean forged = false;
        for (int i = 0; i < tokens.size(); i++) {
            forged |= isForged(tokens, i, rendered, origins);
        }
        if (!forged) {
            return tokens.ids.toArray();
        }
        IntList ids = new IntList();
        int end = 0;
        Tokens standing = guardedTokens(rendered, origins);
        for (int i = 0; i < standing.size(); i++) {
            if (tokenizer.isControl(standing.ids.get(i)) && !isForged(standing, i, rendered, origins)) {
                int[] run = Arrays.copyOfRange(rendered.text, end, standing.starts.get(i));
                ids.addAll(tokenizer.encodeAsText(run, end == 0));
                ids.add(standing.ids.get(i));
                end = standing.ends.get(i);
            }
        }
        int[] rest = Arrays.copyOfRange(rendered.text, end, rendered.text.length);
        ids.addAll(tokenizer.encodeAsText(rest, end == 0));
        return ids.toArray();
    }

    /** Whether somebody wrote a part of this control token who may not. */
    private boolean isForged(Tokens tokens, int at, Rendered rendered, Origins origins) {
        int id = tokens.ids.get(at);
        if (!tokenizer.isControl(id)) {
            return false;
        }
        int start = tokens.starts.get(at);
        int end = tokens.ends.get(at);
        return origins.wrote(Origins.Writer.USER, rendered.marked, start, end)
            || (tokenizer.isSpecial(id) && origins.wrote(Origins.Writer.ASSISTANT, rendered.marked, start, end));
    }

    /** Returns the tokens of a prompt in which no forged control token is found, and so hides none that stands. */
    private Tokens guardedTokens(Rendered rendered, Origins origins) throws EdgeVlmException {
        int[] guarded = rendered.text.clone();
        for (int i = 0; i < guarded.length; i++) {
            if (origins.writer(rendered.marked[i]) == Origins.Writer.USER) {
                guarded[i] = rendered.marked[i];
            }
        }
        while (true) {
            Tokens tokens = tokenizer.encodeTokens(guarded);
            int[] after = guarded.clone();
            for (int i = 0; i < tokens.size(); i++) {
                if (isForged(tokens, i, rendered, origins)) {
                    int start = tokens.starts.get(i);
                    System.arraycopy(rendered.marked, start, after, start, tokens.ends.get(i) - start);
                }
            }
            if (Arrays.equals(after, guarded)) {
                return tokens;
            }
            guarded = after;
        }
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
