package org.edgevlm;

import java.io.File;
import java.nio.file.Files;
import java.util.List;
import java.util.Map;

/** {@code OptionsChecks table}: the package's generation config and the caller's options, row by row as in Python. */
final class OptionsChecks {
    private final List<?> rows;

    private OptionsChecks(File table) throws Exception {
        rows = (List<?>) new Fields(Json.parse(Files.readAllBytes(table.toPath())), "table").get("rows");
    }

    public static void main(String[] args) throws Exception {
        Checks.run(new OptionsChecks(new File(args[0])));
    }

    private static GenerationOptions chosen(Map<?, ?> row) throws EdgeVlmException {
        GenerationOptions options = GenerationOptions.of(new Fields(row.get("package"), "package"));
        Map<?, ?> given = (Map<?, ?>) row.get("given");
        for (Map.Entry<?, ?> option : given.entrySet()) {
            double value = ((Number) option.getValue()).doubleValue();
            switch ((String) option.getKey()) {
                case "temperature":
                    options = options.withTemperature(value);
                    break;
                case "top_k":
                    options = options.withTopK((int) value);
                    break;
                case "top_p":
                    options = options.withTopP(value);
                    break;
                case "min_p":
                    options = options.withMinP(value);
                    break;
                case "repetition_penalty":
                    options = options.withRepetitionPenalty(value);
                    break;
                default:
                    throw new AssertionError("the table has an option " + option.getKey());
            }
        }
        return options;
    }

    private static double number(Map<?, ?> map, String key) {
        return ((Number) map.get(key)).doubleValue();
    }

    void checkEveryRow() throws Exception {
        for (Object item : rows) {
            Map<?, ?> row = (Map<?, ?>) item;
            if (row.get("refused") != null) {
                Checks.refused(EdgeVlmException.Kind.USAGE, () -> chosen(row), "expected");
                continue;
            }
            GenerationOptions options = chosen(row);
            Map<?, ?> expected = (Map<?, ?>) row.get("expected");
            Checks.equal(row + ": " + options.temperature, row + ": " + number(expected, "temperature"));
            Checks.equal(row + ": " + (double) options.topK, row + ": " + number(expected, "top_k"));
            Checks.equal(row + ": " + options.topP, row + ": " + number(expected, "top_p"));
            Checks.equal(row + ": " + options.minP, row + ": " + number(expected, "min_p"));
            Checks.equal(row + ": " + options.repetitionPenalty, row + ": " + number(expected, "repetition_penalty"));
        }
        Checks.that(rows.size() > 20, "the table is nearly empty");
    }
}
