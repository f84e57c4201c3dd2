/* What the files of the vision encoder share. */
#ifndef EV_TOWER_H
#define EV_TOWER_H

#include "internal.h"

typedef int32_t (*ev_patches_fn)(const float *x, const float *w, const float *positions, float *y, int32_t n, int32_t k,
                                 int32_t row_tiles, int32_t n_rows);
typedef int32_t (*ev_norm_fn)(const float *x, const float *gamma, const float *beta, float *y, int32_t k, float eps,
                              int32_t row_begin, int32_t row_end);
typedef int32_t (*ev_linear_fn)(const uint8_t *w, const uint16_t *scales, const int8_t *x, const float *x_scales,
                                const int32_t *x_sums, const float *bias, float *y, int32_t n, int32_t k,
                                int32_t y_stride, int32_t accumulate, int32_t tile_begin, int32_t tile_end,
                                int32_t block_begin, int32_t block_end);
typedef int32_t (*ev_statistics_fn)(const float *qkv, float *key_means, float *value_means, float *value_scales,
                                    int32_t stride, int32_t width, int32_t tokens, int32_t begin, int32_t end);
typedef int32_t (*ev_pack_fn)(const float *qkv, const float *key_means, const float *value_means,
                              const float *value_scales, int8_t *queries, float *query_scales, int32_t *query_sums,
                              uint8_t *keys, float *key_scales, float *key_bias, int32_t *values, int32_t stride,
                              int32_t heads, int32_t tokens, int32_t padded, float scale, int32_t token_begin,
                              int32_t token_end);
typedef int32_t (*ev_attend_all_fn)(const int8_t *queries, const float *query_scales, const int32_t *query_sums,
                                    const uint8_t *keys, const float *key_scales, const float *key_bias,
                                    const int8_t *values, const float *value_scales, const float *value_means,
                                    float *out, int32_t padded, int32_t tokens, int32_t out_stride, int32_t tile_begin,
                                    int32_t tile_end);

enum {
    EV_LINEAR_ROWS = 4,     /* rows of a linear's register tile, whichever variant runs */
    EV_STRIP_COLUMNS = 128, /* columns of a GELU that are quantised at once: a multiple of every group */
    EV_PATCH_TILES = 4,     /* row tiles of patches that share a pass over the filters */
    EV_MAX_ROW_TILE = 16,   /* rows of the tallest register tile: buffers end on a multiple */
    EV_TOKEN_MULTIPLE = 32  /* attention pads tokens to this */
};

/* Activation codes with their scales and sums, as quantise_rows leaves them. */
typedef struct {
    int8_t *codes;
    float *scales;
    int32_t *sums;
} ev_codes;

/* One tile's queries, keys and values of all heads, as the attention kernels leave them. */
typedef struct {
    int8_t *queries, *values;
    uint8_t *keys;
    float *query_scales, *key_scales, *key_bias, *key_means, *value_means, *value_scales;
    int32_t *query_sums;
} ev_attention;

struct ev_tower {
    ev_model *model;
    const ev_plan_graph *graph;
    ev_mapping weights_file;
    ev_pool *pool;
    float *arena;
    ev_codes codes[2]; /* a GELU writes the one that it does not read */
    int32_t present;   /* the one that the next linear reads */
    ev_attention attention;
    float *scratch;    /* per thread: a strip of a GELU, or the pixels of some patches */
    int64_t scratch_floats;
    ev_op_time *op_times; /* one per operation of the graph */
    int32_t profiled;
    void *block;       /* the one allocation that holds all of the above */
    int64_t block_bytes;
};

/* Adds one run of an operation, counted from the graph's first, to the profile. */
void ev_tower_profile_add(ev_tower *tower, uint32_t index, int32_t n_tiles, double seconds);

static inline const float *ev_tower_floats(const ev_tower *tower, uint64_t offset) {
    return (const float *)((const char *)tower->weights_file.data + offset);
}

static inline int32_t ev_round_up(int32_t value, int32_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* Channels of a head's packed values: whole blocks of 16. */
static inline int32_t ev_value_channels(int32_t head_dim) { return ev_round_up(head_dim, 16); }

/* Checks every number of a vision encoder's graph once, so that running it needs no checks. */
ev_status ev_check_tower(const ev_model *model, const ev_plan_graph *graph);
/* Finds the kernels of an operation of a vision encoder. */
ev_status ev_find_tower_kernels(const ev_model *model, const ev_op *op, ev_op_kernels *kernels);
/* The vision encoder's graph, NULL when there is none. */
const ev_plan_graph *ev_tower_graph(const ev_model *model);

/* Runs the operations on `n_tiles` tiles of pixels. EV_CANCELLED as soon as `cancel` is set. */
ev_status ev_run_tower(ev_tower *tower, const float *pixels, int32_t n_tiles, const ev_cancel_flag *cancel);

#endif
