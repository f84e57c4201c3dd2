/* JNI for org.edgevlm.JniEngine: the C ABI of edgevlm.h, one function each.
 *
 * Texts cross as byte arrays of UTF-8, never as Java strings: JNI's "modified UTF-8" is not UTF-8. Numbers in bulk
 * (logits, features, snapshots) are direct buffers, so that nothing is copied. A result is an ev_status; the sentence that
 * belongs to it is read by lastError() on the same thread. Handles are pointers that only Java's wrappers hold. */
#include <jni.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "edgevlm.h"
#include "edgevlm_jni.h"

/* A copy of `bytes` with a zero behind it; NULL for null or when there is no memory. The caller frees it. */
static char *copied(JNIEnv *env, jbyteArray bytes)
{
    if (bytes == NULL)
        return NULL;
    jsize size = (*env)->GetArrayLength(env, bytes);
    char *text = malloc((size_t)size + 1);
    if (text == NULL)
        return NULL;
    (*env)->GetByteArrayRegion(env, bytes, 0, size, (jbyte *)text);
    text[size] = 0;
    return text;
}

static jbyteArray bytes_of(JNIEnv *env, const char *text)
{
    jsize size = (jsize)strlen(text);
    jbyteArray result = (*env)->NewByteArray(env, size);
    if (result != NULL)
        (*env)->SetByteArrayRegion(env, result, 0, size, (const jbyte *)text);
    return result;
}

static void set_handle(JNIEnv *env, jlongArray out, void *handle)
{
    jlong value = (jlong)(intptr_t)handle;
    (*env)->SetLongArrayRegion(env, out, 0, 1, &value);
}

void *ev_jni_buffer(JNIEnv *env, jobject buffer, int64_t size_bytes)
{
    if (buffer == NULL || (*env)->GetDirectBufferCapacity(env, buffer) < size_bytes)
        return NULL;
    return (*env)->GetDirectBufferAddress(env, buffer);
}

const ev_cancel_flag *ev_jni_cancel(JNIEnv *env, jobject flag)
{
    return ev_jni_buffer(env, flag, (int64_t)sizeof(ev_cancel_flag));
}

static ev_model *model_of(jlong handle)
{
    return (ev_model *)(intptr_t)handle;
}

static ev_context *context_of(jlong handle)
{
    return (ev_context *)(intptr_t)handle;
}

EV_JNI(jint, abiVersion)(JNIEnv *env, jclass self)
{
    (void)env;
    (void)self;
    return ev_abi_version() == EV_ABI_VERSION ? EV_ABI_VERSION : -1;
}

EV_JNI(jbyteArray, lastError)(JNIEnv *env, jclass self)
{
    (void)self;
    return bytes_of(env, ev_last_error());
}

EV_JNI(jint, modelOpen)(JNIEnv *env, jclass self, jbyteArray directory, jint n_threads, jbyteArray variant,
                         jboolean fast_cores, jlongArray out)
{
    (void)self;
    char *path = copied(env, directory), *name = copied(env, variant);
    ev_model_options options = {.n_threads = n_threads, .variant = name, .fast_cores = fast_cores ? 1 : 0};
    ev_model *model = NULL;
    ev_status status = path == NULL ? EV_ERROR_BACKEND : ev_model_open(path, &options, &model);
    free(path);
    free(name);
    set_handle(env, out, model);
    return (jint)status;
}

/* out: hidden_size, vocab_size, n_layers, max_positions, chunk_tokens, weights_bytes, n_threads */
EV_JNI(jbyteArray, modelInfo)(JNIEnv *env, jclass self, jlong handle, jlongArray out)
{
    (void)self;
    ev_model_info info;
    memset(&info, 0, sizeof info);
    ev_model_info_get(model_of(handle), &info);
    jlong values[7] = {info.hidden_size, info.vocab_size, info.n_layers, info.max_positions,
                       info.chunk_tokens, info.weights_bytes, info.n_threads};
    (*env)->SetLongArrayRegion(env, out, 0, 7, values);
    return bytes_of(env, info.variant == NULL ? "" : info.variant);
}

EV_JNI(void, modelClose)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    ev_model_close(model_of(handle));
}

EV_JNI(jint, contextNew)(JNIEnv *env, jclass self, jlong model, jint capacity, jlongArray out)
{
    (void)self;
    ev_context *context = NULL;
    ev_status status = ev_context_new(model_of(model), capacity, NULL, &context);
    set_handle(env, out, context);
    return (jint)status;
}

EV_JNI(jlong, contextBytes)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    return ev_context_bytes(context_of(handle));
}

EV_JNI(void, contextFree)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    ev_context_free(context_of(handle));
}

/* ids holds every token; runs of (n, -1, 0) are ids, (n, buffer, first row) are rows of features[buffer]. The positions
 * are those behind the tokens that the context has. */
EV_JNI(jint, prefill)(JNIEnv *env, jclass self, jlong handle, jintArray ids, jintArray runs, jobjectArray features,
                      jint width, jobject logits, jint vocabulary, jobject cancel)
{
    (void)self;
    ev_context *context = context_of(handle);
    jsize n_tokens = (*env)->GetArrayLength(env, ids), n_runs = (*env)->GetArrayLength(env, runs) / 3;
    int32_t *tokens = malloc(((size_t)n_tokens + 1) * 2 * sizeof(int32_t));
    int32_t *table = malloc(((size_t)n_runs + 1) * 3 * sizeof(int32_t));
    ev_segment *segments = malloc(((size_t)n_runs + 1) * sizeof(ev_segment));
    float *out = ev_jni_buffer(env, logits, (int64_t)vocabulary * (int64_t)sizeof(float));
    ev_status status = EV_ERROR_USAGE;
    if (tokens == NULL || table == NULL || segments == NULL) {
        status = EV_ERROR_BACKEND;
        goto done;
    }
    if (out == NULL)
        goto done;
    (*env)->GetIntArrayRegion(env, ids, 0, n_tokens, tokens);
    (*env)->GetIntArrayRegion(env, runs, 0, n_runs * 3, table);
    int32_t *positions = tokens + n_tokens;
    int32_t first = ev_n_past(context), at = 0;
    for (jsize i = 0; i < n_tokens; i++)
        positions[i] = first + (int32_t)i;
    for (jsize i = 0; i < n_runs; i++) {
        int32_t n = table[3 * i], buffer = table[3 * i + 1], row = table[3 * i + 2];
        if (n < 1 || n > n_tokens - at || row < 0)
            goto done;
        segments[i].n = n;
        segments[i].ids = buffer < 0 ? tokens + at : NULL;
        segments[i].features = NULL;
        if (buffer >= 0) {
            jobject rows = (*env)->GetObjectArrayElement(env, features, buffer);
            int64_t row_bytes = (int64_t)width * (int64_t)sizeof(float);
            char *start = ev_jni_buffer(env, rows, ((int64_t)row + n) * row_bytes);
            (*env)->DeleteLocalRef(env, rows);
            if (start == NULL)
                goto done;
            segments[i].features = (const float *)(const void *)(start + (int64_t)row * row_bytes);
        }
        at += n;
    }
    if (at == n_tokens)
        status = ev_prefill(context, segments, (int32_t)n_runs, positions, out, ev_jni_cancel(env, cancel));
done:
    free(segments);
    free(table);
    free(tokens);
    return (jint)status;
}

EV_JNI(jint, step)(JNIEnv *env, jclass self, jlong handle, jint token, jobject logits, jint vocabulary, jobject cancel)
{
    (void)self;
    float *out = ev_jni_buffer(env, logits, (int64_t)vocabulary * (int64_t)sizeof(float));
    ev_context *context = context_of(handle);
    if (out == NULL)
        return EV_ERROR_USAGE;
    return (jint)ev_step(context, token, ev_n_past(context), out, ev_jni_cancel(env, cancel));
}

EV_JNI(jint, truncate)(JNIEnv *env, jclass self, jlong handle, jint n_tokens)
{
    (void)env;
    (void)self;
    return (jint)ev_truncate(context_of(handle), n_tokens);
}

EV_JNI(jint, nPast)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    return ev_n_past(context_of(handle));
}

EV_JNI(jlong, snapshotBytes)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    return ev_snapshot_bytes(context_of(handle));
}

EV_JNI(jint, snapshot)(JNIEnv *env, jclass self, jlong handle, jobject buffer, jlong size)
{
    (void)self;
    void *bytes = ev_jni_buffer(env, buffer, size);
    return (jint)(bytes == NULL ? EV_ERROR_USAGE : ev_snapshot(context_of(handle), bytes, size));
}

EV_JNI(jint, restore)(JNIEnv *env, jclass self, jlong handle, jobject buffer, jlong size)
{
    (void)self;
    void *bytes = ev_jni_buffer(env, buffer, size);
    return (jint)(bytes == NULL ? EV_ERROR_USAGE : ev_restore(context_of(handle), bytes, size));
}
