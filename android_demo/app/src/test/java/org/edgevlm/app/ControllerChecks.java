package org.edgevlm.app;

import java.io.File;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.edgevlm.Answer;
import org.edgevlm.Checks;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.Options;

/** {@code ControllerChecks package scratch}: what the screen does, on the real engine, without a screen. */
final class ControllerChecks {
    private static final long LIMIT_MS = 30_000;

    private final File packageDirectory;
    private final File scratch;
    private int number;

    private ControllerChecks(File packageDirectory, File scratch) {
        this.packageDirectory = packageDirectory;
        this.scratch = scratch;
    }

    public static void main(String[] args) throws Exception {
        Checks.run(new ControllerChecks(new File(args[0]), new File(args[1])));
    }

    /** A main thread that runs what is posted when the test asks. */
    private static final class Main {
        final BlockingQueue<Runnable> posted = new LinkedBlockingQueue<>();

        void until(Condition condition, String what) throws InterruptedException {
            long end = System.nanoTime() + LIMIT_MS * 1_000_000;
            while (!condition.holds()) {
                Checks.that(System.nanoTime() < end, "waited too long until " + what);
                Runnable next = posted.poll(10, TimeUnit.MILLISECONDS);
                if (next != null) {
                    next.run();
                }
            }
        }
    }

    private interface Condition {
        boolean holds();
    }

    /** Counts what the screen would draw. */
    private static final class Screen implements ChatController.Watcher {
        final StringBuilder streamed = new StringBuilder();
        int drawn;

        @Override
        public void changed() {
            drawn++;
        }

        @Override
        public void streamed(String piece) {
            streamed.append(piece);
        }
    }

    private File directory() {
        File directory = new File(scratch, "app" + number++);
        Checks.that(directory.mkdirs(), "mkdir");
        return directory;
    }

    /** Pictures are files of 40 x 30 raw pixels. */
    private static ChatController controller(File directory, Main main) {
        ChatController.PictureReader reader = (conversation, file, restore) -> {
            byte[] rgb = new byte[40 * 30 * 3];
            rgb[0] = (byte) file.getName().length();
            java.nio.ByteBuffer pixels = java.nio.ByteBuffer.allocateDirect(rgb.length);
            pixels.put(rgb).clear();
            return restore ? conversation.restoreImage(pixels, 40, 30, 3, 1)
                : conversation.addImage(pixels, 40, 30, 3, 1);
        };
        return new ChatController(directory, main.posted::add, reader, EdgeVlm::open);
    }

    private ChatController ready(File directory, Main main) throws Exception {
        ChatController controller = controller(directory, main);
        Options options = new Options();
        options.threads = 2;
        controller.load(packageDirectory, options);
        main.until(() -> controller.state() == ChatController.State.READY, "the model is ready");
        return controller;
    }

    /** Short answers: those of random weights may go on to the end of the context. */
    private static ChatController.Settings greedy() {
        ChatController.Settings settings = new ChatController.Settings();
        settings.maxNewTokens = 60;
        return settings;
    }

    private static void ask(ChatController controller, Main main, String text) throws Exception {
        controller.send(text, greedy());
        Checks.equal(controller.state(), ChatController.State.ANSWERING);
        main.until(() -> controller.state() == ChatController.State.READY, "the answer is there");
    }

    private static String picture(File directory, String name) throws Exception {
        Checks.that(new File(directory, name).createNewFile(), "picture");
        return name;
    }

    void checkQuestionWithPictureStreams() throws Exception {
        File directory = directory();
        Main main = new Main();
        ChatController controller = ready(directory, main);
        Screen screen = new Screen();
        controller.watch(screen);
        controller.attach(picture(directory, "a.img"));
        main.until(() -> controller.plans().size() == 1, "the grid is known");
        ask(controller, main, "What is this?");
        Checks.equal(controller.problem(), "");
        Checks.equal(controller.turns().size(), 1);
        Checks.equal(controller.turns().get(0).answer, screen.streamed.toString());
        Checks.equal(controller.attached().size(), 0);
        Checks.that(controller.lastAnswer().imageTokens > 0, "the picture is not in the prompt");
        Checks.that(screen.drawn > 2, "the screen was not told");
        controller.close();
    }

    void checkSendDirectlyAfterAttachWaitsForThePicture() throws Exception {
        File directory = directory();
        Main main = new Main();
        ChatController controller = ready(directory, main);
        controller.attach(picture(directory, "a.img"));
        ask(controller, main, "What is this?");
        Checks.that(controller.lastAnswer().imageTokens > 0, "the question overtook its picture");
        controller.close();
    }

    void checkRotationChangesNothing() throws Exception {
        File directory = directory();
        Main main = new Main();
        ChatController controller = ready(directory, main);
        Screen first = new Screen();
        Screen second = new Screen();
        controller.watch(first);
        controller.send("Hello", greedy());
        controller.unwatch(first);
        controller.watch(second);
        controller.unwatch(first);
        main.until(() -> controller.state() == ChatController.State.READY, "the answer is there");
        Checks.equal(controller.turns().size(), 1);
        Checks.that(second.drawn > 1, "the second screen was not told");
        controller.close();
    }

    void checkProcessDeathKeepsTheConversation() throws Exception {
        File directory = directory();
        Main main = new Main();
        ChatController controller = ready(directory, main);
        controller.attach(picture(directory, "a.img"));
        ask(controller, main, "What is this? \ud83d\ude42");
        controller.setDraft("half a que");
        controller.save();
        ask(controller, main, "And now?");
        Answer expected = controller.lastAnswer();
        String said = controller.turns().get(1).answer;
        controller.close();

        // The file as it was before the second question.
        SavedConversation saved = SavedConversation.read(new File(directory, "conversation.bin"));
        Checks.equal(saved.turns.size(), 2);
        saved.turns.remove(1);
        saved.draft = "half a que";
        saved.write(new File(directory, "conversation.bin"));

        Main again = new Main();
        ChatController other = ready(directory, again);
        Checks.equal(other.takeDraft(), "half a que");
        Checks.equal(other.draft(), "");
        Checks.equal(other.turns().get(0).question, "What is this? \ud83d\ude42");
        ask(other, again, "And now?");
        Checks.equal(other.turns().get(1).answer, said);
        Checks.equal(other.lastAnswer().promptTokens, expected.promptTokens);
        Checks.equal(other.lastAnswer().imageTokens, expected.imageTokens);
        other.close();
    }

    void checkStopKeepsTheQuestion() throws Exception {
        Main main = new Main();
        ChatController controller = ready(directory(), main);
        controller.send("A long story, please", greedy());
        controller.stop();
        main.until(() -> controller.state() == ChatController.State.READY, "it has stopped");
        boolean kept = controller.draft().equals("A long story, please") || controller.turns().size() == 1;
        Checks.that(kept, "the question is lost");
        controller.close();
    }

    void checkNewConversationRemovesPictures() throws Exception {
        File directory = directory();
        Main main = new Main();
        ChatController controller = ready(directory, main);
        controller.attach(picture(directory, "a.img"));
        ask(controller, main, "What is this?");
        controller.attach(picture(directory, "b.img"));
        controller.newConversation();
        Checks.equal(controller.turns().size() + controller.attached().size(), 0);
        Checks.that(!new File(directory, "a.img").exists() && !new File(directory, "b.img").exists(), "pictures stay");
        main.until(main.posted::isEmpty, "nothing is left to do");
        ask(controller, main, "Hello");
        Checks.equal(controller.lastAnswer().imageTokens, 0);
        controller.close();
    }

    void checkMissingPackageIsTold() throws Exception {
        Main main = new Main();
        ChatController controller = controller(directory(), main);
        controller.load(new File(scratch, "none"), new Options());
        main.until(() -> controller.state() == ChatController.State.FAILED, "it has failed");
        Checks.that(controller.problem().contains("no package"), controller.problem());
        controller.send("Hello", greedy());
        Checks.equal(controller.turns().size(), 0);
        controller.close();
    }

    /** Settings were changed while an answer ran: it ends, stays as far as it came, and the next question sees it. */
    void checkReloadDuringAnAnswerKeepsIt() throws Exception {
        Main main = new Main();
        ChatController controller = ready(directory(), main);
        Screen screen = new Screen();
        controller.watch(screen);
        ChatController.Settings settings = greedy();
        settings.maxNewTokens = 100; // a quick machine would fill the context with it, and leave no room for a second question
        controller.send("A long story, please", settings);
        main.until(() -> screen.streamed.length() > 0 || controller.turns().size() == 1, "something is said");
        controller.load(packageDirectory, new Options());
        main.until(() -> controller.state() == ChatController.State.READY, "the model is ready again");
        Checks.equal(controller.turns().size(), 1);
        ask(controller, main, "And then?");
        Checks.equal(controller.problem(), "");
        Checks.equal(controller.turns().size(), 2);
        Checks.that(controller.lastAnswer().promptTokens > screen.streamed.length() / 8, "the first turn is not in the prompt");
        controller.close();
    }

    void checkFailedImportLeavesTheModel() throws Exception {
        Main main = new Main();
        ChatController controller = ready(directory(), main);
        controller.importing(40);
        controller.importFailed("the package is damaged");
        Checks.equal(controller.state(), ChatController.State.READY);
        Checks.equal(controller.problem(), "the package is damaged");
        ask(controller, main, "Hello");
        Checks.equal(controller.turns().size(), 1);
        controller.load(new File(scratch, "none"), new Options());
        controller.importFailed("damaged, too");
        Checks.equal(controller.state(), ChatController.State.LOADING);
        main.until(() -> controller.state() == ChatController.State.FAILED, "it has failed");
        controller.close();
    }

    void checkBenchmarkFile() throws Exception {
        File file = new File(directory(), "benchmark.json");
        Benchmark.write(file, Benchmark.refusal("no \"package\""));
        String found = new String(java.nio.file.Files.readAllBytes(file.toPath()), "UTF-8");
        Checks.equal(found, "{\"format\": 1, \"error\": \"no _package_\", \"runs\": []}");
        Checks.equal(file.getParentFile().list().length, 1);
    }

    void checkDamagedSavedConversation() throws Exception {
        File directory = directory();
        File file = new File(directory, "conversation.bin");
        SavedConversation saved = new SavedConversation();
        saved.turns.add(new SavedConversation.Turn("q", java.util.Arrays.asList("a.img"), null));
        saved.write(file);
        Checks.equal(SavedConversation.read(file).turns.get(0).pictures.get(0), "a.img");
        try (java.io.RandomAccessFile cut = new java.io.RandomAccessFile(file, "rw")) {
            for (long size = file.length() - 1; size >= 0; size--) {
                cut.setLength(size);
                Checks.equal(SavedConversation.read(file).turns.size(), 0);
            }
        }
        Checks.equal(SavedConversation.read(new File(directory, "none")).turns.size(), 0);
    }

    void checkBenchmarkNumbers() throws EdgeVlmException {
        Options options = new Options();
        options.threads = 2;
        EdgeVlm model = EdgeVlm.open(packageDirectory, options);
        Benchmark benchmark = new Benchmark();
        int[] reports = {0};
        benchmark.run(model, conversation -> conversation.addImage(new byte[40 * 30 * 3], 40, 30), () -> "none",
            () -> reports[0]++);
        Checks.equal(benchmark.error(), "");
        Checks.equal(benchmark.answers().size(), Benchmark.RUNS);
        Checks.equal(reports[0], Benchmark.RUNS + 1);
        for (Answer answer : benchmark.answers()) {
            Checks.that(answer.encodeMs > 0 && answer.prefillMs > 0, "a stage has no time: " + answer.toJson());
        }
        String json = benchmark.toJson(model, "a \"phone\"", "x");
        Checks.that(json.contains("\"thermal_after\": \"none\"") && json.contains("a _phone_"), json);
        model.close();
    }
}
