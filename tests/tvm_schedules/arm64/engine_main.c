/* Greedy generation through the C ABI, for tests: engine_main DIRECTORY VARIANT N_THREADS N_NEW LOGITS SEGMENT...
 *
 * VARIANT "-" leaves the choice to the library. A segment is ids:1,2,3, features:FILE (float32 rows) or tiles:FILE
 * (float32 pixels, which the vision encoder turns into features; they are written to FILE.features). say:N reads the
 * segments before it and says N tokens; keep:N then forgets all but the first N; N_NEW is said at the end. Prints the variant,
 * then one token id a line; writes the logits after each token to the file LOGITS unless it is "-". The exit code is
 * the ev_status. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgevlm.h"

enum { MAX_SEGMENTS = 64, MAX_IDS = 8192 };

static void check(ev_status status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ev_last_error());
    exit(status);
}

static void stop(const char *what) {
    fprintf(stderr, "engine_main: %s\n", what);
    exit(1);
}

static ev_segment ids_segment(const char *text) {
    int32_t *ids = malloc(MAX_IDS * sizeof *ids);
    int32_t n = 0;
    for (char *end; *text && n < MAX_IDS; text = *end ? end + 1 : end) ids[n++] = (int32_t)strtol(text, &end, 10);
    return (ev_segment){ids, NULL, n};
}

static float *read_floats(const char *path, long *count) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) stop("cannot open a file of floats");
    const long size = ftell(file);
    rewind(file);
    float *values = malloc((size_t)size);
    if (!values || fread(values, 1, (size_t)size, file) != (size_t)size) stop("cannot read a file of floats");
    fclose(file);
    *count = size / (long)sizeof(float);
    return values;
}

static ev_segment features_segment(const char *path, int32_t hidden_size) {
    long count;
    const float *values = read_floats(path, &count);
    return (ev_segment){NULL, values, (int32_t)(count / hidden_size)};
}

static ev_segment tiles_segment(ev_model *model, const char *path) {
    ev_tower *tower;
    check(ev_tower_new(model, &tower));
    ev_tower_info info;
    ev_tower_info_get(tower, &info);
    long count;
    const float *pixels = read_floats(path, &count);
    const int32_t n_tiles = (int32_t)(count / (3L * info.tile_px * info.tile_px));
    const size_t n_floats = (size_t)n_tiles * (size_t)info.tokens_per_tile * (size_t)info.hidden_size;
    float *features = malloc(n_floats * sizeof *features);
    check(ev_encode(tower, pixels, n_tiles, features, NULL));
    ev_tower_free(tower);
    char name[4096];
    snprintf(name, sizeof name, "%s.features", path);
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(features, sizeof *features, n_floats, file) != n_floats) stop("cannot write the features");
    fclose(file);
    return (ev_segment){NULL, features, n_tiles * info.tokens_per_tile};
}

static int32_t largest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; ++i)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Prints the likeliest token and takes it, `n` times in all; the last one printed is not taken. */
static void say(ev_context *context, int n, float *logits, int32_t vocab_size, FILE *log) {
    for (int i = 0; i < n; ++i) {
        const int32_t token = largest(logits, vocab_size);
        printf("%d\n", token);
        if (log) fwrite(logits, sizeof *logits, (size_t)vocab_size, log);
        if (i + 1 < n) check(ev_step(context, token, ev_n_past(context), logits, NULL));
    }
}

static void read_prompt(ev_context *context, const ev_segment *segments, int32_t n_segments, float *logits) {
    int32_t total = 0;
    for (int32_t i = 0; i < n_segments; ++i) total += segments[i].n;
    int32_t *positions = malloc((size_t)total * sizeof *positions);
    for (int32_t i = 0; i < total; ++i) positions[i] = ev_n_past(context) + i;
    check(ev_prefill(context, segments, n_segments, positions, logits, NULL));
    free(positions);
}

int main(int argc, char **argv) {
    if (argc < 7 || argc > 6 + MAX_SEGMENTS) stop("wrong arguments");
    const ev_model_options options = {.n_threads = atoi(argv[3]), .variant = strcmp(argv[2], "-") ? argv[2] : NULL};
    const int n_new = atoi(argv[4]);
    FILE *log = strcmp(argv[5], "-") ? fopen(argv[5], "wb") : NULL;
    ev_model *model;
    check(ev_model_open(argv[1], &options, &model));
    ev_model_info info;
    ev_model_info_get(model, &info);
    printf("%s\n", info.variant);
    ev_segment segments[MAX_SEGMENTS];
    int32_t n_segments = 0, total = n_new;
    for (int i = 6; i < argc; ++i) {
        ev_segment *segment = &segments[i - 6];
        *segment = (ev_segment){NULL, NULL, 0};
        if (!strncmp(argv[i], "ids:", 4)) *segment = ids_segment(argv[i] + 4);
        else if (!strncmp(argv[i], "features:", 9)) *segment = features_segment(argv[i] + 9, info.hidden_size);
        else if (!strncmp(argv[i], "tiles:", 6)) *segment = tiles_segment(model, argv[i] + 6);
        else if (!strncmp(argv[i], "say:", 4)) total += atoi(argv[i] + 4);
        else if (strncmp(argv[i], "keep:", 5)) stop("a segment is ids:..., features:..., tiles:..., say:N or keep:N");
        total += segment->n;
    }
    ev_context *context;
    check(ev_context_new(model, total, NULL, &context));
    float *logits = malloc((size_t)info.vocab_size * sizeof *logits);
    for (int i = 6, first = 6; i <= argc; ++i) {
        const int says = i == argc ? n_new : strncmp(argv[i], "say:", 4) ? 0 : atoi(argv[i] + 4);
        n_segments = i - first;
        if (says && n_segments) {
            read_prompt(context, segments + first - 6, n_segments, logits);
            say(context, says, logits, info.vocab_size, log);
        } else if (i < argc && !strncmp(argv[i], "keep:", 5)) {
            check(ev_truncate(context, atoi(argv[i] + 5)));
        } else {
            continue;
        }
        first = i + 1;
    }
    if (log) fclose(log);
    ev_context_free(context);
    ev_model_close(model);
    return 0;
}
