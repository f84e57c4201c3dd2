package org.edgevlm.app;

import java.io.File;
import org.edgevlm.EdgeVlm;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.Options;

/** {@code BenchmarkRunner package}: prints the benchmark's JSON. */
final class BenchmarkRunner {
    private BenchmarkRunner() {
    }

    public static void main(String[] args) throws EdgeVlmException {
        EdgeVlm model = EdgeVlm.open(new File(args[0]), new Options());
        Benchmark benchmark = new Benchmark();
        benchmark.run(model, conversation -> conversation.addImage(new byte[40 * 30 * 3], 40, 30), () -> "none",
            () -> { });
        System.out.println(benchmark.toJson(model, "desktop", "test"));
        model.close();
    }
}
