/* A vision encoder's part of plan.bin: every size and offset is checked here, so that running needs no checks. */
#include "tower.h"

enum { MAX_SIDE = 1 << 20, MAX_TOKENS = 1 << 14, MAX_TILES = 16, COLUMN_MULTIPLE = 64 };

/* What the next linear will find: codes of `rows` rows a tile, k columns in groups of `group`. */
typedef struct {
    int32_t rows, k, group;
} ev_code_state;

static ev_status bad_op(uint32_t index, const char *what) {
    return ev_fail(EV_ERROR_PACKAGE, "plan.bin: operation %u: %s; compile the package again", index, what);
}

static int in_range(int32_t value, int32_t lowest, int32_t highest) { return value >= lowest && value <= highest; }

static int is_group(int32_t group) { return group == 32 || group == 64 || group == 128; }

/* Rows of all tiles, with the last register tile whole. */
static uint64_t padded_rows(const ev_plan_graph *graph, int32_t rows) {
    return ((uint64_t)graph->max_rows * (uint64_t)rows + EV_MAX_ROW_TILE - 1) / EV_MAX_ROW_TILE * EV_MAX_ROW_TILE;
}

static int in_arena(const ev_plan_graph *graph, uint64_t offset, int32_t rows, int32_t width) {
    const uint64_t size = padded_rows(graph, rows) * (uint64_t)width;
    return offset % 16 == 0 && offset <= graph->arena_floats && size <= graph->arena_floats - offset;
}

static int in_file(const ev_model *model, uint64_t offset, uint64_t size) {
    const uint64_t total = model->header->vision_bytes;
    return offset % 64 == 0 && offset <= total && size <= total - offset;
}

static ev_status check_patches(const ev_model *model, const ev_plan_graph *graph, const ev_op *op, uint32_t index) {
    if (!in_range(op->group, 1, 1024) || op->k != 3 * op->group * op->group || !in_range(op->window, op->group, MAX_SIDE) ||
        !in_range(op->n, COLUMN_MULTIPLE, MAX_SIDE) || op->n % COLUMN_MULTIPLE)
        return bad_op(index, "patches are wrong");
    const int64_t grid = op->window / op->group, patches = grid * grid;
    if (!in_range(op->layer, 0, 1) || patches > MAX_TOKENS || op->rows != patches + op->layer) return bad_op(index, "rows are wrong");
    if (!in_arena(graph, op->out, op->rows, op->n)) return bad_op(index, "output outside the arena");
    const uint64_t row = (uint64_t)op->n * 4;
    if (!in_file(model, op->weight, row * (uint64_t)op->k) || !in_file(model, op->cos, row * (uint64_t)patches) ||
        (op->layer && !in_file(model, op->sin, row)))
        return bad_op(index, "weights outside vision.bin");
    return EV_OK;
}

static ev_status check_quantise(const ev_model *model, const ev_plan_graph *graph, const ev_op *op, uint32_t index, ev_code_state *state) {
    if (!is_group(op->group) || !in_range(op->k, op->group, MAX_SIDE) || op->k % op->group) return bad_op(index, "k or group is wrong");
    if (op->flags & ~(uint32_t)EV_FLAG_NORM_LAYER) return bad_op(index, "flags are wrong");
    if (!in_arena(graph, op->in, op->rows, op->k)) return bad_op(index, "input outside the arena");
    const uint64_t row = (uint64_t)op->k * 4;
    if (op->flags && (!in_file(model, op->weight, row) || !in_file(model, op->bias, row))) return bad_op(index, "norm outside vision.bin");
    *state = (ev_code_state){op->rows, op->k, op->group};
    return EV_OK;
}

static ev_status check_norm(const ev_model *model, const ev_plan_graph *graph, const ev_op *op, uint32_t index) {
    if (!in_range(op->k, COLUMN_MULTIPLE, MAX_SIDE) || op->k % COLUMN_MULTIPLE) return bad_op(index, "k is wrong");
    if (!in_range(op->window, 1, MAX_TOKENS) || !in_range(op->layer, 0, op->window - 1) || op->rows != op->window - op->layer)
        return bad_op(index, "rows are wrong");
    if (!in_arena(graph, op->in, op->window, op->k) || !in_arena(graph, op->out, op->rows, op->k))
        return bad_op(index, "input or output outside the arena");
    const uint64_t row = (uint64_t)op->k * 4;
    if (!in_file(model, op->weight, row) || !in_file(model, op->bias, row)) return bad_op(index, "norm outside vision.bin");
    return EV_OK;
}

static ev_status check_linear(const ev_model *model, const ev_plan_graph *graph, const ev_op *op, uint32_t index, ev_code_state *state) {
    const uint32_t gelu = op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH);
    if (!is_group(op->group) || !in_range(op->k, op->group, MAX_SIDE) || op->k % op->group || op->bits != 8 ||
        !in_range(op->n, COLUMN_MULTIPLE, MAX_SIDE) || op->n % COLUMN_MULTIPLE)
        return bad_op(index, "n, k, bits or group is wrong");
    if (op->rows != state->rows || op->k != state->k || op->group != state->group) return bad_op(index, "the codes before it are others");
    if (op->flags & ~(uint32_t)(EV_FLAG_ACCUMULATE | EV_FLAG_GELU | EV_FLAG_GELU_TANH) || (gelu && gelu != op->flags) ||
        gelu == (EV_FLAG_GELU | EV_FLAG_GELU_TANH))
        return bad_op(index, "flags are wrong");
    const uint64_t n = (uint64_t)op->n, k = (uint64_t)op->k;
    if (!in_file(model, op->weight, n * k) || !in_file(model, op->scales, n * (k / (uint64_t)op->group) * 2) || !in_file(model, op->bias, n * 4))
        return bad_op(index, "weights outside vision.bin");
    *state = (ev_code_state){0, 0, 0};
    if (!gelu) return in_arena(graph, op->out, op->rows, op->n) ? EV_OK : bad_op(index, "output outside the arena");
    if (!is_group(op->head_dim) || !in_range(op->window, op->head_dim, op->n) || op->window % op->head_dim ||
        op->window % COLUMN_MULTIPLE)
        return bad_op(index, "the codes of the GELU are wrong");
    *state = (ev_code_state){op->rows, op->window, op->head_dim};
    return EV_OK;
}

static ev_status check_attention(const ev_plan_graph *graph, const ev_op *op, uint32_t index) {
    if (!in_range(op->heads, 1, 1024) || (op->head_dim != 64 && op->head_dim != 72)) return bad_op(index, "heads are wrong");
    const int32_t width = op->heads * op->head_dim;
    if (width % COLUMN_MULTIPLE || !in_range(op->n, 3 * width, MAX_SIDE)) return bad_op(index, "the width of qkv is wrong");
    if (!in_arena(graph, op->in, op->rows, op->n) || !in_arena(graph, op->out, op->rows, width))
        return bad_op(index, "input or output outside the arena");
    return EV_OK;
}

static ev_status check_merge(const ev_plan_graph *graph, const ev_op *op, uint32_t index) {
    if (!in_range(op->k, 1, MAX_SIDE / 64) || !in_range(op->group, 1, 8) || !in_range(op->window, 1, 128) ||
        !in_range(op->head_dim, op->window, 128) || op->head_dim % op->group)
        return bad_op(index, "blocks are wrong");
    const int32_t side = op->head_dim / op->group;
    if (op->rows != side * side) return bad_op(index, "rows are wrong");
    if (!in_arena(graph, op->in, op->window * op->window, op->k) || !in_arena(graph, op->out, op->rows, op->k * op->group * op->group))
        return bad_op(index, "input or output outside the arena");
    return EV_OK;
}

static ev_status check_op(const ev_model *model, const ev_plan_graph *graph, uint32_t index, ev_code_state *state) {
    const ev_op *op = &model->ops[index];
    if (!in_range(op->rows, 1, MAX_TOKENS)) return bad_op(index, "rows are out of range");
    switch (op->code) {
    case EV_OP_PATCHES: return check_patches(model, graph, op, index);
    case EV_OP_QUANTISE: return check_quantise(model, graph, op, index, state);
    case EV_OP_NORM: return check_norm(model, graph, op, index);
    case EV_OP_LINEAR: return check_linear(model, graph, op, index, state);
    case EV_OP_ATTEND_ALL: return check_attention(graph, op, index);
    case EV_OP_MERGE: return check_merge(graph, op, index);
    default: return bad_op(index, "unknown code in a vision encoder");
    }
}

ev_status ev_check_tower(const ev_model *model, const ev_plan_graph *graph) {
    if (graph->n_ops < 2 || !in_range(graph->max_rows, 1, MAX_TILES) || model->ops[graph->first_op].code != EV_OP_PATCHES)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin: the vision encoder does not begin with patches");
    ev_code_state state = {0, 0, 0};
    for (uint32_t i = graph->first_op; i < graph->first_op + graph->n_ops; ++i) {
        const ev_status status = check_op(model, graph, i, &state);
        if (status) return status;
        if (i > graph->first_op && model->ops[i].code == EV_OP_PATCHES) return bad_op(i, "patches come first and once");
    }
    const ev_op *last = &model->ops[graph->first_op + graph->n_ops - 1];
    const int32_t width = last->code == EV_OP_NORM ? last->k : last->n;
    const int linear = last->code == EV_OP_LINEAR && !(last->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH));
    if ((!linear && last->code != EV_OP_NORM) || width < model->header->hidden_size || last->out != graph->output)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin: the vision encoder's output is out of range");
    return EV_OK;
}
