/* What the engine's own files share. */
#ifndef EV_INTERNAL_H
#define EV_INTERNAL_H

#include <stdatomic.h>

#include "edgevlm.h"
#include "kernels.h"
#include "plan.h"
#include "threads.h"

/* Forms of a layer's cache: bits of keys and of values; 16 stands for float, of both. */
enum { EV_N_FORMS = 5 };
typedef struct {
    int32_t key_bits, value_bits;
    const char *name; /* as in the kernels' names */
} ev_cache_form;
extern const ev_cache_form ev_cache_forms[EV_N_FORMS];

/* The kernels of one operation, found by name when the model is opened. */
typedef struct {
    ev_any_fn prefill, batch, decode; /* GEMM */
    ev_any_fn single;                 /* QUANTISE, EMBED */
    ev_any_fn append[EV_N_FORMS], attend_prefill[EV_N_FORMS], attend_decode[EV_N_FORMS], merge;
} ev_op_kernels;

typedef struct {
    void *data;
    int64_t size;
} ev_mapping;

struct ev_model {
    char *directory; /* where vision.bin is looked for */
    ev_mapping plan_file, weights_file;
    const ev_plan_header *header;
    const ev_plan_graph *graphs;
    const ev_op *ops;
    const uint8_t *kv_bits;
    const uint8_t *weights;
    const ev_variant *variant;
    ev_op_kernels *kernels; /* one per operation */
    ev_pool *pool;
    uint64_t cpus; /* CPUs that the threads stay on; 0 leaves them free */
};

/* Cache of one layer. */
typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales;
    int32_t form; /* index into ev_cache_forms */
    int32_t kv_heads, head_dim;
} ev_layer_cache;

/* What one operation of the decoder took while the context was profiled; rows of the last call. */
typedef struct {
    int64_t calls;
    double seconds, operations, bytes;
    int32_t rows;
} ev_op_time;

struct ev_context {
    ev_model *model;
    int32_t capacity, n_past;
    ev_layer_cache *layers;
    float *arena;
    int8_t *codes;   /* activation codes of the present operation, its scales and sums */
    float *scales;
    int32_t *sums;
    float *partials; /* attention results before the merge */
    int32_t *ids, *positions;
    /* Of plans with frequencies: the rows of this call's positions, row i in the place of position i. */
    float *cosines, *sines;
    int32_t *row_numbers;
    ev_op_time *op_times; /* one per operation */
    int32_t profiled;
    int32_t *tree;      /* per drafted token the set of drafted tokens that it sees, as bits; itself among them */
    int32_t tree_rows;  /* drafted tokens that lie behind n_past, not committed */
    void *block;     /* the one allocation that holds all of the above */
    int64_t block_bytes;
};

/* Whether the caller has asked the running call to end. */
static inline int ev_is_cancelled(const ev_cancel_flag *cancel) {
    return cancel && atomic_load_explicit(cancel, memory_order_relaxed);
}

ev_status ev_fail(ev_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
ev_status ev_map_file(const char *directory, const char *name, ev_mapping *mapping);
void ev_unmap(ev_mapping *mapping);
ev_any_fn ev_find_kernel(const ev_model *model, const char *name);

/* Runs the decoder's operations on `rows` new tokens whose embeddings are in the arena; logits of the last n_logits.
 * tree_rows: 0, or `rows` when context->tree says what each of them sees. EV_CANCELLED as soon as `cancel` is set: then
 * only rows of the cache from n_past on may have been written. */
/* Fills the context's cosines and sines for the positions of `rows` new tokens; frequencies (half). */
void ev_turn_positions(ev_context *context, const float *frequencies, int32_t half, int32_t rows);
ev_status ev_run_decoder(ev_context *context, int32_t rows, int32_t n_logits, int32_t tree_rows, const ev_cancel_flag *cancel);
/* Adds one run of an operation to the profile. */
void ev_profile_add(ev_context *context, uint32_t index, int32_t rows, double seconds);
double ev_seconds(void);
/* The kernel of that name in the model's variant; NULL, with the error set, when there is none. */
ev_any_fn ev_find_kernel(const ev_model *model, const char *name);
/* Embeds `n` ids into arena rows from `row`. */
void ev_run_embed(ev_context *context, const int32_t *ids, int32_t row, int32_t n);

/* Keys of one unit of attention: LeanAttention's tile, 256 rows to 64 channels, 128 above. Each unit's partial result is
 * kept, and all are merged in one pass, whether few rows or many are computed at once: so a row's bits do not depend on
 * which rows came with it. */
static inline int32_t ev_unit_keys(int32_t head_dim) { return head_dim <= 64 ? 256 : 128; }
/* Parts a thread that work on many rows is cut into, so that a thread that is interrupted holds up little. */
enum { EV_PARTS = 4 };
/* Query rows that prefill attention computes together: 48, or fewer where the partial results of all units of a long
 * context would take more than 4 MiB. */
enum { EV_UNIT_ROWS = 48, EV_LEAST_UNIT_ROWS = 8, EV_PARTIAL_BYTES = 4 << 20 };

/* Units that the keys of a full context make. */
static inline int32_t ev_most_units(const ev_context *context, const ev_op *op) {
    return context->capacity / ev_unit_keys(op->head_dim) + 2;
}

static inline int32_t ev_attend_rows(const ev_context *context, const ev_op *op) {
    const int64_t parts = (int64_t)ev_pool_threads(context->model->pool) * EV_PARTS;
    const int64_t row_bytes = parts * ev_most_units(context, op) * (op->head_dim + 2) * (int64_t)sizeof(float);
    const int64_t fitting = EV_PARTIAL_BYTES / row_bytes / EV_LEAST_UNIT_ROWS * EV_LEAST_UNIT_ROWS;
    return fitting > EV_UNIT_ROWS ? EV_UNIT_ROWS : fitting < EV_LEAST_UNIT_ROWS ? EV_LEAST_UNIT_ROWS : (int32_t)fitting;
}

#endif
