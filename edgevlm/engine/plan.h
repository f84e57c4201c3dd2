/* plan.bin as tvm_schedules/plan.py writes it: header, graphs, operations, the per-layer KV table. Little-endian. */
#ifndef EV_PLAN_H
#define EV_PLAN_H

#include <stdint.h>

#define EV_PLAN_MAGIC 0x4e4c5045u /* "EPLN" */
#define EV_PLAN_VERSION 3u
/* Plans of this version have tables of all positions; they are still read. */
#define EV_PLAN_VERSION_TABLES 2u
#define EV_NONE UINT64_MAX
/* Rows of logits that one call may ask for: drafted tokens are scored up to this many at a time. */
#define EV_MAX_LOGIT_ROWS 16

typedef struct {
    uint32_t magic, version;
    uint32_t arch;             /* 1: x86-64 layout, 2: arm64 layout */
    uint32_t n_graphs, n_ops, n_layers;
    int32_t hidden_size, vocab_size, max_positions, chunk_tokens;
    uint64_t weights_bytes;
    uint8_t weights_sha256[32];
    uint64_t vision_bytes;     /* size of vision.bin, 0 when there is no vision encoder */
    uint8_t vision_sha256[32];
} ev_plan_header;

typedef struct {
    uint32_t kind;             /* 0: decoder, 1: vision encoder */
    uint32_t first_op, n_ops;
    int32_t max_rows;          /* rows that the arena is planned for; tiles, in a vision encoder */
    uint64_t arena_floats;
    uint64_t input, output;    /* offsets of the graph's input and output in the arena, in floats; pixels lie outside */
} ev_plan_graph;

enum { EV_OP_EMBED = 1, EV_OP_QUANTISE = 2, EV_OP_GEMM = 3, EV_OP_APPEND = 4, EV_OP_ATTEND = 5 };

/* Of a vision encoder, beside QUANTISE. `rows` is the number of rows a tile that the operation leaves. */
enum {
    EV_OP_PATCHES = 6,    /* pixels to n features; k = 3 group^2, group: patch px, window: tile px, layer: row of the first
                           * patch (1 behind a CLS row), cos: positions, sin: the CLS row */
    EV_OP_NORM = 7,       /* LayerNorm of k features, window: rows a tile of the input, layer: the first that is meant */
    EV_OP_LINEAR = 8,     /* codes to n features; with a GELU flag to codes again: window of them in groups of head_dim */
    EV_OP_ATTEND_ALL = 9, /* queries, keys and values in rows of n floats, to heads * head_dim features */
    EV_OP_MERGE = 10      /* k features of a window x window grid, zero-padded to head_dim, to blocks of group x group */
};

enum {
    EV_FLAG_ZERO_POINT = 1,
    EV_FLAG_ACCUMULATE = 2,
    EV_FLAG_SWIGLU = 4,
    EV_FLAG_LAST_ROWS = 8,     /* only the rows whose logits are asked for */
    EV_FLAG_NORM_RMS = 16,
    EV_FLAG_NORM_LAYER = 32,
    EV_FLAG_GELU = 64,         /* erf */
    EV_FLAG_GELU_TANH = 128
};

typedef struct {
    uint32_t code, flags;
    int32_t n, k;              /* GEMM and EMBED: output columns padded to 64, input columns */
    int32_t bits, group;
    int32_t layer, head_dim, heads, kv_heads, window;
    float value;               /* epsilon of a norm, scale of the queries */
    uint64_t in, out;          /* arena offsets in floats */
    uint64_t weight, scales, zeros, bias; /* offsets into weights.bin; norms keep gamma in weight, beta in bias */
    /* APPEND: tables of cosines and sines, max_positions rows of head_dim / 2 floats; or, with sin none, in cos the
     * head_dim / 2 frequencies that the engine computes the rows of a call from. */
    uint64_t cos, sin, centre;
    int32_t rows;              /* vision encoder: rows a tile */
    int32_t reserved;
} ev_op;

#endif
