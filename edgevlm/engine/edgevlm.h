/* edgevlm's C ABI: a model (weights, kernels, threads) and contexts (one conversation's cache) on a compiled package.
 *
 * Versioned: EV_ABI_VERSION changes when a signature or a struct changes. Every function that can fail returns an
 * ev_status and leaves one sentence in ev_last_error() of the calling thread. ev_prefill, ev_step, ev_score,
 * ev_score_tree, ev_encode and ev_sampler_next allocate nothing, except a thread's first error. A context is used by one
 * thread at a time; contexts of one model may be used by several threads at once, which take turns on the model's
 * threads. Results depend neither on the number of threads nor on how a prompt was split into calls. */
#ifndef EDGEVLM_H
#define EDGEVLM_H

#include <stddef.h>
#include <stdint.h>

#define EV_ABI_VERSION 5

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
typedef struct ev_tower ev_tower;

/* Ends a call before its work is done: the caller sets it to anything but 0, from any thread or a signal handler, and
 * the call returns EV_CANCELLED at its next operation. Each call is given its own, or NULL; the caller owns it, and keeps
 * it until the call has returned. So a cancel ends the calls that were given it, and no other. After a cancelled call the
 * context holds the whole chunks that were done, and can be used again. */
typedef _Atomic int32_t ev_cancel_flag;

typedef struct {
    int32_t n_threads;        /* 0: as many as this process may use, at most 8. More than the machine has CPUs are refused */
    const char *variant;      /* NULL: the best that this CPU has; else a name such as "avx2" */
    int32_t fast_cores;       /* 1: worker threads stay on the fast cores, and n_threads 0 means as many, at most 4 */
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
                            const int32_t *positions, float *logits, const ev_cancel_flag *cancel);
EV_API ev_status ev_step(ev_context *context, int32_t token, int32_t position, float *logits,
                         const ev_cancel_flag *cancel);
/* As ev_prefill for at most 16 tokens, with the logits of every token: (n, vocab_size). */
EV_API ev_status ev_score(ev_context *context, const int32_t *ids, int32_t n, const int32_t *positions, float *logits,
                          const ev_cancel_flag *cancel);
/* Scores a drafted tree without committing it: parents[i] < i is the node before node i, -1 the last committed token. */
EV_API ev_status ev_score_tree(ev_context *context, const int32_t *ids, const int32_t *parents, int32_t n,
                               const int32_t *positions, float *logits, const ev_cancel_flag *cancel);
/* Commits a path from the root of the tree that the call before has scored. */
EV_API ev_status ev_accept(ev_context *context, const int32_t *nodes, int32_t n);
EV_API ev_status ev_truncate(ev_context *context, int32_t n_tokens);
EV_API int32_t ev_n_past(const ev_context *context);
/* Bytes that ev_snapshot writes for the present number of tokens. */
EV_API int64_t ev_snapshot_bytes(const ev_context *context);
EV_API ev_status ev_snapshot(const ev_context *context, void *bytes, int64_t size);
EV_API ev_status ev_restore(ev_context *context, const void *bytes, int64_t size);

/* What a kernel took since profiling began: operations count a multiplication and an addition as two. */
typedef struct {
    char kernel[48];
    int64_t calls;
    double seconds, operations, bytes;
} ev_profile_entry;
/* on: begins anew; 0: stops. Costs two readings of the clock per operation. */
EV_API void ev_profile_start(ev_context *context, int32_t on);
/* Fills at most `capacity` entries, one per kernel; returns how many kernels there are. */
EV_API int32_t ev_profile_get(const ev_context *context, ev_profile_entry *entries, int32_t capacity);

EV_API void ev_tower_profile_start(ev_tower *tower, int32_t on);
EV_API int32_t ev_tower_profile_get(const ev_tower *tower, ev_profile_entry *entries, int32_t capacity);

typedef struct {
    double giga_operations_per_s; /* integer dot products on registers alone, all threads */
    double giga_bytes_per_s;      /* reading memory that no cache holds, all threads */
} ev_limits;
/* Measures this machine for about a second. */
EV_API ev_status ev_model_limits(ev_model *model, ev_limits *limits);

/* ---- Pictures: how one is cut, and its pixels as the tower reads them ----
 *
 * The same plans and the same pixels, to the bit, as edgevlm/tiling.py and edgevlm/image.py, and so as Pillow and
 * transformers. None of these calls allocates, and none needs a model; calls with their own buffers may run at the
 * same time. Sizes are (height, width) in pixels. */

enum { EV_SCHEME_SQUARE = 0, EV_SCHEME_RELAXED = 1, EV_SCHEME_TILE_GRID = 2, EV_SCHEME_INTERNVL = 3, EV_SCHEME_LLAVA_NEXT = 4 };
enum { EV_NEAREST = 0, EV_LANCZOS = 1, EV_BILINEAR = 2, EV_BICUBIC = 3 }; /* PIL's numbers */
enum { EV_THUMBNAIL_NONE = 0, EV_THUMBNAIL_FIRST = 1, EV_THUMBNAIL_LAST = 2 };
enum { EV_MAX_PINPOINTS = 64, EV_MAX_PICTURE_SIDE = 65535 };

/* The package's processor, field by field as in edgevlm.json; the caller fills it. */
typedef struct {
    int32_t scheme, tile_px, resample, thumbnail;
    int32_t max_rows, max_cols, max_tiles;
    int32_t longest_edge_px;                      /* 0: none */
    int32_t n_pinpoints;
    int32_t grid_pinpoints[EV_MAX_PINPOINTS][2];
    double relaxed_alpha;                         /* at most six decimals, since it is read as the decimal that it is */
    double rescale_factor, image_mean[3], image_std[3];
} ev_image_spec;

/* What happens to one picture; filled by ev_plan_tiles. */
typedef struct {
    int32_t scheme, tile_px;
    int32_t height, width;                        /* of the upright picture */
    int32_t grid_rows, grid_cols;
    int32_t n_resizes, resizes[2][2];             /* one after the other; the last one is placed on the canvas */
    int32_t offset[2];                            /* top, left of the resized picture on the canvas */
    int32_t thumbnail;                            /* EV_THUMBNAIL_NONE: there is none */
    int32_t n_tiles;                              /* with the thumbnail */
} ev_tile_plan;

/* Plans an upright picture. max_tiles lowers the number of grid tiles, 0 leaves it to the spec. EV_ERROR_USAGE for a
 * size below 1 or a spec with a value out of range. */
EV_API ev_status ev_plan_tiles(int32_t height, int32_t width, const ev_image_spec *spec, int32_t max_tiles,
                               ev_tile_plan *plan);

/* Pixels as a decoder gives them: rows of `row_bytes`, pixels of 3 bytes (R G B) or 4 (R G B and one that is ignored). */
typedef struct {
    const uint8_t *pixels;
    int64_t size_bytes, row_bytes;
    int32_t height, width;                        /* as stored, at most EV_MAX_PICTURE_SIDE */
    int32_t pixel_bytes;
    int32_t orientation;                          /* EXIF 1 to 8; any other number counts as 1 */
} ev_picture;

/* Size of the picture once it stands upright: what ev_plan_tiles takes. */
EV_API void ev_upright_size(int32_t height, int32_t width, int32_t orientation, int32_t *upright_height,
                            int32_t *upright_width);
/* Bytes of scratch that ev_prepare_tiles needs for any range of tiles of this plan. */
EV_API ev_status ev_image_scratch_bytes(const ev_image_spec *spec, const ev_tile_plan *plan, int64_t *size_bytes);
/* Writes tiles tile_begin to tile_end - 1 in the prompt's order: `tiles` uint8 (n, S, S, 3) or `pixels` normalised
 * float32 (n, 3, S, S), either NULL, of exactly the size given. Only the rows that these tiles show are resized, so
 * that batches cost no more than the whole. EV_ERROR_USAGE when a size does not fit or the plan is another picture's. */
EV_API ev_status ev_prepare_tiles(const ev_picture *picture, const ev_image_spec *spec, const ev_tile_plan *plan,
                                  int32_t tile_begin, int32_t tile_end, uint8_t *tiles, int64_t tiles_bytes,
                                  float *pixels, int64_t pixels_bytes, void *scratch, int64_t scratch_bytes);

/* ---- The next token: the same one as edgevlm/sampling.py for the same logits, history and seed ---- */

typedef struct ev_sampler ev_sampler;

/* Filters in this order: repetition_penalty, temperature, top_k, top_p, min_p. Greedy with temperature 0. */
typedef struct {
    double temperature;                           /* 0, or at least 0.001 */
    int32_t top_k;                                /* 0: off */
    double top_p, min_p;                          /* 1 and 0: off */
    double repetition_penalty;                    /* 1: off */
    uint64_t seed;
} ev_sampling_params;

/* The one call that allocates: 12 bytes per entry of the vocabulary. */
EV_API ev_status ev_sampler_new(int32_t vocab_size, ev_sampler **sampler);
/* Takes new parameters and begins the stream of random numbers of their seed. Greedy before the first call. */
EV_API ev_status ev_sampler_begin(ev_sampler *sampler, const ev_sampling_params *params);
/* `logits` (vocab_size); `history` holds every id so far, the prompt's included and pictures' placeholders left out; an id
 * without a logit, below 0 or past the vocabulary, counts as a placeholder. EV_ERROR_BACKEND when the largest logit is
 * not finite or one is not a number. */
EV_API ev_status ev_sampler_next(ev_sampler *sampler, const float *logits, const int32_t *history, int32_t n_history,
                                 int32_t *token);
EV_API void ev_sampler_free(ev_sampler *sampler);
/* The vision encoder. A tower has threads of its own, which sleep between calls, so that a tower and a context of one
 * model run at the same time from two threads: sharing one pool would make each token wait for a layer of the tower. */
typedef struct {
    int32_t tile_px, n_channels, tokens_per_tile, hidden_size, max_batch;
    int64_t weights_bytes, arena_bytes;
} ev_tower_info;

/* Maps vision.bin and allocates the arena. EV_ERROR_USAGE when the plan has no vision encoder. */
EV_API ev_status ev_tower_new(ev_model *model, ev_tower **tower);
EV_API void ev_tower_info_get(const ev_tower *tower, ev_tower_info *info);
/* pixels (n_tiles, n_channels, tile_px, tile_px) to features (n_tiles, tokens_per_tile, hidden_size), in batches of
 * max_batch and then one by one. */
EV_API ev_status ev_encode(ev_tower *tower, const float *pixels, int32_t n_tiles, float *features,
                           const ev_cancel_flag *cancel);
/* Unmaps the weights and frees the arena. */
EV_API void ev_tower_free(ev_tower *tower);

#endif
