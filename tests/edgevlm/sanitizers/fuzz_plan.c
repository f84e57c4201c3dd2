/* Damaged plan.bin files in a directory with a good one: opened, and run when they open, with kernels that do nothing.
 * argv: directory, trials, threads. Prints how many were refused and how many ran. While a plan runs, another thread
 * cancels now and then, so that the thread sanitizer sees that too. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "edgevlm.h"
#include "kernels.h"
#include "random.h"

enum { MAX_KERNELS = 1024 };

static void nothing(void) {}
static ev_kernel kernels[MAX_KERNELS];
static const char *const no_features[] = {NULL};
const ev_variant ev_variant_table[1] = {{.name = "nothing", .features = no_features, .prefill_rows = 12, .prefill_blocks = 1, .batch_rows = 4,
                                         .batch_blocks = 1, .decode_blocks = 1, .kernels = kernels, .n_kernels = MAX_KERNELS}};
const int32_t ev_variant_count = 1;

static _Atomic int stop;

static void *cancel_now_and_then(void *flag) {
    while (!atomic_load(&stop)) {
        atomic_store((ev_cancel_flag *)flag, 1);
        usleep(300);
    }
    return NULL;
}

/* Opens the good plan; each kernel that it misses is added to the table by the name in the error. */
static void learn_kernels(const char *directory) {
    const ev_model_options options = {.n_threads = 1};
    for (int i = 0; i < MAX_KERNELS; ++i) kernels[i] = (ev_kernel){"", nothing};
    for (int i = 0; i < MAX_KERNELS; ++i) {
        ev_model *model;
        char name[128];
        if (!ev_model_open(directory, &options, &model)) {
            ev_model_close(model);
            return;
        }
        if (sscanf(ev_last_error(), "this library has no kernel '%127[^']'", name) != 1) {
            fprintf(stderr, "%s\n", ev_last_error());
            exit(2);
        }
        kernels[i].name = strdup(name);
    }
    exit(3);
}

static void run_model(ev_model *model, int32_t trial) {
    ev_model_info info;
    ev_model_info_get(model, &info);
    ev_context *context;
    if (info.max_positions < 8 || (int64_t)info.vocab_size > 1 << 20 || (int64_t)info.hidden_size > 1 << 16) return;
    const int32_t capacity = info.max_positions < 400 ? info.max_positions : 400;
    if (ev_context_new(model, capacity, NULL, &context)) return;
    pthread_t canceller;
    const int cancels = trial % 4 == 0;
    ev_cancel_flag cancel = 0;
    atomic_store(&stop, 0);
    if (cancels) pthread_create(&canceller, NULL, cancel_now_and_then, &cancel);
    float *logits = malloc((size_t)info.vocab_size * sizeof *logits * 4);
    int32_t ids[300], positions[300];
    const int32_t n = capacity > 300 ? 300 : capacity - 5;
    for (int32_t i = 0; i < n; ++i) {
        ids[i] = below(info.vocab_size);
        positions[i] = i;
    }
    float *features = calloc((size_t)info.hidden_size * 3, sizeof *features);
    const ev_segment segments[] = {{ids, NULL, n - 3}, {NULL, features, 3}};
    ev_prefill(context, segments, 2, positions, logits, &cancel);
    atomic_store(&cancel, 0);
    ev_step(context, ids[0], 0, logits, &cancel);
    atomic_store(&cancel, 0);
    ev_score(context, ids, 4, positions, logits, &cancel);
    const int64_t bytes = ev_snapshot_bytes(context);
    void *snapshot = malloc((size_t)bytes);
    if (ev_snapshot(context, snapshot, bytes) || ev_restore(context, snapshot, bytes)) abort();
    for (int i = 0; i < 4; ++i) {
        int32_t header;
        memcpy(&header, snapshot, 4);
        const int32_t wrong = number(500);
        memcpy(snapshot, &wrong, 4);
        if (!ev_restore(context, snapshot, below(2) ? bytes : below((int32_t)bytes)) && wrong != header) abort();
        memcpy(snapshot, &header, 4);
    }
    ev_truncate(context, number(400));
    free(snapshot);
    free(features);
    free(logits);
    atomic_store(&stop, 1);
    if (cancels) pthread_join(canceller, NULL);
    ev_context_free(context);
}

static char *read_file(const char *path, long *size) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(4);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *bytes = malloc((size_t)*size);
    if (fread(bytes, 1, (size_t)*size, file) != (size_t)*size) exit(5);
    fclose(file);
    return bytes;
}

static void write_file(const char *path, const char *bytes, long size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, (size_t)size, file) != (size_t)size || fclose(file)) exit(6);
}

int main(int argc, char **argv) {
    if (argc < 4) return 1;
    char path[4096];
    snprintf(path, sizeof path, "%s/plan.bin", argv[1]);
    const ev_model_options options = {.n_threads = atoi(argv[3])};
    const int32_t trials = atoi(argv[2]);
    learn_kernels(argv[1]);
    long size;
    char *good = read_file(path, &size), *damaged = malloc((size_t)size);
    int refused = 0, ran = 0;
    for (int32_t trial = 0; trial < trials; ++trial) {
        memcpy(damaged, good, (size_t)size);
        long length = size;
        /* Every eighth is good, every eighth cut off; the others have up to three numbers changed. */
        if (trial % 8 == 1) length = below((int32_t)size);
        for (int32_t i = trial % 8 > 1 ? 1 + below(3) : 0; i > 0; --i) {
            const int32_t value = number(4096);
            memcpy(damaged + (size_t)below((int32_t)size / 4) * 4, &value, 4);
        }
        write_file(path, damaged, length);
        ev_model *model;
        if (ev_model_open(argv[1], &options, &model)) {
            ++refused;
            continue;
        }
        run_model(model, trial);
        ev_model_close(model);
        ++ran;
    }
    write_file(path, good, size);
    printf("%d %d\n", refused, ran);
    free(good);
    free(damaged);
    for (int i = 0; i < MAX_KERNELS && *kernels[i].name; ++i) free((void *)kernels[i].name);
    return 0;
}
