/* edgevlm's C ABI: a model (weights, kernels, threads) and contexts (one conversation's cache) on a compiled package.
 *
 * Versioned: EV_ABI_VERSION changes when a signature or a struct changes. Every function that can fail returns an
 * ev_status and leaves one sentence in ev_last_error() of the calling thread. No call allocates after ev_context_new
 * has returned. A context is used by one thread at a time, except ev_cancel. Results do not depend on the number of
 * threads. */
#ifndef EDGEVLM_H
#define EDGEVLM_H

#include <stddef.h>
#include <stdint.h>

#define EV_ABI_VERSION 1

#if defined(__GNUC__)
#define EV_API __attribute__((visibility("default")))
#else
#define EV_API
#endif

typedef enum {
    EV_OK = 0,
    EV_ERROR_USAGE = 2,     /* a wrong argument */
    EV_ERROR_PACKAGE = 3,   /* plan.bin or weights.bin is missing, damaged or of another version */
    EV_ERROR_CONTEXT = 7,   /* the tokens do not fit into the context */
    EV_ERROR_BACKEND = 8,   /* no kernel variant for this CPU, no memory, no threads */
    EV_CANCELLED = 130
} ev_status;

typedef struct ev_model ev_model;
typedef struct ev_context ev_context;

typedef struct {
    int32_t n_threads;        /* 0: one per physical core */
    const char *variant;      /* NULL: the best that this CPU has; else a name such as "avx2" */
} ev_model_options;

typedef struct {
    int32_t hidden_size, vocab_size, n_layers, max_positions, chunk_tokens;
    int64_t weights_bytes;
    int32_t n_threads;
    const char *variant;
} ev_model_info;

/* One piece of a prompt: `ids` of n tokens, or `features` (n, hidden_size) when ids is NULL. */
typedef struct {
    const int32_t *ids;
    const float *features;
    int32_t n;
} ev_segment;

EV_API int32_t ev_abi_version(void);
EV_API const char *ev_last_error(void);

/* Names of the variants in this library that this CPU can run, best first; returns how many there are. */
EV_API int32_t ev_variants(const char **names, int32_t capacity);

/* `directory` holds plan.bin and weights.bin. */
EV_API ev_status ev_model_open(const char *directory, const ev_model_options *options, ev_model **model);
EV_API void ev_model_info_get(const ev_model *model, ev_model_info *info);
EV_API void ev_model_close(ev_model *model);

/* kv_bits: per layer two bytes, bits of keys and of values (4 or 8 each, or 16 for float of both); NULL takes the
 * plan's table. */
EV_API ev_status ev_context_new(ev_model *model, int32_t capacity, const uint8_t *kv_bits, ev_context **context);
EV_API int64_t ev_context_bytes(const ev_context *context);
EV_API void ev_context_free(ev_context *context);

/* Appends the segments in chunks; positions has one entry per token; logits (vocab_size) of the last token. */
EV_API ev_status ev_prefill(ev_context *context, const ev_segment *segments, int32_t n_segments,
                            const int32_t *positions, float *logits);
EV_API ev_status ev_step(ev_context *context, int32_t token, int32_t position, float *logits);
/* As ev_prefill for at most 16 tokens, with the logits of every token: (n, vocab_size). */
EV_API ev_status ev_score(ev_context *context, const int32_t *ids, int32_t n, const int32_t *positions, float *logits);
/* Scores a drafted tree without committing it: parents[i] < i is the node before node i, -1 the last committed token. */
EV_API ev_status ev_score_tree(ev_context *context, const int32_t *ids, const int32_t *parents, int32_t n,
                               const int32_t *positions, float *logits);
/* Commits a path from the root of the tree that the call before has scored. */
EV_API ev_status ev_accept(ev_context *context, const int32_t *nodes, int32_t n);
EV_API ev_status ev_truncate(ev_context *context, int32_t n_tokens);
EV_API int32_t ev_n_past(const ev_context *context);
/* Bytes that ev_snapshot writes for the present number of tokens. */
EV_API int64_t ev_snapshot_bytes(const ev_context *context);
EV_API ev_status ev_snapshot(const ev_context *context, void *bytes, int64_t size);
EV_API ev_status ev_restore(ev_context *context, const void *bytes, int64_t size);
/* Makes the running call return EV_CANCELLED at the next chunk. Safe from any thread. */
EV_API void ev_cancel(ev_context *context);

#endif
