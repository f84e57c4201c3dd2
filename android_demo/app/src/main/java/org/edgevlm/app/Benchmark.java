package org.edgevlm.app;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.edgevlm.Answer;
import org.edgevlm.Conversation;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.GenerationOptions;
import org.edgevlm.TokenListener;
import org.edgevlm.TrimLevel;

/** The standard prompt, three times, greedy; numbers as text and as JSON. */
final class Benchmark {
    static final int RUNS = 3;
    static final int NEW_TOKENS = 64;
    static final String QUESTION =
        "Describe what you see, or, where there is no picture, explain in a few sentences how a bicycle stays upright.";

    /** Attaches the standard picture. */
    interface StandardPicture {
        void attach(Conversation conversation) throws EdgeVlmException;
    }

    /** Tells the device's thermal status, such as "none" or "moderate". */
    interface Thermometer {
        String status();
    }

    private final List<String> runs = new ArrayList<>();
    private final List<Answer> answers = new ArrayList<>();
    private String error = "";

    /** Runs everything on the calling thread. `cancelled` is looked at between runs. */
    void run(EdgeVlm model, StandardPicture picture, Thermometer thermometer, Runnable progress) {
        try {
            GenerationOptions options = model.generationOptions().withTemperature(0).withMaxNewTokens(NEW_TOKENS);
            for (int i = 0; i < RUNS; i++) {
                Conversation conversation = model.newConversation("Run " + (i + 1) + ".");
                String before = thermometer.status();
                // Each run encodes the picture itself.
                model.trim(TrimLevel.PICTURES);
                if (model.takesPictures()) {
                    picture.attach(conversation);
                }
                Answer answer = conversation.send(QUESTION, options, new Silent()).get();
                answers.add(answer);
                runs.add("{\"thermal_before\": \"" + before + "\", \"thermal_after\": \"" + thermometer.status()
                    + "\", \"stages\": " + answer.toJson() + "}");
                progress.run();
            }
        } catch (EdgeVlmException refused) {
            error = refused.getMessage();
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            error = "interrupted";
        } catch (java.util.concurrent.ExecutionException failed) {
            error = failed.getCause().getMessage();
        }
        progress.run();
    }

    private static final class Silent implements TokenListener {
        @Override
        public void onText(String text) {
            // only the numbers count
        }

        @Override
        public void onDone(Answer answer) {
            // the future has it
        }

        @Override
        public void onError(EdgeVlmException refused) {
            // the future has it
        }
    }

    List<Answer> answers() {
        return Collections.unmodifiableList(answers);
    }

    String error() {
        return error;
    }

    /** Writes JSON to a file that a computer reads: beside it first, then a rename. */
    static void write(File file, String json) throws IOException {
        File partial = new File(file.getPath() + ".partial");
        try (FileOutputStream out = new FileOutputStream(partial)) {
            out.write(json.getBytes("UTF-8"));
        }
        if (!partial.renameTo(file)) {
            throw new IOException(file + ": cannot be put in place");
        }
    }

    /** Returns the JSON of a benchmark that could not begin. */
    static String refusal(String reason) {
        return "{\"format\": 1, \"error\": " + quoted(reason) + ", \"runs\": []}";
    }

    /** `device` and `build` are words about the machine, without quotes or backslashes. */
    String toJson(EdgeVlm model, String device, String build) {
        StringBuilder out = new StringBuilder("{\"format\": 1, \"package\": ");
        out.append(quoted(model.packageName())).append(", \"device\": ").append(quoted(device));
        out.append(", \"build\": ").append(quoted(build)).append(", \"kernels\": ").append(quoted(model.kernelVariant()));
        out.append(", \"threads\": ").append(model.threads()).append(", \"runs\": [");
        String comma = "";
        for (String run : runs) {
            out.append(comma).append(run);
            comma = ", ";
        }
        out.append("]");
        if (!error.isEmpty()) {
            out.append(", \"error\": ").append(quoted(error));
        }
        return out.append("}").toString();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            out.append(c == '"' || c == '\\' || c < 0x20 ? '_' : c);
        }
        return out.append('"').toString();
    }
}
