/* The kernels' C signatures and the table that the build generates from tvm_schedules. */
#ifndef EV_KERNELS_H
#define EV_KERNELS_H

#include <stdint.h>

typedef int32_t (*ev_gemm_fn)(const uint8_t *w, const uint16_t *scales, const uint8_t *zeros, const int8_t *x,
                              const float *x_scales, const int32_t *x_sums, const float *bias, float *y, int32_t n,
                              int32_t k, int32_t row_tiles, int32_t has_bias, int32_t accumulate, int32_t block_begin,
                              int32_t block_end);
typedef int32_t (*ev_quantise_fn)(const float *x, const float *gamma, const float *beta, int8_t *codes, float *scales,
                                  int32_t *sums, int32_t k, int32_t tile_rows, float eps, int32_t row_begin,
                                  int32_t row_end);
typedef int32_t (*ev_embed_fn)(const uint8_t *w, const uint16_t *scales, const uint8_t *zeros, const int32_t *ids,
                               float *y, int32_t k, int32_t row_begin, int32_t row_end);
typedef int32_t (*ev_append_fn)(float *qkv, const float *cos, const float *sin, const float *centre,
                                const int32_t *positions, void *keys, float *key_scales, void *values,
                                float *value_scales, int32_t heads, int32_t kv_heads, int32_t capacity, int32_t n_past,
                                float scale, int32_t qkv_stride, int32_t row_begin, int32_t row_end);
typedef int32_t (*ev_attend_fn)(const float *q, const void *keys, const float *key_scales, const void *values,
                                const float *value_scales, const int32_t *tree, float *partial, int32_t heads,
                                int32_t kv_heads, int32_t q_stride, int32_t capacity, int32_t n_past, int32_t tree_rows,
                                int32_t window, int32_t kv_head, int32_t row_begin, int32_t row_end, int32_t key_begin,
                                int32_t key_end);
typedef int32_t (*ev_merge_fn)(const float *partials, float *out, int32_t n_parts, int32_t n_rows, int32_t heads,
                               int32_t kv_heads, int32_t out_stride, int32_t kv_head, int32_t row_begin,
                               int32_t row_end);

typedef int32_t (*ev_limit_fn)(const uint8_t *input, int32_t *out, int32_t count);

typedef void (*ev_any_fn)(void);

typedef struct {
    const char *name; /* such as "gemm_w4g32_prefill" */
    ev_any_fn function;
} ev_kernel;

typedef struct {
    const char *name;            /* such as "avx512vnni" */
    const char *const *features; /* CPU features it needs, NULL-terminated */
    int32_t dot_lanes;           /* sums of one dot-product instruction */
    int32_t prefill_rows, prefill_blocks, batch_rows, batch_blocks, decode_blocks;
    int32_t row_copies; /* how often the scale and the sum of a row are stored */
    int32_t empty_sum;  /* the sum of a row that is not there */
    const ev_kernel *kernels;
    int32_t n_kernels;
} ev_variant;

/* Best variant first. */
extern const ev_variant ev_variant_table[];
extern const int32_t ev_variant_count;

#endif
