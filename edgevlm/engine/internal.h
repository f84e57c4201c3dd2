/* What the engine's own files share. */
#ifndef EV_INTERNAL_H
#define EV_INTERNAL_H

#include <stdatomic.h>

#include "edgevlm.h"
#include "kernels.h"
#include "plan.h"
#include "threads.h"

/* The kernels of one operation, found by name when the model is opened. */
typedef struct {
    ev_any_fn prefill, batch, decode; /* GEMM */
    ev_any_fn single;                 /* QUANTISE, EMBED */
    ev_any_fn append8, append_float, attend8, attend_float, merge;
} ev_op_kernels;

typedef struct {
    void *data;
    int64_t size;
} ev_mapping;

struct ev_model {
    ev_mapping plan_file, weights_file;
    const ev_plan_header *header;
    const ev_plan_graph *graphs;
    const ev_op *ops;
    const uint8_t *kv_bits;
    const uint8_t *weights;
    const ev_variant *variant;
    ev_op_kernels *kernels; /* one per operation */
    ev_pool *pool;
};

/* Cache of one layer. */
typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales;
    int32_t key_bits, value_bits;
    int32_t kv_heads, head_dim;
} ev_layer_cache;

struct ev_context {
    ev_model *model;
    int32_t capacity, n_past;
    _Atomic int32_t cancelled;
    ev_layer_cache *layers;
    float *arena;
    int8_t *codes;   /* activation codes of the present operation, its scales and sums */
    float *scales;
    int32_t *sums;
    float *partials; /* attention results before the merge */
    int32_t *ids, *positions;
    void *block;     /* the one allocation that holds all of the above */
    int64_t block_bytes;
};

ev_status ev_fail(ev_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Runs the decoder's operations on `rows` new tokens whose embeddings are in the arena; logits of the last n_logits. */
void ev_run_decoder(ev_context *context, int32_t rows, int32_t n_logits);
/* Embeds `n` ids into arena rows from `row`. */
void ev_run_embed(ev_context *context, const int32_t *ids, int32_t row, int32_t n);

/* Keys of one unit of decode attention: LeanAttention's tile, 256 rows to 64 channels, 128 above. */
static inline int32_t ev_unit_keys(int32_t head_dim) { return head_dim <= 64 ? 256 : 128; }
/* Query rows of one unit of prefill attention. */
enum { EV_UNIT_ROWS = 48 };

#endif
