/* Plays a conversation through libedgevlm_jni.so, as org.edgevlm.JniEngine would: jni_host SCRIPT.
 *
 * The library is found as System.loadLibrary finds it, its functions by the names that Java looks up; they get the stub
 * JNIEnv. SCRIPT is words, one call a line:
 *
 *   open DIRECTORY N_THREADS CONTEXT
 *   spec N INTEGER... REAL...                     the package's processor: N integers, 8 reals (org.edgevlm.ImageSpec)
 *   picture FILE HEIGHT WIDTH PIXEL_BYTES ORIENTATION   plan, prepare and encode; its rows follow those before
 *   keep                                          put the cache down and read it back into a new context
 *   cancel                                        as another thread would: sets the token of every call from here on
 *   turn N_PAST N_NEW N_EOS EOS... N_RUNS RUN...  RUN is `ids N ID...` or `rows FIRST N` of all pictures' rows
 *
 * Prints what came of each line: "variant NAME", "load MS", "plan ROWS COLS THUMBNAIL", "pixels ADLER32" (of
 * all normalised pixels, float32), "encode MS", "prefill MS N", one
 * "token ID" each, "decode MS N". A refused call prints the library's sentence on stderr; the exit code is its ev_status. */
#include <dlfcn.h>
#include <jni.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stub_env.h"

#define DECLARE(type, name, ...) static type (*name)(JNIEnv *, jclass, ##__VA_ARGS__);
#define FUNCTIONS(F)                                                                                                   \
    F(jint, abiVersion)                                                                                                \
    F(jbyteArray, lastError)                                                                                           \
    F(jint, modelOpen, jbyteArray, jint, jbyteArray, jboolean, jlongArray)                                             \
    F(jbyteArray, modelInfo, jlong, jlongArray)                                                                        \
    F(void, modelClose, jlong)                                                                                         \
    F(jint, contextNew, jlong, jint, jlongArray)                                                                       \
    F(jlong, contextBytes, jlong)                                                                                      \
    F(void, contextFree, jlong)                                                                                        \
    F(jint, prefill, jlong, jintArray, jintArray, jobjectArray, jint, jobject, jint, jobject)                          \
    F(jint, step, jlong, jint, jobject, jint, jobject)                                                                 \
    F(jint, truncate, jlong, jint)                                                                                     \
    F(jint, nPast, jlong)                                                                                              \
    F(jlong, snapshotBytes, jlong)                                                                                     \
    F(jint, snapshot, jlong, jobject, jlong)                                                                           \
    F(jint, restore, jlong, jobject, jlong)                                                                            \
    F(jint, planTiles, jintArray, jdoubleArray, jint, jint, jint, jintArray)                                           \
    F(jint, prepareTiles, jintArray, jdoubleArray, jobject, jint, jint, jint, jint, jint, jint, jint, jobject)         \
    F(jint, samplerNew, jint, jlongArray)                                                                              \
    F(jint, samplerBegin, jlong, jdouble, jint, jdouble, jdouble, jdouble, jlong)                                      \
    F(jint, samplerNext, jlong, jobject, jint, jobject, jint)                                                          \
    F(void, samplerFree, jlong)                                                                                        \
    F(jint, towerNew, jlong, jlongArray)                                                                               \
    F(jint, encode, jlong, jobject, jint, jobject, jobject)                                                            \
    F(void, towerFree, jlong)
FUNCTIONS(DECLARE)

enum { WRONG_SCRIPT = 98, MAX_PICTURES = 8, N_REALS = 8 };

typedef struct {
    float *rows;
    int32_t n_rows;
} picture;

static JNIEnv *env;
static FILE *script;
static jlong model, context, sampler;
static jint capacity, hidden_size, vocabulary;
static jintArray integers;
static jdoubleArray reals;
static picture pictures[MAX_PICTURES];
static int n_pictures;
static jobject logits, history, token_of_calls;
static int32_t cancelled;

static void stop(const char *what)
{
    fprintf(stderr, "jni_host: %s\n", what);
    exit(WRONG_SCRIPT);
}

/* Ends the program with the library's own sentence when a call was refused. */
static void check(jint status)
{
    if (status == 0)
        return;
    jbyteArray message = lastError(env, NULL);
    fprintf(stderr, "%.*s\n", (int)stub_length(message), (char *)stub_elements(message));
    exit(status);
}

static void *allocated(size_t bytes)
{
    void *address = calloc(1, bytes + 1);
    if (address == NULL)
        stop("no memory");
    return address;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static jint number(void)
{
    int value;
    if (fscanf(script, "%d", &value) != 1)
        stop("an integer is missing");
    return value;
}

static const char *word(void)
{
    static char text[4096];
    if (fscanf(script, "%4095s", text) != 1)
        stop("a word is missing");
    return text;
}

static jlong handle_of(jlongArray out)
{
    return *(jlong *)stub_elements(out);
}

static void load_library(void)
{
    void *library = dlopen("libedgevlm_jni.so", RTLD_NOW);
    if (library == NULL)
        stop(dlerror());
#define FIND(type, name, ...)                                                                                          \
    if ((*(void **)&name = dlsym(library, "Java_org_edgevlm_JniEngine_" #name)) == NULL)                               \
        stop(dlerror());
    FUNCTIONS(FIND)
    if (abiVersion(env, NULL) < 1)
        stop("the engine and its JNI part are of different versions");
}

static void open_model(void)
{
    double start = milliseconds();
    const char *directory = word();
    jbyteArray path = stub_bytes(directory, (jsize)strlen(directory));
    jint n_threads = number();
    capacity = number();
    jlongArray out = stub_longs(1), info = stub_longs(7);
    check(modelOpen(env, NULL, path, n_threads, NULL, JNI_TRUE, out));
    model = handle_of(out);
    jbyteArray variant = modelInfo(env, NULL, model, info);
    hidden_size = (jint)((jlong *)stub_elements(info))[0];
    vocabulary = (jint)((jlong *)stub_elements(info))[1];
    check(contextNew(env, NULL, model, capacity, out));
    context = handle_of(out);
    check(samplerNew(env, NULL, vocabulary, out));
    sampler = handle_of(out);
    size_t logits_bytes = (size_t)vocabulary * sizeof(float), history_bytes = ((size_t)capacity + 1) * sizeof(int32_t);
    logits = stub_buffer(allocated(logits_bytes), logits_bytes);
    history = stub_buffer(allocated(history_bytes), history_bytes);
    token_of_calls = stub_buffer(&cancelled, sizeof cancelled);
    printf("variant %.*s\nload %.1f\n", (int)stub_length(variant), (char *)stub_elements(variant), milliseconds() - start);
}

static void read_spec(void)
{
    jint n = number();
    integers = stub_ints(NULL, n);
    for (jint i = 0; i < n; i++)
        ((jint *)stub_elements(integers))[i] = number();
    reals = stub_doubles(NULL, N_REALS);
    for (int i = 0; i < N_REALS; i++)
        if (fscanf(script, "%lf", (jdouble *)stub_elements(reals) + i) != 1)
            stop("a real is missing");
}

static jobject pixels_of(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        stop("cannot open a picture");
    size_t size = (size_t)ftell(file);
    rewind(file);
    void *bytes = allocated(size);
    if (fread(bytes, 1, size, file) != size)
        stop("cannot read a picture");
    fclose(file);
    return stub_buffer(bytes, size);
}

/* zlib's checksum of `size` more bytes, from 1 on. */
static uint32_t adler32(uint32_t sum, const void *bytes, size_t size)
{
    uint32_t low = sum & 0xffff, high = sum >> 16;
    for (size_t i = 0; i < size; i++) {
        low = (low + ((const uint8_t *)bytes)[i]) % 65521;
        high = (high + low) % 65521;
    }
    return high << 16 | low;
}

/* As org.edgevlm.PictureEncoder: batches of tiles, the tower mapped for this picture only. */
static void encode_picture(void)
{
    jobject pixels = pixels_of(word());
    jint height = number(), width = number(), pixel_bytes = number(), orientation = number();
    jint turned = orientation >= 5;
    jintArray plan = stub_ints(NULL, 3);
    check(planTiles(env, NULL, integers, reals, turned ? width : height, turned ? height : width, 0, plan));
    const jint *grid = stub_elements(plan);
    printf("plan %d %d %d\n", grid[0], grid[1], grid[2]);
    double start = milliseconds();
    jlongArray out = stub_longs(6);
    check(towerNew(env, NULL, model, out));
    const jlong *tower = stub_elements(out);
    jint n_tiles = grid[0] * grid[1] + (grid[2] != 0), max_batch = (jint)tower[2], side = (jint)tower[3];
    jint batch = n_tiles < max_batch ? n_tiles : max_batch;
    size_t tile_bytes = 3 * (size_t)side * (size_t)side * sizeof(float);
    size_t row_bytes = (size_t)hidden_size * sizeof(float), rows_per_tile = (size_t)tower[1];
    jobject tiles = stub_buffer(allocated((size_t)batch * tile_bytes), (size_t)batch * tile_bytes);
    picture *kept = &pictures[n_pictures++];
    if (n_pictures > MAX_PICTURES)
        stop("too many pictures");
    kept->n_rows = n_tiles * (int32_t)rows_per_tile;
    kept->rows = allocated((size_t)kept->n_rows * row_bytes);
    uint32_t sum = 1;
    for (jint begin = 0; begin < n_tiles; begin += batch) {
        jint n = batch < n_tiles - begin ? batch : n_tiles - begin;
        check(prepareTiles(env, NULL, integers, reals, pixels, height, width, pixel_bytes, orientation, 0, begin,
                           begin + n, tiles));
        sum = adler32(sum, stub_elements(tiles), (size_t)n * tile_bytes);
        char *rows = (char *)kept->rows + (size_t)begin * rows_per_tile * row_bytes;
        check(encode(env, NULL, tower[0], tiles, n, stub_buffer(rows, (size_t)n * rows_per_tile * row_bytes),
                     token_of_calls));
    }
    towerFree(env, NULL, tower[0]);
    printf("encode %.1f\npixels %u\n", milliseconds() - start, sum);
}

/* As org.edgevlm.KeyValueStore under memory pressure. */
static void keep(void)
{
    size_t size = (size_t)snapshotBytes(env, NULL, context);
    jobject bytes = stub_buffer(allocated(size), size);
    check(snapshot(env, NULL, context, bytes, (jlong)size));
    contextFree(env, NULL, context);
    jlongArray out = stub_longs(1);
    check(contextNew(env, NULL, model, capacity, out));
    context = handle_of(out);
    check(restore(env, NULL, context, bytes, (jlong)size));
}

/* The picture that holds row `row` of all; makes `row` the row within it. */
static int picture_of(jint *row)
{
    for (int i = 0; i < n_pictures; i++) {
        if (*row < pictures[i].n_rows)
            return i;
        *row -= pictures[i].n_rows;
    }
    stop("a row is of no picture");
    return -1;
}

/* Reads the runs into `ids`, from 0 on, and `table`; returns the number of tokens. */
static jint read_runs(jint n_runs, jint *ids, jint *table)
{
    jint at = 0;
    for (jint i = 0; i < n_runs; i++) {
        int is_ids = strcmp(word(), "ids") == 0;
        jint first = is_ids ? 0 : number(), n = number();
        if (n < 1 || n > capacity - at)
            stop("a run is too long");
        for (jint token = 0; token < n; token++)
            ids[at + token] = is_ids ? number() : 0;
        table[3 * i] = n;
        table[3 * i + 1] = is_ids ? -1 : picture_of(&first);
        table[3 * i + 2] = first;
        at += n;
    }
    return at;
}

/* As org.edgevlm.TokenLoop, greedy. */
static void answer(void)
{
    jint n_past = number(), n_new = number(), n_eos = number(), eos[16];
    if (n_eos < 0 || n_eos > 16)
        stop("too many ends");
    for (jint i = 0; i < n_eos; i++)
        eos[i] = number();
    jint n_runs = number();
    jint *ids = allocated((size_t)capacity * sizeof *ids), *table = allocated((size_t)n_runs * 3 * sizeof *table);
    jint n_tokens = read_runs(n_runs, ids, table);
    jobject rows[MAX_PICTURES];
    for (int i = 0; i < n_pictures; i++)
        rows[i] = stub_buffer(pictures[i].rows, (size_t)pictures[i].n_rows * (size_t)hidden_size * sizeof(float));
    double start = milliseconds();
    check(truncate(env, NULL, context, n_past));
    check(prefill(env, NULL, context, stub_ints(ids, n_tokens), stub_ints(table, 3 * n_runs),
                  stub_objects(rows, n_pictures), hidden_size, logits, vocabulary, token_of_calls));
    printf("prefill %.1f %d\n", milliseconds() - start, n_tokens);
    if (nPast(env, NULL, context) != n_past + n_tokens)
        stop("the context holds another number of tokens");
    check(samplerBegin(env, NULL, sampler, 0.0, 0, 1.0, 0.0, 1.0, 0));
    int32_t *said = stub_elements(history);
    memcpy(said + n_past, ids, (size_t)n_tokens * sizeof *said);
    jint n = n_past + n_tokens, steps = 0;
    start = milliseconds();
    for (jint made = 0; made < n_new;) {
        jint token = samplerNext(env, NULL, sampler, logits, vocabulary, history, n);
        if (token < 0)
            check(-token);
        for (jint i = 0; i < n_eos; i++)
            if (token == eos[i])
                n_new = made;
        if (made == n_new)
            break;
        printf("token %d\n", token);
        said[n++] = token;
        if (++made == n_new || nPast(env, NULL, context) == capacity)
            break;
        check(step(env, NULL, context, token, logits, vocabulary, token_of_calls));
        steps++;
    }
    printf("decode %.1f %d\n", milliseconds() - start, steps);
    free(ids);
    free(table);
}

int main(int argc, char **argv)
{
    script = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (script == NULL)
        stop("one argument, the script");
    env = stub_env();
    load_library();
    char name[16];
    while (fscanf(script, "%15s", name) == 1) {
        if (strcmp(name, "open") == 0)
            open_model();
        else if (strcmp(name, "spec") == 0)
            read_spec();
        else if (strcmp(name, "picture") == 0)
            encode_picture();
        else if (strcmp(name, "keep") == 0)
            keep();
        else if (strcmp(name, "cancel") == 0)
            cancelled = 1;
        else if (strcmp(name, "turn") == 0)
            answer();
        else
            stop("a line begins with an unknown word");
        fflush(stdout);
    }
    /* modelInfo and lastError return one array each; everything else must give back what it takes. */
    if (stub_take_local_references() > 1)
        stop("local references were not given back");
    samplerFree(env, NULL, sampler);
    contextFree(env, NULL, context);
    modelClose(env, NULL, model);
    return 0;
}
