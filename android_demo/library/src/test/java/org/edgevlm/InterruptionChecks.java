package org.edgevlm;

import java.io.File;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** {@code InterruptionChecks package scratch}: cancel, close and trim at any moment, and threads, on the real engine. */
final class InterruptionChecks {
    private static final int ROUNDS = 40;
    private static final long LIMIT_S = 60;
    private static final int WIDTH = 130;
    private static final int HEIGHT = 90;

    private final File directory;
    private final File scratch;
    private final Random random = new Random(5);

    private InterruptionChecks(File directory, File scratch) {
        this.directory = directory;
        this.scratch = scratch;
    }

    public static void main(String[] args) throws Exception {
        Checks.run(new InterruptionChecks(new File(args[0]), new File(args[1])));
    }

    private EdgeVlm open() throws EdgeVlmException {
        return open(2);
    }

    private EdgeVlm open(int threads) throws EdgeVlmException {
        Options options = new Options();
        options.threads = threads;
        options.cacheDirectory = scratch;
        return EdgeVlm.open(directory, options);
    }

    void checkMoreThreadsThanTheMachineHasAreRefused() throws Exception {
        for (int threads : new int[] {100_000, Integer.MAX_VALUE, -1}) {
            Checks.refused(EdgeVlmException.Kind.USAGE, () -> open(threads), threads + " threads were asked for");
        }
        open(0).close();
    }

    /** Asks about a picture that no earlier question had, unless `seed` is one of an earlier question. */
    private static Future<Answer> ask(EdgeVlm model, long seed, int tokens) throws EdgeVlmException {
        byte[] rgb = new byte[3 * WIDTH * HEIGHT];
        new Random(seed).nextBytes(rgb);
        Conversation conversation = model.newConversation(null);
        conversation.addImage(rgb, WIDTH, HEIGHT);
        return conversation.send("What is in this picture?", model.generationOptions().withTemperature(0)
            .withMaxNewTokens(tokens), new ConversationRunner.Collector());
    }

    private static Answer ended(Future<Answer> answer) throws Exception {
        try {
            return answer.get(LIMIT_S, TimeUnit.SECONDS);
        } catch (ExecutionException refused) {
            Checks.equal(((EdgeVlmException) refused.getCause()).kind(), EdgeVlmException.Kind.CANCELLED);
            return null;
        }
    }

    /** Nanoseconds of one whole question, for moments within it. */
    private static long duration(EdgeVlm model) throws Exception {
        long start = System.nanoTime();
        ended(ask(model, 1, 24));
        return System.nanoTime() - start;
    }

    private void sleepWithin(long nanoseconds) throws InterruptedException {
        TimeUnit.NANOSECONDS.sleep((long) (random.nextDouble() * nanoseconds));
    }

    void checkCancelAtAnyMoment() throws Exception {
        EdgeVlm model = open();
        int[] expected = ended(ask(model, 0, 6)).tokenIds;
        long duration = duration(model);
        int cancelled = 0;
        for (int round = 0; round < ROUNDS; round++) {
            Future<Answer> answer = ask(model, 100 + round, 24);
            sleepWithin(duration);
            model.cancel();
            Answer found = ended(answer);
            cancelled += found == null || found.finish == Answer.Finish.CANCELLED ? 1 : 0;
            Checks.that(Arrays.equals(ended(ask(model, 0, 6)).tokenIds, expected), "round " + round + " left something behind");
        }
        Checks.that(cancelled > 0, "no answer was cancelled");
        model.close();
    }

    void checkCloseAtAnyMoment() throws Exception {
        EdgeVlm first = open();
        int[] expected = ended(ask(first, 0, 6)).tokenIds;
        long duration = duration(first);
        first.close();
        for (int round = 0; round < ROUNDS / 2; round++) {
            EdgeVlm model = open();
            Future<Answer> answer = ask(model, 200 + round, 24);
            sleepWithin(duration);
            model.close();
            Checks.that(answer.isDone(), "the answer goes on behind the close");
            ended(answer);
            Checks.refused(EdgeVlmException.Kind.USAGE, () -> ask(model, 0, 6), "closed");
        }
        EdgeVlm last = open();
        Checks.that(Arrays.equals(ended(ask(last, 0, 6)).tokenIds, expected), "another answer than before");
        last.close();
    }

    void checkTrimAtAnyMomentChangesNoAnswer() throws Exception {
        EdgeVlm model = open();
        int[] expected = ended(ask(model, 0, 24)).tokenIds;
        long duration = duration(model);
        for (int round = 0; round < ROUNDS; round++) {
            Future<Answer> answer = ask(model, 0, 24);
            sleepWithin(duration);
            model.trim(TrimLevel.values()[round % 3]);
            Checks.that(Arrays.equals(ended(answer).tokenIds, expected), "round " + round + " says something else");
        }
        model.close();
    }
}
