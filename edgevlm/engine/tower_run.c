/* The operations of a vision encoder over the rows of a batch. Threads take units of work from a counter: a unit is
 * computed whole by one thread, in one order, so the result does not depend on who takes it. */
#include <stdatomic.h>
#include <string.h>

#include "tower.h"

/* Activation codes of the rows that share a pass over some weights: they stay in the second-level cache. Units are cut
 * finer than that when there would be few of them for each thread. */
enum { ROW_BLOCK_BYTES = 896 << 10, LINEAR_COLUMNS = 64, ATTEND_TILES = 8, UNITS_PER_THREAD = 12 };

typedef struct {
    ev_tower *tower;
    const ev_op *op;
    const ev_op_kernels *kernels;
    const float *pixels;
    int32_t n_tiles, rows;          /* rows of all tiles */
    int32_t tile_rows;              /* register tile of patches and queries */
    int32_t row_tiles;              /* register tiles of a linear's rows */
    int32_t row_block, column_units; /* LINEAR: row tiles and columns of a unit */
    int32_t tile, padded;           /* ATTEND_ALL: the tile at hand, its tokens padded */
    int32_t n_units;
    _Atomic int32_t next;
} ev_tower_job;

static int take_unit(ev_tower_job *job, int32_t *unit) {
    *unit = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);
    return *unit < job->n_units;
}

static void run_units(ev_tower_job *job, ev_task task, int32_t n_units) {
    job->n_units = n_units;
    atomic_store(&job->next, 0);
    ev_pool_run(job->tower->pool, task, job);
}

static float *scratch_of(const ev_tower_job *job, int32_t part) { return job->tower->scratch + part * job->tower->scratch_floats; }

/* ---- patches */

/* Copies the pixels of patches [first, last) of a tile, a row of (channel, y, x) each. */
static void gather_patches(const ev_op *op, const float *pixels, int32_t first, int32_t last, float *rows) {
    const int32_t side = op->group, grid = op->window / side;
    const int64_t plane = (int64_t)op->window * op->window;
    for (int32_t patch = first; patch < last; ++patch) {
        const float *corner = pixels + (int64_t)(patch / grid) * side * op->window + (int64_t)(patch % grid) * side;
        for (int32_t channel = 0; channel < 3; ++channel)
            for (int32_t y = 0; y < side; ++y, rows += side)
                memcpy(rows, corner + channel * plane + (int64_t)y * op->window, (size_t)side * sizeof *rows);
    }
}

static void patches_task(void *argument, int32_t part, int32_t n_parts) {
    (void)n_parts;
    ev_tower_job *job = argument;
    const ev_tower *tower = job->tower;
    const ev_op *op = job->op;
    const int32_t patches = op->rows - op->layer, step = EV_PATCH_TILES * job->tile_rows, units = (patches + step - 1) / step;
    float *rows = scratch_of(job, part);
    for (int32_t unit; take_unit(job, &unit);) {
        const int32_t tile = unit / units, first = unit % units * step, last = first + step < patches ? first + step : patches;
        gather_patches(op, job->pixels + (int64_t)tile * 3 * op->window * op->window, first, last, rows);
        float *out = tower->arena + op->out + (int64_t)tile * op->rows * op->n;
        if (first == 0 && op->layer) memcpy(out, ev_tower_floats(tower, op->sin), (size_t)op->n * sizeof *out);
        ((ev_patches_fn)job->kernels->single)(rows, ev_tower_floats(tower, op->weight), ev_tower_floats(tower, op->cos) + (int64_t)first * op->n,
                                              out + (int64_t)(op->layer + first) * op->n, op->n, op->k,
                                              (last - first + job->tile_rows - 1) / job->tile_rows, last - first);
    }
}

/* ---- rows */

static void quantise_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_tower_job *job = argument;
    const ev_tower *tower = job->tower;
    const ev_op *op = job->op;
    const ev_codes *codes = &tower->codes[0];
    const int layer = (op->flags & EV_FLAG_NORM_LAYER) != 0;
    int32_t begin, end;
    ev_share(job->rows, part, n_parts, &begin, &end);
    ((ev_quantise_fn)job->kernels->single)(tower->arena + op->in, layer ? ev_tower_floats(tower, op->weight) : NULL,
                                           layer ? ev_tower_floats(tower, op->bias) : NULL, codes->codes, codes->scales, codes->sums, op->k,
                                           EV_LINEAR_ROWS, op->value, begin, end);
}

/* Rows of the last register tile beyond the real ones get scale 0, so that they add nothing. */
static void clear_padding(const ev_tower_job *job) {
    const ev_variant *variant = job->tower->model->variant;
    const int64_t count = (int64_t)(job->op->k / job->op->group) * EV_LINEAR_ROWS * variant->row_copies, first = (job->row_tiles - 1) * count;
    if (job->row_tiles * EV_LINEAR_ROWS == job->rows) return;
    memset(job->tower->codes[0].scales + first, 0, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; ++i) job->tower->codes[0].sums[first + i] = variant->empty_sum;
}

static void norm_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_tower_job *job = argument;
    const ev_tower *tower = job->tower;
    const ev_op *op = job->op;
    int32_t begin, end;
    ev_share(op->rows, part, n_parts, &begin, &end);
    for (int32_t tile = 0; tile < job->n_tiles; ++tile)
        ((ev_norm_fn)job->kernels->single)(tower->arena + op->in + ((int64_t)tile * op->window + op->layer) * op->k,
                                           ev_tower_floats(tower, op->weight), ev_tower_floats(tower, op->bias),
                                           tower->arena + op->out + (int64_t)tile * op->rows * op->k, op->k, op->value, begin, end);
}

/* Rows of blocks: (dy, dx, channel), zeros where the grid ends. */
static void merge_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_tower_job *job = argument;
    const ev_op *op = job->op;
    const int32_t side = op->head_dim / op->group;
    const size_t bytes = (size_t)op->k * sizeof(float);
    int32_t begin, end;
    ev_share(job->rows, part, n_parts, &begin, &end);
    for (int32_t row = begin; row < end; ++row) {
        const int32_t tile = row / op->rows, block = row % op->rows;
        const float *in = job->tower->arena + op->in + (int64_t)tile * op->window * op->window * op->k;
        float *out = job->tower->arena + op->out + (int64_t)row * op->group * op->group * op->k;
        for (int32_t dy = 0; dy < op->group; ++dy)
            for (int32_t dx = 0; dx < op->group; ++dx, out += op->k) {
                const int32_t y = block / side * op->group + dy, x = block % side * op->group + dx;
                if (y < op->window && x < op->window) memcpy(out, in + ((int64_t)y * op->window + x) * op->k, bytes);
                else memset(out, 0, bytes);
            }
    }
}

/* ---- linears: a unit is a block of row tiles by some columns */

static void linear_task(void *argument, int32_t part, int32_t n_parts) {
    (void)part, (void)n_parts;
    ev_tower_job *job = argument;
    const ev_tower *tower = job->tower;
    const ev_op *op = job->op;
    const ev_codes *codes = &tower->codes[tower->present];
    for (int32_t unit; take_unit(job, &unit);) {
        const int32_t first = unit / job->column_units * job->row_block, column = unit % job->column_units * LINEAR_COLUMNS;
        const int32_t last = first + job->row_block < job->row_tiles ? first + job->row_block : job->row_tiles;
        ((ev_linear_fn)job->kernels->single)((const uint8_t *)ev_tower_floats(tower, op->weight), (const uint16_t *)ev_tower_floats(tower, op->scales),
                                             codes->codes, codes->scales, codes->sums, ev_tower_floats(tower, op->bias),
                                             tower->arena + op->out + (int64_t)first * EV_LINEAR_ROWS * op->n + column, op->n, op->k, op->n,
                                             (op->flags & EV_FLAG_ACCUMULATE) != 0, first, last, column / 16, (column + LINEAR_COLUMNS) / 16);
    }
}

/* The GELU of one register tile of rows and one strip of columns is quantised before it leaves the first-level cache. */
static void gelu_task(void *argument, int32_t part, int32_t n_parts) {
    (void)n_parts;
    ev_tower_job *job = argument;
    const ev_tower *tower = job->tower;
    const ev_op *op = job->op;
    const ev_codes *codes = &tower->codes[tower->present], *made = &tower->codes[1 - tower->present];
    const int32_t groups = op->window / op->head_dim;
    float *strip = scratch_of(job, part);
    for (int32_t unit; take_unit(job, &unit);) {
        const int32_t first = unit / job->column_units * job->row_block, column = unit % job->column_units * EV_STRIP_COLUMNS;
        const int32_t last = first + job->row_block < job->row_tiles ? first + job->row_block : job->row_tiles;
        const int32_t wanted = op->window - column < EV_STRIP_COLUMNS ? op->window - column : EV_STRIP_COLUMNS;
        for (int32_t tile = first; tile < last; ++tile) {
            ((ev_linear_fn)job->kernels->single)((const uint8_t *)ev_tower_floats(tower, op->weight),
                                                 (const uint16_t *)ev_tower_floats(tower, op->scales), codes->codes, codes->scales, codes->sums,
                                                 ev_tower_floats(tower, op->bias), strip, op->n, op->k, wanted, 0, tile, tile + 1, column / 16,
                                                 (column + wanted) / 16);
            const int64_t place = ((int64_t)tile * groups + column / op->head_dim) * EV_LINEAR_ROWS * tower->model->variant->row_copies;
            ((ev_quantise_fn)job->kernels->prefill)(strip, NULL, NULL, made->codes + ((int64_t)tile * op->window + column) * EV_LINEAR_ROWS,
                                                    made->scales + place, made->sums + place, wanted, EV_LINEAR_ROWS, 0.0f, 0, EV_LINEAR_ROWS);
        }
    }
}

static void run_linear(ev_tower_job *job) {
    const ev_op *op = job->op;
    const int gelu = (op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH)) != 0;
    const int32_t fitting = ROW_BLOCK_BYTES / (EV_LINEAR_ROWS * op->k), columns = gelu ? EV_STRIP_COLUMNS : LINEAR_COLUMNS;
    const int32_t wanted = UNITS_PER_THREAD * ev_pool_threads(job->tower->pool);
    job->column_units = ((gelu ? op->window : op->n) + columns - 1) / columns;
    int32_t blocks = (job->row_tiles + fitting) / (fitting + 1);
    if (blocks * job->column_units < wanted) blocks = (wanted + job->column_units - 1) / job->column_units;
    if (blocks > job->row_tiles) blocks = job->row_tiles;
    job->row_block = (job->row_tiles + blocks - 1) / blocks;
    blocks = (job->row_tiles + job->row_block - 1) / job->row_block;
    run_units(job, gelu ? gelu_task : linear_task, blocks * job->column_units);
    job->tower->present = gelu ? 1 - job->tower->present : 0;
}

/* ---- attention, one tile after the other */

static const float *qkv_of(const ev_tower_job *job) {
    return job->tower->arena + job->op->in + (int64_t)job->tile * job->op->rows * job->op->n;
}

static void statistics_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_tower_job *job = argument;
    const ev_op *op = job->op;
    const ev_attention *attention = &job->tower->attention;
    const int32_t width = op->heads * op->head_dim;
    int32_t begin, end;
    ev_share(width / 16, part, n_parts, &begin, &end);
    ((ev_statistics_fn)job->kernels->prefill)(qkv_of(job), attention->key_means, attention->value_means, attention->value_scales, op->n, width,
                                              op->rows, begin * 16, end * 16);
}

static void pack_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_tower_job *job = argument;
    const ev_op *op = job->op;
    const ev_attention *attention = &job->tower->attention;
    int32_t begin, end;
    ev_share(job->padded / EV_TOKEN_MULTIPLE, part, n_parts, &begin, &end);
    ((ev_pack_fn)job->kernels->batch)(qkv_of(job), attention->key_means, attention->value_means, attention->value_scales, attention->queries,
                                      attention->query_scales, attention->query_sums, attention->keys, attention->key_scales, attention->key_bias,
                                      (int32_t *)(void *)attention->values, op->n, op->heads, op->rows, job->padded, op->value,
                                      begin * EV_TOKEN_MULTIPLE, end * EV_TOKEN_MULTIPLE);
}

static void attend_task(void *argument, int32_t part, int32_t n_parts) {
    (void)part, (void)n_parts;
    ev_tower_job *job = argument;
    const ev_op *op = job->op;
    const ev_attention *attention = &job->tower->attention;
    const int32_t width = op->heads * op->head_dim, tiles = (op->rows + job->tile_rows - 1) / job->tile_rows;
    const int32_t units = (tiles + ATTEND_TILES - 1) / ATTEND_TILES;
    for (int32_t unit; take_unit(job, &unit);) {
        const int64_t head = unit / units, rows = head * job->padded, codes = rows * op->head_dim;
        const int32_t first = unit % units * ATTEND_TILES, last = first + ATTEND_TILES < tiles ? first + ATTEND_TILES : tiles;
        float *out = job->tower->arena + op->out + (int64_t)job->tile * op->rows * width + head * op->head_dim;
        ((ev_attend_all_fn)job->kernels->single)(attention->queries + codes, attention->query_scales + rows, attention->query_sums + rows,
                                                 attention->keys + codes, attention->key_scales + rows, attention->key_bias + rows,
                                                 attention->values + rows * ev_value_channels(op->head_dim),
                                                 attention->value_scales + head * op->head_dim, attention->value_means + head * op->head_dim, out,
                                                 job->padded, op->rows, width, first, last);
    }
}

static void run_attention(ev_tower_job *job) {
    const ev_op *op = job->op;
    const int32_t tiles = (op->rows + job->tile_rows - 1) / job->tile_rows;
    job->padded = ev_round_up(op->rows, EV_TOKEN_MULTIPLE);
    for (job->tile = 0; job->tile < job->n_tiles; ++job->tile) {
        ev_pool_run(job->tower->pool, statistics_task, job);
        ev_pool_run(job->tower->pool, pack_task, job);
        run_units(job, attend_task, op->heads * ((tiles + ATTEND_TILES - 1) / ATTEND_TILES));
    }
}

ev_status ev_run_tower(ev_tower *tower, const float *pixels, int32_t n_tiles, const ev_cancel_flag *cancel) {
    const ev_model *model = tower->model;
    const ev_plan_graph *graph = tower->graph;
    for (uint32_t i = graph->first_op; i < graph->first_op + graph->n_ops; ++i) {
        if (ev_is_cancelled(cancel)) return ev_fail(EV_CANCELLED, "cancelled in the vision encoder");
        ev_tower_job job = {.tower = tower, .op = &model->ops[i], .kernels = &model->kernels[i], .pixels = pixels, .n_tiles = n_tiles};
        job.rows = n_tiles * job.op->rows;
        job.tile_rows = model->variant->prefill_rows;
        job.row_tiles = (job.rows + EV_LINEAR_ROWS - 1) / EV_LINEAR_ROWS;
        const int32_t patch_rows = EV_PATCH_TILES * job.tile_rows;
        const double start = tower->profiled ? ev_seconds() : 0;
        switch (job.op->code) {
        case EV_OP_PATCHES: run_units(&job, patches_task, n_tiles * ((job.op->rows - job.op->layer + patch_rows - 1) / patch_rows)); break;
        case EV_OP_QUANTISE:
            tower->present = 0;
            clear_padding(&job);
            ev_pool_run(tower->pool, quantise_task, &job);
            break;
        case EV_OP_NORM: ev_pool_run(tower->pool, norm_task, &job); break;
        case EV_OP_LINEAR: run_linear(&job); break;
        case EV_OP_ATTEND_ALL: run_attention(&job); break;
        case EV_OP_MERGE: ev_pool_run(tower->pool, merge_task, &job); break;
        default: break;
        }
        if (tower->profiled) ev_tower_profile_add(tower, i - graph->first_op, n_tiles, ev_seconds() - start);
    }
    return EV_OK;
}
