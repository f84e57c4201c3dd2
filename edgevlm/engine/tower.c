/* The vision encoder's life: weights mapped, arena allocated, tiles encoded in batches, all of it given back. */
#include "tower.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

const ev_plan_graph *ev_tower_graph(const ev_model *model) {
    for (uint32_t i = 0; i < model->header->n_graphs; ++i)
        if (model->graphs[i].kind == 1) return &model->graphs[i];
    return NULL;
}

ev_status ev_find_tower_kernels(const ev_model *model, const ev_op *op, ev_op_kernels *kernels) {
    const char *const epilogue = op->flags & EV_FLAG_GELU ? "gelu" : op->flags & EV_FLAG_GELU_TANH ? "gelu_tanh" : "add";
    char name[64];
    int found = 1;
#define FIND(field, ...) (snprintf(name, sizeof name, __VA_ARGS__), found = found && (kernels->field = ev_find_kernel(model, name)) != NULL)
    switch (op->code) {
    case EV_OP_PATCHES: FIND(single, "tower_patches"); break;
    case EV_OP_QUANTISE: FIND(single, "quantise_%s_g%d", op->flags & EV_FLAG_NORM_LAYER ? "layer" : "none", op->group); break;
    case EV_OP_NORM: FIND(single, "tower_norm"); break;
    case EV_OP_LINEAR:
        FIND(single, "tower_gemm_%s_g%d", epilogue, op->group);
        if (op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH)) FIND(prefill, "tower_strip_g%d", op->head_dim);
        break;
    case EV_OP_ATTEND_ALL:
        FIND(prefill, "tower_statistics");
        FIND(batch, "tower_pack_e%d", op->head_dim);
        FIND(single, "tower_attend_e%d", op->head_dim);
        break;
    default: break;
    }
#undef FIND
    return found ? EV_OK : EV_ERROR_BACKEND;
}

static void lay_out_codes(ev_codes *codes, ev_layout *layout, int64_t bytes, int64_t groups) {
    codes->codes = ev_take(layout, bytes);
    codes->scales = ev_take(layout, groups * (int64_t)sizeof(float));
    codes->sums = ev_take(layout, groups * (int64_t)sizeof(int32_t));
}

static void lay_out_attention(ev_attention *attention, ev_layout *layout, int64_t rows, int64_t codes, int64_t values, int64_t width) {
    attention->queries = ev_take(layout, codes);
    attention->keys = ev_take(layout, codes);
    attention->values = ev_take(layout, values);
    attention->query_scales = ev_take(layout, rows * 4);
    attention->query_sums = ev_take(layout, rows * 4);
    attention->key_scales = ev_take(layout, rows * 4);
    attention->key_bias = ev_take(layout, rows * 4);
    attention->key_means = ev_take(layout, width * 4);
    attention->value_means = ev_take(layout, width * 4);
    attention->value_scales = ev_take(layout, width * 4);
}

static void lay_out(ev_tower *tower, ev_layout *layout) {
    const ev_model *model = tower->model;
    const ev_plan_graph *graph = tower->graph;
    const int64_t tile_rows = model->variant->prefill_rows, threads = ev_pool_threads(tower->pool);
    int64_t bytes = 0, groups = 0, rows = 0, codes = 0, values = 0, width = 0, scratch = EV_LINEAR_ROWS * EV_STRIP_COLUMNS;
    for (uint32_t i = graph->first_op; i < graph->first_op + graph->n_ops; ++i) {
        const ev_op *op = &model->ops[i];
        const int64_t all_rows = ev_round_up(graph->max_rows * op->rows, EV_LINEAR_ROWS), padded = ev_round_up(op->rows, EV_TOKEN_MULTIPLE);
        switch (op->code) {
        case EV_OP_PATCHES: scratch = larger(scratch, EV_PATCH_TILES * tile_rows * op->k); break;
        case EV_OP_QUANTISE:
            bytes = larger(bytes, all_rows * op->k);
            groups = larger(groups, all_rows * (op->k / op->group) * model->variant->row_copies);
            break;
        case EV_OP_LINEAR:
            if (!(op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH))) break;
            bytes = larger(bytes, all_rows * op->window);
            groups = larger(groups, all_rows * (op->window / op->head_dim) * model->variant->row_copies);
            break;
        case EV_OP_ATTEND_ALL:
            rows = larger(rows, op->heads * padded);
            codes = larger(codes, op->heads * padded * op->head_dim);
            values = larger(values, op->heads * padded * ev_value_channels(op->head_dim));
            width = larger(width, (int64_t)op->heads * op->head_dim);
            break;
        default: break;
        }
    }
    tower->arena = ev_take(layout, (int64_t)graph->arena_floats * 4);
    lay_out_codes(&tower->codes[0], layout, bytes, groups);
    lay_out_codes(&tower->codes[1], layout, bytes, groups);
    lay_out_attention(&tower->attention, layout, rows, codes, values, width);
    tower->scratch_floats = (scratch + 15) / 16 * 16;
    tower->op_times = ev_take(layout, tower->graph->n_ops * (int64_t)sizeof *tower->op_times);
    tower->scratch = ev_take(layout, threads * tower->scratch_floats * 4);
}

ev_status ev_tower_new(ev_model *model, ev_tower **result) {
    *result = NULL;
    const ev_plan_graph *graph = ev_tower_graph(model);
    if (!graph) return ev_fail(EV_ERROR_USAGE, "the package was compiled without a vision encoder");
    ev_tower *tower = calloc(1, sizeof *tower);
    if (!tower) return ev_fail(EV_ERROR_BACKEND, "out of memory");
    tower->model = model;
    tower->graph = graph;
    ev_status status = ev_map_file(model->directory, "vision.bin", &tower->weights_file);
    if (!status && (uint64_t)tower->weights_file.size != model->header->vision_bytes)
        status = ev_fail(EV_ERROR_PACKAGE, "vision.bin has %lld bytes, plan.bin expects %llu", (long long)tower->weights_file.size,
                         (unsigned long long)model->header->vision_bytes);
    if (!status && !(tower->pool = ev_pool_new_on(ev_pool_threads(model->pool), model->cpus))) status = ev_fail(EV_ERROR_BACKEND, "cannot start the tower's threads");
    if (!status) {
        ev_layout measure = {NULL, 0};
        lay_out(tower, &measure);
        tower->block_bytes = measure.used;
        if (posix_memalign(&tower->block, EV_ALIGNMENT, (size_t)measure.used)) {
            tower->block = NULL;
            status = ev_fail(EV_ERROR_BACKEND, "cannot allocate %lld bytes for the vision encoder", (long long)measure.used);
        }
    }
    if (status) {
        ev_tower_free(tower);
        return status;
    }
    ev_layout place = {tower->block, 0};
    lay_out(tower, &place);
    ev_tower_profile_start(tower, 0);
    *result = tower;
    return EV_OK;
}

static const ev_op *last_op(const ev_tower *tower) { return &tower->model->ops[tower->graph->first_op + tower->graph->n_ops - 1]; }

void ev_tower_info_get(const ev_tower *tower, ev_tower_info *info) {
    *info = (ev_tower_info){tower->model->ops[tower->graph->first_op].window, 3, last_op(tower)->rows, tower->model->header->hidden_size,
                            tower->graph->max_rows, tower->weights_file.size, tower->block_bytes};
}

ev_status ev_encode(ev_tower *tower, const float *pixels, int32_t n_tiles, float *features, const ev_cancel_flag *cancel) {
    if (n_tiles < 1 || !pixels || !features) return ev_fail(EV_ERROR_USAGE, "ev_encode needs pixels of at least one tile, and room for features");
    const ev_op *last = last_op(tower);
    const int64_t stride = last->code == EV_OP_NORM ? last->k : last->n, width = tower->model->header->hidden_size;
    const int64_t side = tower->model->ops[tower->graph->first_op].window;
    for (int32_t done = 0; done < n_tiles;) {
        const int32_t batch = n_tiles - done >= tower->graph->max_rows ? tower->graph->max_rows : 1;
        const ev_status status = ev_run_tower(tower, pixels + 3 * side * side * done, batch, cancel);
        if (status) return status;
        const float *rows = tower->arena + tower->graph->output;
        for (int64_t row = 0; row < (int64_t)batch * last->rows; ++row)
            memcpy(features + ((int64_t)done * last->rows + row) * width, rows + row * stride, (size_t)width * sizeof *features);
        done += batch;
    }
    return EV_OK;
}

void ev_tower_free(ev_tower *tower) {
    if (!tower) return;
    ev_pool_free(tower->pool);
    ev_unmap(&tower->weights_file);
    free(tower->block);
    free(tower);
}
