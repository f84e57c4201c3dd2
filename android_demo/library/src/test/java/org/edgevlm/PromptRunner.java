package org.edgevlm;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;

/**
 * Prompts for the tests: {@code PromptRunner package conversations.json results.json}. A conversation is a list of
 * {"role", "text", "pictures": [[rows, cols, thumbnail, thumbnail_first], ...]}; a result is the ids, or the refusal.
 */
final class PromptRunner {
    private PromptRunner() {
    }

    public static void main(String[] args) throws IOException, EdgeVlmException, Json.FormatException {
        File directory = new File(args[0]);
        Manifest manifest = new Manifest(read(new File(directory, Manifest.NAME)));
        manifest.requireDeviceFiles();
        Tokenizer tokenizer = new Tokenizer(ByteBuffer.wrap(read(new File(directory, manifest.tokenizerPath))));
        ChatProgram template = new ChatProgram(read(new File(directory, manifest.chatPath)));
        PromptBuilder builder = new PromptBuilder(template, tokenizer, manifest.prompt);
        List<Object> results = new ArrayList<>();
        for (Object conversation : Fields.asList(Json.parse(read(new File(args[1]))), "conversations")) {
            List<Message> messages = new ArrayList<>();
            for (Object item : Fields.asList(conversation, "conversation")) {
                Fields fields = new Fields(item, "message");
                List<TilePlan> plans = new ArrayList<>();
                for (Object plan : fields.list("pictures")) {
                    List<?> p = Fields.asList(plan, "plan");
                    plans.add(new TilePlan(Fields.asInteger(p.get(0), "rows"), Fields.asInteger(p.get(1), "cols"),
                        (Boolean) p.get(2), (Boolean) p.get(3)));
                }
                messages.add(new Message(fields.text("role"), fields.text("text"), plans));
            }
            try {
                List<Object> ids = new ArrayList<>();
                for (int id : builder.ids(messages)) {
                    ids.add(id);
                }
                results.add(ids);
            } catch (EdgeVlmException refusal) {
                results.add(refusal.kind().name());
            }
        }
        Files.write(new File(args[2]).toPath(), Utf8.encode(Json.write(results)));
    }

    private static byte[] read(File file) throws IOException {
        return Files.readAllBytes(file.toPath());
    }
}
