package org.edgevlm;

import java.io.File;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.FutureTask;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * An opened package: questions and pictures in, answers out, offline.
 *
 * <p>All methods may be called from any thread. Answers run one at a time on a thread of the library; pictures are encoded
 * on another. {@link #open} and {@link #close} block, so call them off the main thread.
 */
public final class EdgeVlm {
    private static final int MAX_DEFAULT_CONTEXT = 4096;
    /** A prompt is accepted when at least this much of the answer fits behind it. */
    private static final int MIN_ANSWER_TOKENS = 64;
    private static final int ROW_BITS = 24;
    private static final long CLOSE_POLL_MS = 20;

    final NativeEngine engine;
    final Manifest manifest;
    final ImageSpec imageSpec;
    final PictureEncoder encoder;
    final Options options;
    private final NativeEngine.Model model;
    private final PromptBuilder prompts;
    private final KeyValueStore cache;
    private final TokenLoop loop;
    private final MemoryBudget budget;
    private final ExecutorService thread;
    private final Map<String, Long> pictureNumbers = new HashMap<>();
    private final Object lock = new Object();
    private Cancellation running;
    private boolean closed;
    private double loadMs;

    private EdgeVlm(PackageDirectory directory, Options options, NativeEngine engine, long start)
            throws EdgeVlmException {
        this.engine = engine;
        this.options = options;
        manifest = directory.manifest;
        String arch = options.arch == null ? Options.hostArch() : options.arch;
        File plan = directory.planDirectory(arch);
        int context = contextTokens(options, manifest);
        budget = new MemoryBudget(manifest, manifest.planDirectory(arch), context);
        budget.check(options.memory, options.memoryBudgetBytes);
        Tokenizer tokenizer = new Tokenizer(directory.map(manifest.tokenizerPath));
        ChatProgram template = new ChatProgram(directory.read(manifest.chatPath));
        prompts = new PromptBuilder(template, tokenizer, manifest.prompt);
        imageSpec = manifest.processor == null ? null : new ImageSpec(manifest.processor);
        model = engine.open(plan, options.threads, options.fastCores);
        KeyValueStore opened = null;
        try {
            if (model.vocabSize() != manifest.vocabSize || model.hiddenSize() != manifest.hiddenSize) {
                throw Manifest.damaged("the compiled plan is of another model");
            }
            opened = new KeyValueStore(model, context, options.cacheDirectory);
            loop = new TokenLoop(opened, model, tokenizer, manifest.eosTokenIds, options.memory);
        } catch (EdgeVlmException | RuntimeException error) {
            if (opened != null) {
                opened.close();
            }
            model.close();
            throw error;
        }
        cache = opened;
        encoder = imageSpec == null ? null : new PictureEncoder(
            engine, model, imageSpec, manifest.prompt.tokensPerTile, options.pictureCacheBytes);
        thread = Executors.newSingleThreadExecutor(runnable -> {
            Thread worker = new Thread(runnable, "edgevlm-language");
            worker.setDaemon(true);
            return worker;
        });
        loadMs = (System.nanoTime() - start) / 1e6;
    }

    private static int contextTokens(Options options, Manifest manifest) throws EdgeVlmException {
        if (options.contextTokens == 0) {
            return Math.min(manifest.defaultContext, MAX_DEFAULT_CONTEXT);
        }
        if (options.contextTokens < 2 || options.contextTokens > manifest.maxPositions) {
            throw new EdgeVlmException(EdgeVlmException.Kind.USAGE, "the context is " + options.contextTokens
                + " tokens, expected 2 to " + manifest.maxPositions);
        }
        return options.contextTokens;
    }

    /**
     * Opens the package in a directory. Refuses, with a sentence that says why, what is missing, damaged, not compiled for
     * this machine, or larger than what the device has left.
     */
    public static EdgeVlm open(File packageDirectory, Options options) throws EdgeVlmException {
        return open(packageDirectory, options, JniEngine.load());
    }

    static EdgeVlm open(File packageDirectory, Options options, NativeEngine engine) throws EdgeVlmException {
        long start = System.nanoTime();
        return new EdgeVlm(PackageDirectory.open(packageDirectory), options, engine, start);
    }

    /** Returns a new conversation; `system` may be null. Conversations of one package share its cache and take turns. */
    public Conversation newConversation(String system) {
        return new Conversation(this, system);
    }

    /** The package's defaults. */
    public GenerationOptions generationOptions() throws EdgeVlmException {
        return GenerationOptions.of(manifest.generation);
    }

    /** What was computed before loading. */
    public MemoryBudget memoryBudget() {
        return budget;
    }

    public String packageName() {
        return manifest.name;
    }

    /** Whether pictures can be given. */
    public boolean takesPictures() {
        return manifest.processor != null;
    }

    /** Name of the kernels that this CPU runs, such as "dotprod". */
    public String kernelVariant() {
        return model.variant();
    }

    public int threads() {
        return model.threads();
    }

    /** Ends the running answer, and pictures that are being encoded. While no answer runs, the next one is whole. */
    public void cancel() {
        synchronized (lock) {
            if (closed) {
                return;
            }
            if (running != null) {
                running.set();
            }
        }
        if (encoder != null) {
            encoder.cancel();
        }
    }

    /** Gives memory back. Returns at once; the cache is put down as soon as no answer runs. */
    public void trim(TrimLevel level) {
        if (encoder != null) {
            encoder.drop();
            if (level != TrimLevel.PICTURES && encoder.holdsWeights()) {
                encoder.cancel();
            }
        }
        if (level == TrimLevel.KEY_VALUES) {
            synchronized (lock) {
                if (!closed) {
                    thread.execute(cache::putDown);
                }
            }
        }
    }

    /** Whether the key-value cache is in memory, and not in its file or dropped. */
    boolean holdsKeyValues() {
        return cache.isInMemory();
    }

    boolean keyValuesOnDisk() {
        return cache.isOnDisk();
    }

    long keyValueBytes() {
        return cache.bytes();
    }

    /** Ends what runs, waits for it, and frees everything. Later calls are refused. */
    public void close() {
        synchronized (lock) {
            if (closed) {
                return;
            }
            closed = true;
            if (running != null) {
                running.set();
            }
            thread.shutdown();
        }
        boolean interrupted = false;
        while (true) {
            if (encoder != null) {
                encoder.cancel();
            }
            try {
                if (thread.awaitTermination(CLOSE_POLL_MS, TimeUnit.MILLISECONDS)) {
                    break;
                }
            } catch (InterruptedException error) {
                interrupted = true;
            }
        }
        if (encoder != null) {
            encoder.close();
        }
        loop.close();
        cache.close();
        model.close();
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private static EdgeVlmException isClosed() {
        return new EdgeVlmException(EdgeVlmException.Kind.USAGE, "the package is closed; open it again");
    }

    void requireOpen() throws EdgeVlmException {
        synchronized (lock) {
            if (closed) {
                throw isClosed();
            }
        }
    }

    /** Runs an answer on the library's thread. Refuses a second one while one runs. */
    <T> Future<T> submit(Cancellation cancelled, Callable<T> answer) throws EdgeVlmException {
        synchronized (lock) {
            if (closed) {
                throw isClosed();
            }
            if (running != null) {
                throw new EdgeVlmException(EdgeVlmException.Kind.USAGE,
                    "the model is answering; cancel that answer first, or wait for it");
            }
            running = cancelled;
            FutureTask<T> task = new FutureTask<>(answer);
            try {
                thread.execute(task);
            } catch (RejectedExecutionException error) {
                running = null;
                throw isClosed();
            }
            return task;
        }
    }

    /** Says that the running answer has ended; called before its listener is told. */
    void ended(Cancellation cancelled) {
        synchronized (lock) {
            if (running == cancelled) {
                running = null;
            }
        }
    }

    /** Returns the prompt of a conversation whose messages have these pictures, in order. */
    TokenLoop.Prompt prompt(List<Message> messages, List<Picture> pictures) throws EdgeVlmException {
        int[] ids = prompts.ids(messages);
        long[] keys = new long[ids.length];
        int[] rowPicture = new int[ids.length];
        int[] rowIndex = new int[ids.length];
        int picture = 0;
        int row = 0;
        int imageTokens = 0;
        for (int i = 0; i < ids.length; i++) {
            boolean isImage = manifest.prompt != null && !pictures.isEmpty() && ids[i] == manifest.prompt.imageTokenId;
            rowPicture[i] = isImage ? picture : -1;
            rowIndex[i] = isImage ? row : 0;
            keys[i] = isImage ? -(number(pictures.get(picture)) << ROW_BITS | row) - 1 : ids[i];
            if (isImage) {
                imageTokens++;
                row++;
                if (row == pictures.get(picture).plan.nTiles() * manifest.prompt.tokensPerTile) {
                    picture++;
                    row = 0;
                }
            }
        }
        return new TokenLoop.Prompt(ids, keys, pictures, rowPicture, rowIndex, imageTokens);
    }

    private synchronized long number(Picture picture) {
        Long number = pictureNumbers.get(picture.key());
        if (number == null) {
            number = (long) pictureNumbers.size();
            pictureNumbers.put(picture.key(), number);
        }
        return number;
    }

    /** Returns how many tokens are missing for this prompt and the least answer; 0 or less when it fits. */
    int missingTokens(TokenLoop.Prompt prompt, GenerationOptions generation) {
        int reserve = Math.min(generation.maxNewTokens, MIN_ANSWER_TOKENS);
        return prompt.ids.length + reserve - cache.capacity();
    }

    EdgeVlmException doesNotFit(TokenLoop.Prompt prompt, GenerationOptions generation) {
        int reserve = Math.min(generation.maxNewTokens, MIN_ANSWER_TOKENS);
        int text = prompt.ids.length - prompt.imageTokens;
        return new EdgeVlmException(EdgeVlmException.Kind.CONTEXT_FULL, "the prompt does not fit: " + text
            + " text tokens + " + prompt.imageTokens + " image tokens + " + reserve + " kept for the answer = "
            + (prompt.ids.length + reserve) + ", the context is " + cache.capacity()
            + "; shorten the text, use fewer pictures or begin a new conversation");
    }

    /** Runs one answer; called on the library's thread. */
    Answer answer(TokenLoop.Prompt prompt, GenerationOptions generation, Cancellation cancelled, TokenLoop.Sink sink)
            throws EdgeVlmException {
        double load = loadMs;
        loadMs = 0;
        TokenLoop.Stages stages = new TokenLoop.Stages() {
            @Override
            public ByteBuffer features(Picture picture) throws EdgeVlmException {
                ByteBuffer rows = encoder.features(picture, cancelled);
                giveBackWhatIsShort();
                return rows;
            }

            @Override
            public double takeEncodedMs() {
                return encoder == null ? 0 : encoder.takeEncodedMs();
            }

            @Override
            public void prefilled() {
                giveBackWhatIsShort();
            }
        };
        Answer answer = loop.run(prompt, stages, generation, cancelled, sink, load);
        if (giveBackWhatIsShort()) {
            cache.putDown();
        }
        return answer;
    }

    /**
     * Looks at the memory between two stages and gives back pictures' features, then the vision weights, as long as it is
     * short. Returns whether it still is; then only the key-value cache is left, which a running answer needs.
     */
    private boolean giveBackWhatIsShort() {
        for (TrimLevel level : new TrimLevel[] {TrimLevel.PICTURES, TrimLevel.VISION}) {
            if (!options.memory.isShort()) {
                return false;
            }
            trim(level);
        }
        return options.memory.isShort();
    }

    /** For the tests: a list of everything that is held outside the Java heap. */
    List<String> held() {
        List<String> parts = new ArrayList<>();
        if (cache.isInMemory()) {
            parts.add("key-values");
        }
        if (encoder != null && encoder.holdsWeights()) {
            parts.add("vision");
        }
        if (encoder != null && encoder.nKept() > 0) {
            parts.add("pictures");
        }
        return parts;
    }
}
