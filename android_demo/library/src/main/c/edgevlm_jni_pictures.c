/* JNI for org.edgevlm.JniEngine: tile plans, pixels, the vision encoder, and the sampler. */
#include <jni.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "edgevlm.h"
#include "edgevlm_jni.h"

enum { SPEC_INTEGERS = 9, SPEC_REALS = 8 };

/* The package's processor from the arrays of org.edgevlm.ImageSpec; 0 when they are not of its form. */
static int read_spec(JNIEnv *env, jintArray integers, jdoubleArray reals, ev_image_spec *spec)
{
    jint numbers[SPEC_INTEGERS + 2 * EV_MAX_PINPOINTS];
    jdouble values[SPEC_REALS];
    jsize n = (*env)->GetArrayLength(env, integers);
    if (n < SPEC_INTEGERS || n > SPEC_INTEGERS + 2 * EV_MAX_PINPOINTS || (n - SPEC_INTEGERS) % 2 != 0
        || (*env)->GetArrayLength(env, reals) != SPEC_REALS)
        return 0;
    (*env)->GetIntArrayRegion(env, integers, 0, n, numbers);
    (*env)->GetDoubleArrayRegion(env, reals, 0, SPEC_REALS, values);
    if (numbers[8] != (n - SPEC_INTEGERS) / 2)
        return 0;
    memset(spec, 0, sizeof *spec);
    spec->scheme = numbers[0];
    spec->tile_px = numbers[1];
    spec->resample = numbers[2];
    spec->thumbnail = numbers[3];
    spec->max_rows = numbers[4];
    spec->max_cols = numbers[5];
    spec->max_tiles = numbers[6];
    spec->longest_edge_px = numbers[7];
    spec->n_pinpoints = numbers[8];
    for (int i = 0; i < spec->n_pinpoints; i++)
        for (int side = 0; side < 2; side++)
            spec->grid_pinpoints[i][side] = numbers[SPEC_INTEGERS + 2 * i + side];
    spec->relaxed_alpha = values[0];
    spec->rescale_factor = values[1];
    for (int channel = 0; channel < 3; channel++) {
        spec->image_mean[channel] = values[2 + channel];
        spec->image_std[channel] = values[5 + channel];
    }
    return 1;
}

/* out: grid_rows, grid_cols, thumbnail (EV_THUMBNAIL_*) */
EV_JNI(jint, planTiles)(JNIEnv *env, jclass self, jintArray integers, jdoubleArray reals, jint height, jint width,
                        jint max_tiles, jintArray out)
{
    (void)self;
    ev_image_spec spec;
    ev_tile_plan plan;
    memset(&plan, 0, sizeof plan);
    if (!read_spec(env, integers, reals, &spec))
        return EV_ERROR_USAGE;
    ev_status status = ev_plan_tiles(height, width, &spec, max_tiles, &plan);
    jint values[3] = {plan.grid_rows, plan.grid_cols, plan.thumbnail};
    (*env)->SetIntArrayRegion(env, out, 0, 3, values);
    return (jint)status;
}

/* Normalised float32 tiles [begin, end) of a picture of `pixel_bytes` a pixel, rows without padding. */
EV_JNI(jint, prepareTiles)(JNIEnv *env, jclass self, jintArray integers, jdoubleArray reals, jobject pixels, jint height,
                           jint width, jint pixel_bytes, jint orientation, jint max_tiles, jint begin, jint end,
                           jobject out)
{
    (void)self;
    ev_image_spec spec;
    if (!read_spec(env, integers, reals, &spec) || height < 1 || width < 1 || pixel_bytes < 3 || pixel_bytes > 4)
        return EV_ERROR_USAGE;
    int32_t upright_height = 0, upright_width = 0;
    ev_upright_size(height, width, orientation, &upright_height, &upright_width);
    ev_tile_plan plan;
    int64_t scratch_bytes = 0;
    ev_status status = ev_plan_tiles(upright_height, upright_width, &spec, max_tiles, &plan);
    if (!status)
        status = ev_image_scratch_bytes(&spec, &plan, &scratch_bytes);
    if (status)
        return (jint)status;
    int64_t row_bytes = (int64_t)width * pixel_bytes, size_bytes = row_bytes * height;
    int64_t tile_floats = 3 * (int64_t)spec.tile_px * spec.tile_px;
    int64_t out_bytes = (int64_t)(end - begin) * tile_floats * (int64_t)sizeof(float);
    ev_picture picture = {ev_jni_buffer(env, pixels, size_bytes), size_bytes, row_bytes, height, width, pixel_bytes,
                          orientation};
    float *tiles = begin < 0 || end <= begin ? NULL : ev_jni_buffer(env, out, out_bytes);
    if (picture.pixels == NULL || tiles == NULL)
        return EV_ERROR_USAGE;
    void *scratch = malloc((size_t)scratch_bytes + 1);
    if (scratch == NULL)
        return EV_ERROR_BACKEND;
    status = ev_prepare_tiles(&picture, &spec, &plan, begin, end, NULL, 0, tiles, out_bytes, scratch, scratch_bytes);
    free(scratch);
    return (jint)status;
}

static ev_sampler *sampler_of(jlong handle)
{
    return (ev_sampler *)(intptr_t)handle;
}

EV_JNI(jint, samplerNew)(JNIEnv *env, jclass self, jint vocabulary, jlongArray out)
{
    (void)self;
    ev_sampler *sampler = NULL;
    ev_status status = ev_sampler_new(vocabulary, &sampler);
    jlong value = (jlong)(intptr_t)sampler;
    (*env)->SetLongArrayRegion(env, out, 0, 1, &value);
    return (jint)status;
}

EV_JNI(jint, samplerBegin)(JNIEnv *env, jclass self, jlong handle, jdouble temperature, jint top_k, jdouble top_p,
                           jdouble min_p, jdouble repetition_penalty, jlong seed)
{
    (void)env;
    (void)self;
    ev_sampling_params params = {temperature, top_k, top_p, min_p, repetition_penalty, (uint64_t)seed};
    return (jint)ev_sampler_begin(sampler_of(handle), &params);
}

/* Returns the token, or the status below zero. `history` is a direct buffer of int32. */
EV_JNI(jint, samplerNext)(JNIEnv *env, jclass self, jlong handle, jobject logits, jint vocabulary, jobject history,
                          jint n_history)
{
    (void)self;
    const float *values = ev_jni_buffer(env, logits, (int64_t)vocabulary * (int64_t)sizeof(float));
    const int32_t *ids = n_history < 0 ? NULL : ev_jni_buffer(env, history, (int64_t)n_history * (int64_t)sizeof(int32_t));
    int32_t token = -1;
    if (values == NULL || ids == NULL)
        return -(jint)EV_ERROR_USAGE;
    ev_status status = ev_sampler_next(sampler_of(handle), values, ids, n_history, &token);
    return status ? -(jint)status : token;
}

EV_JNI(void, samplerFree)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    ev_sampler_free(sampler_of(handle));
}

static ev_tower *tower_of(jlong handle)
{
    return (ev_tower *)(intptr_t)handle;
}

/* out: the handle, tokens_per_tile, max_batch, tile_px, hidden_size, bytes of weights and arena */
EV_JNI(jint, towerNew)(JNIEnv *env, jclass self, jlong model, jlongArray out)
{
    (void)self;
    ev_tower *tower = NULL;
    ev_tower_info info;
    memset(&info, 0, sizeof info);
    ev_status status = ev_tower_new((ev_model *)(intptr_t)model, &tower);
    if (!status)
        ev_tower_info_get(tower, &info);
    jlong values[6] = {(jlong)(intptr_t)tower, info.tokens_per_tile, info.max_batch, info.tile_px, info.hidden_size,
                       info.weights_bytes + info.arena_bytes};
    (*env)->SetLongArrayRegion(env, out, 0, 6, values);
    return (jint)status;
}

EV_JNI(jint, encode)(JNIEnv *env, jclass self, jlong handle, jobject pixels, jint n_tiles, jobject features,
                     jobject cancel)
{
    (void)self;
    ev_tower_info info;
    ev_tower_info_get(tower_of(handle), &info);
    int64_t n = n_tiles < 1 ? 0 : n_tiles;
    int64_t in_bytes = n * info.n_channels * info.tile_px * info.tile_px * (int64_t)sizeof(float);
    int64_t out_bytes = n * info.tokens_per_tile * info.hidden_size * (int64_t)sizeof(float);
    const float *tiles = ev_jni_buffer(env, pixels, in_bytes);
    float *rows = ev_jni_buffer(env, features, out_bytes);
    if (n == 0 || tiles == NULL || rows == NULL)
        return EV_ERROR_USAGE;
    return (jint)ev_encode(tower_of(handle), tiles, n_tiles, rows, ev_jni_cancel(env, cancel));
}

EV_JNI(void, towerFree)(JNIEnv *env, jclass self, jlong handle)
{
    (void)env;
    (void)self;
    ev_tower_free(tower_of(handle));
}
