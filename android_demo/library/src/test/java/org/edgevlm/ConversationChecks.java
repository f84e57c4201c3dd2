package org.edgevlm;

import java.io.File;
import java.io.RandomAccessFile;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;

/** {@code ConversationChecks package scratch}: cancel, close, trim and refusals, on an engine that a test slows down. */
final class ConversationChecks {
    private static final long LONG_MS = 20_000;

    private final File directory;
    private final File scratch;
    private final Manifest manifest;

    private ConversationChecks(File directory, File scratch) throws EdgeVlmException {
        this.directory = directory;
        this.scratch = scratch;
        manifest = PackageDirectory.open(directory).manifest;
    }

    public static void main(String[] args) throws Exception {
        Checks.run(new ConversationChecks(new File(args[0]), new File(args[1])));
    }

    private EdgeVlm open(FakeEngine engine) throws EdgeVlmException {
        return open(engine, new MemoryProbe());
    }

    private EdgeVlm open(FakeEngine engine, MemoryProbe memory) throws EdgeVlmException {
        Options options = new Options();
        options.arch = "x86_64";
        options.cacheDirectory = scratch;
        options.memory = memory;
        return EdgeVlm.open(directory, options, engine);
    }

    private FakeEngine engine() {
        return new FakeEngine(manifest);
    }

    private static void close(EdgeVlm model, FakeEngine engine) {
        model.close();
        Checks.equal(engine.open.get(), 0);
        Checks.equal(engine.mistakes.toString(), "[]");
    }

    private static Future<Answer> ask(Conversation conversation, EdgeVlm model, int tokens, TokenListener listener)
            throws EdgeVlmException {
        return conversation.send("Hello", model.generationOptions().withMaxNewTokens(tokens), listener);
    }

    void checkCancelDuringPrefill() throws Exception {
        FakeEngine engine = engine();
        engine.prefillHangs = true;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ConversationRunner.Collector heard = new ConversationRunner.Collector();
        Future<Answer> answer = ask(conversation, model, 5, heard);
        engine.awaitStart();
        long start = System.nanoTime();
        conversation.cancel();
        Checks.equal(answer.get().finish, Answer.Finish.CANCELLED);
        Checks.that(System.nanoTime() - start < 2_000_000_000L, "the cancel took too long");
        Checks.equal(conversation.size(), 0);
        engine.prefillHangs = false;
        Checks.equal(ask(conversation, model, 3, heard).get().finish, Answer.Finish.LENGTH);
        close(model, engine);
    }

    void checkCancelBetweenAnswersDoesNotHitTheNext() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ask(conversation, model, 2, new ConversationRunner.Collector()).get();
        model.cancel();
        Checks.equal(ask(conversation, model, 3, new ConversationRunner.Collector()).get().finish, Answer.Finish.LENGTH);
        Checks.equal(conversation.size(), 2);
        close(model, engine);
    }

    void checkAnswerCancelledLaterStays() throws Exception {
        FakeEngine engine = engine();
        engine.stepMs = 5;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ConversationRunner.Collector heard = new ConversationRunner.Collector() {
            @Override
            public void onText(String text) {
                super.onText(text);
                model.cancel();
            }
        };
        Answer answer = ask(conversation, model, 200, heard).get();
        Checks.equal(answer.finish, Answer.Finish.CANCELLED);
        Checks.that(!answer.text.isEmpty() && answer.tokenIds.length < 200, "the cancel came too late");
        Checks.equal(heard.heard.toString(), answer.text);
        Checks.equal(conversation.size(), 1);
        close(model, engine);
    }

    void checkSecondQuestionWhileBusyIsRefused() throws Exception {
        FakeEngine engine = engine();
        engine.prefillHangs = true;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ConversationRunner.Collector heard = new ConversationRunner.Collector();
        ask(conversation, model, 5, heard);
        engine.awaitStart();
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> ask(conversation, model, 5, heard), "is answering");
        close(model, engine);
    }

    void checkCloseWhileBusyAndAfter() throws Exception {
        FakeEngine engine = engine();
        engine.prefillHangs = true;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ConversationRunner.Collector heard = new ConversationRunner.Collector();
        Future<Answer> answer = ask(conversation, model, 5, heard);
        engine.awaitStart();
        close(model, engine);
        Checks.equal(answer.get().finish, Answer.Finish.CANCELLED);
        Checks.that(heard.answer != null && heard.error == null, "the listener was not told once");
        model.close();
        model.cancel();
        model.trim(TrimLevel.KEY_VALUES);
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> ask(conversation, model, 5, heard), "closed");
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> conversation.addImage(new byte[300], 10, 10), "closed");
    }

    void checkCloseWhileAPictureIsEncoded() throws Exception {
        FakeEngine engine = engine();
        engine.tileMs = LONG_MS;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        conversation.addImage(new byte[300 * 100 * 3], 300, 100).get();
        engine.awaitStart();
        Future<Answer> answer = ask(conversation, model, 5, new ConversationRunner.Collector());
        close(model, engine);
        try {
            Checks.equal(answer.get().finish, Answer.Finish.CANCELLED);
        } catch (ExecutionException refused) {
            Checks.equal(((EdgeVlmException) refused.getCause()).kind(), EdgeVlmException.Kind.CANCELLED);
        }
    }

    void checkEncodingBeginsBeforeTheQuestion() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        TilePlan plan = conversation.addImage(new byte[300 * 100 * 3], 300, 100).get();
        Checks.equal(plan.nTiles(), 4);
        Checks.until(() -> engine.encoded.get() >= 4, "the tiles are encoded");
        Checks.equal(engine.encoded.get(), 4);
        Answer answer = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(answer.imageTokens, 4 * engine.tokensPerTile);
        Checks.equal(engine.encoded.get(), 4);
        Checks.that(!model.held().contains("vision"), "the vision weights are still mapped");
        close(model, engine);
    }

    void checkSecondPictureAndReuse() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        byte[] first = new byte[100 * 100 * 3];
        byte[] second = first.clone();
        second[7] = 1;
        conversation.addImage(first, 100, 100);
        Answer one = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        conversation.addImage(second, 100, 100);
        Answer two = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(one.imageTokens, engine.tokensPerTile);
        Checks.equal(two.imageTokens, 2 * engine.tokensPerTile);
        // The last token of an answer is not in the cache yet.
        Checks.that(two.reusedTokens >= one.promptTokens, "only " + two.reusedTokens + " tokens were used again");
        Checks.equal(engine.encoded.get(), 2);
        conversation.addImage(first, 100, 100);
        ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(engine.encoded.get(), 2);
        close(model, engine);
    }

    void checkFailedPictureLeavesTheConversation() throws Exception {
        FakeEngine engine = engine();
        engine.encodeFails = true;
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        conversation.addImage(new byte[100 * 100 * 3], 100, 100);
        ConversationRunner.Collector heard = new ConversationRunner.Collector();
        Future<Answer> answer = ask(conversation, model, 3, heard);
        try {
            answer.get();
            throw new AssertionError("no failure");
        } catch (ExecutionException failed) {
            Checks.equal(heard.error.getMessage(), "the tower failed");
        }
        Checks.equal(conversation.size(), 0);
        engine.encodeFails = false;
        Checks.equal(ask(conversation, model, 3, heard).get().imageTokens, engine.tokensPerTile);
        close(model, engine);
    }

    void checkWrongPictures() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        Checks.refused(EdgeVlmException.Kind.IMAGE, () -> conversation.addImage(new byte[10], 10, 10), "10 x 10");
        Checks.refused(EdgeVlmException.Kind.IMAGE, () -> conversation.addImage(new byte[10], 0, 10));
        Checks.refused(EdgeVlmException.Kind.IMAGE, () -> conversation.addImage(new byte[10], 70000, 1), "65535");
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> model.generationOptions().withTemperature(1e-4), "temperature");
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> model.generationOptions().withTopP(0), "topP");
        close(model, engine);
    }

    void checkTilesAreLoweredUntilTheyFit() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        TilePlan wished = conversation.addImage(new byte[1600 * 10 * 3], 1600, 10).get();
        StringBuilder text = new StringBuilder();
        int room = manifest.defaultContext - 64 - 40 - 6 * engine.tokensPerTile;
        for (int i = 0; i < room; i++) {
            text.append('x');
        }
        Answer answer = conversation.send(text.toString(), model.generationOptions().withMaxNewTokens(64),
            new ConversationRunner.Collector()).get();
        Checks.that(answer.imageTokens < wished.nTiles() * engine.tokensPerTile && answer.imageTokens > 0,
            answer.imageTokens + " image tokens");
        text.append(text);
        ConversationRunner.Collector heard = new ConversationRunner.Collector();
        Future<Answer> refused = conversation.send(text.toString(), heard);
        try {
            refused.get();
            throw new AssertionError("no refusal");
        } catch (ExecutionException error) {
            Checks.equal(heard.error.kind(), EdgeVlmException.Kind.CONTEXT_FULL);
            Checks.that(heard.error.getMessage().contains("the context is " + manifest.defaultContext), "no numbers");
        }
        close(model, engine);
    }

    void checkTrimLevels() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        conversation.addImage(new byte[100 * 100 * 3], 100, 100);
        ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(model.held().toString(), "[key-values, pictures]");
        model.trim(TrimLevel.PICTURES);
        Checks.equal(model.held().toString(), "[key-values]");
        model.trim(TrimLevel.KEY_VALUES);
        int before = engine.prefilled.get();
        Checks.until(() -> !model.holdsKeyValues(), "the cache is put down");
        Checks.equal(model.held().toString(), "[]");
        Checks.that(model.keyValuesOnDisk(), "the cache is not in its file");
        Answer answer = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(engine.restored.get(), 1);
        Checks.equal(engine.encoded.get(), 1);
        Checks.equal(engine.prefilled.get() - before, answer.promptTokens - answer.reusedTokens);
        Checks.that(answer.reusedTokens > 0, "nothing was used again");
        close(model, engine);
    }

    /** A device whose memory is short at some of the looks at it; `looks` counts them. */
    private static final class ScriptedMemory extends MemoryProbe {
        final boolean[] isShort;
        int looks;

        ScriptedMemory(boolean... isShort) {
            this.isShort = isShort;
        }

        @Override
        public long availableBytes() {
            boolean now = looks > 0 && looks <= isShort.length && isShort[looks - 1];
            looks++;
            return now ? 1 : Long.MAX_VALUE;
        }
    }

    /** Pictures go first, then the vision weights, then the cache; each only when memory is short at that look. */
    void checkMemoryIsLookedAtBetweenStages() throws Exception {
        boolean[][] looks = {
            // after the picture, after the prompt, after the answer; the first look of all is the budget's
            {false, false, false},
            {true, false, false, false},
            {false, true, true, false, false},
            {false, false, true, true, true},
        };
        String[] held = {"[key-values, pictures]", "[key-values]", "[key-values]", "[]"};
        for (int i = 0; i < looks.length; i++) {
            FakeEngine engine = engine();
            ScriptedMemory memory = new ScriptedMemory(looks[i]);
            EdgeVlm model = open(engine, memory);
            Conversation conversation = model.newConversation(null);
            conversation.addImage(new byte[100 * 100 * 3], 100, 100);
            Answer answer = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
            Checks.equal(memory.looks, looks[i].length + 1);
            Checks.equal(model.held().toString(), held[i]);
            Checks.equal(model.keyValuesOnDisk(), i == 3);
            Answer next = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
            Checks.that(next.reusedTokens >= answer.promptTokens, "only " + next.reusedTokens + " tokens were used again");
            Checks.equal(engine.restored.get(), i == 3 ? 1 : 0);
            close(model, engine);
        }
    }

    void checkDamagedCacheFileIsComputedAgain() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        Conversation conversation = model.newConversation(null);
        ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        model.trim(TrimLevel.KEY_VALUES);
        Checks.until(() -> !model.holdsKeyValues(), "the cache is put down");
        try (RandomAccessFile file = new RandomAccessFile(new File(scratch, "edgevlm-key-values.bin"), "rw")) {
            file.setLength(4);
        }
        Answer answer = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(answer.reusedTokens, 0);
        Checks.equal(answer.finish, Answer.Finish.LENGTH);
        close(model, engine);
    }

    void checkRestoredTurnsGiveTheSamePrompt() throws Exception {
        FakeEngine engine = engine();
        EdgeVlm model = open(engine);
        byte[] picture = new byte[100 * 100 * 3];
        Conversation conversation = model.newConversation(null);
        conversation.addImage(picture, 100, 100);
        Answer first = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Answer second = ask(conversation, model, 3, new ConversationRunner.Collector()).get();
        Conversation restored = model.newConversation(null);
        java.nio.ByteBuffer pixels = java.nio.ByteBuffer.allocateDirect(picture.length);
        restored.restoreImage(pixels, 100, 100, 3, 1);
        restored.restoreTurn("Hello", first.text);
        Answer again = ask(restored, model, 3, new ConversationRunner.Collector()).get();
        Checks.equal(again.promptTokens, second.promptTokens);
        Checks.equal(again.imageTokens, second.imageTokens);
        close(model, engine);
    }

    void checkMemoryIsRefusedWithNumbers() throws Exception {
        for (boolean byBudget : new boolean[] {true, false}) {
            Options options = new Options();
            options.arch = "x86_64";
            options.memoryBudgetBytes = byBudget ? 20_000_000 : 0;
            options.memory = new MemoryProbe() {
                @Override
                public long availableBytes() {
                    return byBudget ? -1 : 130L << 20;
                }
            };
            FakeEngine engine = engine();
            Checks.refused(EdgeVlmException.Kind.BACKEND, () -> EdgeVlm.open(directory, options, engine),
                "the model needs", "weights", "key-value cache", byBudget ? "the budget is 20 MB" : "136 MB are available");
            Checks.equal(engine.open.get(), 0);
        }
        Options options = new Options();
        options.arch = "x86_64";
        options.contextTokens = 1 << 20;
        Checks.refused(EdgeVlmException.Kind.USAGE, () -> EdgeVlm.open(directory, options, engine()), "the context is");
    }

    void checkStrictJson() throws Exception {
        String[] wrong = {"{\"a\":1,}", "[1 2]", "01", "1.", "nul", "\"\\x\"", "\"\\ud800\"", "{\"a\":1,\"a\":2}", "[", "1e999",
            "\"\u0001\"", "NaN", "[1]]", "", "-", "9223372036854775808"};
        for (String text : wrong) {
            try {
                Json.parse(Utf8.encode(text));
            } catch (Json.FormatException expected) {
                continue;
            }
            throw new AssertionError("accepted: " + text);
        }
        Object parsed = Json.parse(Utf8.encode("{\"a\": [1, -2.5e1, true, null, \"\\ud83d\\ude42\\n\"]}"));
        Checks.equal(parsed.toString(), "{a=[1, -25.0, true, null, \ud83d\ude42\n]}");
        Checks.equal(Json.parse(Utf8.encode(Json.write(parsed))), parsed);
    }
}
