package org.edgevlm;

import java.io.File;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;

/**
 * Conversations for the tests: {@code ConversationRunner package conversations.json results.json}. A conversation is
 * {"system", "max_new_tokens", "sampling", "turns": [{"text", "picture": [path of raw RGB, width, height],
 * "trim": level}]}; a result is one object per
 * turn: the ids, the text, how many tokens were reused, or the refusal.
 */
final class ConversationRunner {
    private ConversationRunner() {
    }

    /** Collects what a listener hears. */
    static class Collector implements TokenListener {
        final StringBuilder heard = new StringBuilder();
        Answer answer;
        EdgeVlmException error;

        @Override
        public void onText(String text) {
            heard.append(text);
        }

        @Override
        public void onDone(Answer done) {
            answer = done;
        }

        @Override
        public void onError(EdgeVlmException refused) {
            error = refused;
        }
    }

    public static void main(String[] args) throws Exception {
        Options options = new Options();
        options.threads = Integer.getInteger("threads", 2);
        options.cacheDirectory = new File(args[2]).getAbsoluteFile().getParentFile();
        EdgeVlm model = EdgeVlm.open(new File(args[0]), options);
        List<Object> results = new ArrayList<>();
        for (Object item : Fields.asList(Json.parse(Files.readAllBytes(new File(args[1]).toPath())), "conversations")) {
            results.add(run(model, new Fields(item, "conversation")));
        }
        model.close();
        Files.write(new File(args[2]).toPath(), Utf8.encode(Json.write(results)));
    }

    /** Whether a file of this name is mapped into this process, as Linux tells it. */
    private static boolean isMapped(String name) throws java.io.IOException {
        return Utf8.decodeStrictly(Files.readAllBytes(new File("/proc/self/maps").toPath())).contains("/" + name);
    }

    private static List<Object> run(EdgeVlm model, Fields given) throws Exception {
        Conversation conversation = model.newConversation(given.has("system") ? given.text("system") : null);
        GenerationOptions options = model.generationOptions().withMaxNewTokens(given.integer("max_new_tokens"));
        if (given.has("sampling")) {
            Fields sampling = given.object("sampling");
            options = options.withTemperature(sampling.real("temperature", 0))
                .withSeed(sampling.has("seed") ? sampling.whole("seed") : 0)
                .withRepetitionPenalty(sampling.real("repetition_penalty", 1));
            // what is not given is the package's
            options = sampling.has("top_k") ? options.withTopK(sampling.integer("top_k")) : options;
            options = sampling.has("top_p") ? options.withTopP(sampling.real("top_p", 1)) : options;
        }
        List<Object> results = new ArrayList<>();
        for (Fields turn : given.objects("turns")) {
            if (turn.has("picture")) {
                List<?> picture = turn.list("picture");
                byte[] rgb = Files.readAllBytes(new File((String) picture.get(0)).toPath());
                conversation.addImage(rgb, Fields.asInteger(picture.get(1), "width"),
                    Fields.asInteger(picture.get(2), "height"));
            }
            if (turn.has("trim")) {
                model.trim(TrimLevel.valueOf(turn.text("trim")));
            }
            Collector collector = new Collector();
            Map<String, Object> result = new LinkedHashMap<>();
            try {
                Answer answer = conversation.send(turn.text("text"), options, collector).get();
                List<Object> ids = new ArrayList<>();
                for (int id : answer.tokenIds) {
                    ids.add(id);
                }
                result.put("ids", ids);
                result.put("text", answer.text);
                result.put("heard", collector.heard.toString());
                result.put("finish", answer.finish.name());
                result.put("prompt_tokens", answer.promptTokens);
                result.put("image_tokens", answer.imageTokens);
                result.put("reused", answer.reusedTokens);
                result.put("stages", Json.parse(Utf8.encode(answer.toJson())));
                result.put("vision_mapped", isMapped("vision.bin"));
                result.put("weights_mapped", isMapped("weights.bin"));
            } catch (ExecutionException failed) {
                result.put("refused", collector.error.kind().name());
                result.put("message", collector.error.getMessage());
            }
            results.add(result);
        }
        return results;
    }
}
