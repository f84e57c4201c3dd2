/* One operation after another over the new rows; inside an operation the threads take disjoint shares. */
#include <string.h>

#include "internal.h"

typedef struct {
    ev_context *context;
    const ev_op *op;
    const ev_op_kernels *kernels;
    int32_t rows;      /* rows of this operation */
    int32_t first_row; /* where they begin in the arena's buffers */
    int32_t tile_rows; /* rows of the GEMM tile that the activations are packed for */
    int32_t n_past;
    int32_t tree_rows;
} ev_step_job;

static const void *weight_at(const ev_context *context, uint64_t offset) {
    return offset == EV_NONE ? NULL : context->model->weights + offset;
}

static int32_t tile_rows_for(const ev_variant *variant, int32_t rows) {
    if (rows == 1) return 1;
    return rows <= variant->batch_rows ? variant->batch_rows : variant->prefill_rows;
}

static void embed_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    int32_t begin, end;
    ev_share(job->rows, part, n_parts, &begin, &end);
    ((ev_embed_fn)job->kernels->single)(weight_at(context, op->weight), weight_at(context, op->scales), weight_at(context, op->zeros), context->ids,
                                        context->arena + op->out + (int64_t)job->first_row * op->k, op->k, begin, end);
}

static void quantise_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    int32_t begin, end;
    ev_share(job->rows, part, n_parts, &begin, &end);
    ((ev_quantise_fn)job->kernels->single)(context->arena + op->in + (int64_t)job->first_row * op->k, weight_at(context, op->weight),
                                           weight_at(context, op->bias), context->codes, context->scales, context->sums, op->k, job->tile_rows,
                                           op->value, begin, end);
}

/* Rows of the last tile beyond the real ones get scale 0, so that they add nothing and cannot grow. */
static void clear_padding(const ev_step_job *job) {
    const int32_t tiles = (job->rows + job->tile_rows - 1) / job->tile_rows, groups = job->op->k / job->op->group;
    if (tiles * job->tile_rows == job->rows) return;
    const ev_variant *variant = job->context->model->variant;
    const int64_t count = (int64_t)groups * job->tile_rows * variant->row_copies, first = (tiles - 1) * count;
    memset(job->context->scales + first, 0, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; ++i) job->context->sums[first + i] = variant->empty_sum;
}

static void gemm_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    const ev_variant *variant = context->model->variant;
    const int decode = job->tile_rows == 1, batch = !decode && job->tile_rows == variant->batch_rows && job->rows <= variant->batch_rows;
    const int32_t blocks = decode ? variant->decode_blocks : batch ? variant->batch_blocks : variant->prefill_blocks;
    const ev_gemm_fn gemm = (ev_gemm_fn)(decode ? job->kernels->decode : batch ? job->kernels->batch : job->kernels->prefill);
    int32_t begin, end;
    ev_share(op->n / 16 / blocks, part, n_parts, &begin, &end);
    if (begin == end) return;
    const int32_t width = op->flags & EV_FLAG_SWIGLU ? op->n / 2 : op->n;
    gemm(weight_at(context, op->weight), weight_at(context, op->scales), weight_at(context, op->zeros), context->codes, context->scales,
         context->sums, weight_at(context, op->bias), context->arena + op->out + (int64_t)job->first_row * width, op->n, op->k,
         (job->rows + job->tile_rows - 1) / job->tile_rows, op->bias != EV_NONE, (op->flags & EV_FLAG_ACCUMULATE) != 0, begin * blocks,
         end * blocks);
}

static void append_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    const ev_layer_cache *layer = &context->layers[op->layer];
    int32_t begin, end;
    ev_share(job->rows, part, n_parts, &begin, &end);
    const ev_append_fn append = (ev_append_fn)job->kernels->append[layer->form];
    const int computed = op->sin == EV_NONE;
    append(context->arena + op->in, computed ? context->cosines : weight_at(context, op->cos), computed ? context->sines : weight_at(context, op->sin),
           weight_at(context, op->centre), computed ? context->row_numbers : context->positions, layer->keys, layer->key_scales, layer->values, layer->value_scales, op->heads, op->kv_heads, context->capacity, job->n_past, op->value,
           op->n, begin, end);
}

static void attend_range(const ev_step_job *job, float *partial, int32_t kv_head, int32_t row_begin, int32_t row_end, int32_t key_begin,
                         int32_t key_end) {
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    const ev_layer_cache *layer = &context->layers[op->layer];
    const int few = (row_end - row_begin) < 8;
    const ev_attend_fn attend = (ev_attend_fn)(few ? job->kernels->attend_decode : job->kernels->attend_prefill)[layer->form];
    attend(context->arena + op->in, layer->keys, layer->key_scales, layer->values, layer->value_scales, context->tree, partial, op->heads,
           op->kv_heads, op->n, context->capacity, job->n_past, job->tree_rows, op->window, kv_head, row_begin, row_end, key_begin, key_end);
}

/* Few rows: the cache is cut into units of (KV head, range of keys), shared out evenly; the merge follows. The cut depends
 * neither on the number of threads nor on the number of rows, so neither does the sum. */
static int32_t decode_units(const ev_step_job *job) {
    const int32_t keys = job->n_past + job->rows, unit = ev_unit_keys(job->op->head_dim);
    return (keys + unit - 1) / unit;
}

static void attend_decode_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_op *op = job->op;
    const int32_t rows = job->rows * (op->heads / op->kv_heads), units = decode_units(job), unit = ev_unit_keys(op->head_dim);
    const int32_t keys = job->n_past + job->rows;
    int32_t begin, end;
    ev_share(op->kv_heads * units, part, n_parts, &begin, &end);
    for (int32_t i = begin; i < end; ++i) {
        const int32_t first = i % units * unit, last = first + unit;
        attend_range(job, job->context->partials + (int64_t)i * rows * (op->head_dim + 2), i / units, 0, rows, first, last < keys ? last : keys);
    }
}

static void merge_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    const int32_t rows = job->rows * (op->heads / op->kv_heads), parts = decode_units(job);
    int32_t begin, end;
    ev_share(op->kv_heads, part, n_parts, &begin, &end);
    for (int32_t kv_head = begin; kv_head < end; ++kv_head)
        ((ev_merge_fn)job->kernels->merge)(context->partials + (int64_t)kv_head * parts * rows * (op->head_dim + 2), context->arena + op->out, parts,
                                           rows, op->heads, op->kv_heads, op->heads * op->head_dim, kv_head, 0, rows);
}

/* Many rows: a block is (KV head, up to 48 rows) over all the keys that its last row sees; later rows see more keys, so
 * blocks are dealt in turn. Its keys are cut and merged as those of few rows are. Of what a row does not see, whole units
 * or single keys, the merge adds nothing but zeros. */
static void attend_prefill_task(void *argument, int32_t part, int32_t n_parts) {
    const ev_step_job *job = argument;
    const ev_context *context = job->context;
    const ev_op *op = job->op;
    const int32_t group = op->heads / op->kv_heads, rows = job->rows * group, unit = ev_unit_keys(op->head_dim);
    const int32_t together = ev_attend_rows(context, op), blocks = (rows + together - 1) / together, width = op->head_dim + 2;
    float *partials = context->partials + (int64_t)part * ev_most_units(context, op) * together * width;
    for (int32_t i = part; i < op->kv_heads * blocks; i += n_parts) {
        const int32_t begin = i % blocks * together, end = begin + together < rows ? begin + together : rows, n = end - begin;
        const int32_t keys = job->n_past + (end - 1) / group + 1, units = (keys + unit - 1) / unit;
        for (int32_t u = 0; u < units; ++u) {
            const int32_t first = u * unit, last = first + unit < keys ? first + unit : keys;
            attend_range(job, partials + (int64_t)u * n * width, i / blocks, begin, end, first, last);
        }
        /* The merge addresses rows from 0: give it the partials as if they began there. */
        ((ev_merge_fn)job->kernels->merge)(partials - (int64_t)begin * width, context->arena + op->out, units, n, op->heads, op->kv_heads,
                                           op->heads * op->head_dim, i / blocks, begin, end);
    }
}

static void run_attend(ev_pool *pool, ev_step_job *job) {
    if (job->rows <= EV_MAX_LOGIT_ROWS) {
        ev_pool_run(pool, attend_decode_task, job);
        ev_pool_run_parts(pool, job->rows == 1 ? 1 : ev_pool_threads(pool), merge_task, job);
    } else {
        ev_pool_run_parts(pool, ev_pool_threads(pool) * EV_PARTS, attend_prefill_task, job);
    }
}

void ev_run_embed(ev_context *context, const int32_t *ids, int32_t row, int32_t n) {
    ev_model *model = context->model;
    memcpy(context->ids, ids, (size_t)n * sizeof *ids);
    ev_step_job job = {context, &model->ops[0], &model->kernels[0], n, row, 0, 0, 0};
    ev_pool_run_parts(model->pool, n == 1 ? 1 : ev_pool_threads(model->pool), embed_task, &job);
}

ev_status ev_run_decoder(ev_context *context, int32_t rows, int32_t n_logits, int32_t tree_rows, const ev_cancel_flag *cancel) {
    ev_model *model = context->model;
    const ev_plan_graph *graph = &model->graphs[0];
    int turned = 0;
    for (uint32_t i = graph->first_op + 1; i < graph->first_op + graph->n_ops; ++i) {
        ev_step_job job = {context, &model->ops[i], &model->kernels[i], rows, 0, 0, context->n_past, tree_rows};
        if (job.op->flags & EV_FLAG_LAST_ROWS) {
            job.rows = n_logits;
            job.first_row = job.op->code == EV_OP_QUANTISE ? rows - n_logits : 0;
        }
        if (job.rows == 0) continue;
        if (ev_is_cancelled(cancel)) return EV_CANCELLED;
        job.tile_rows = tile_rows_for(model->variant, job.rows);
        const int32_t parts = ev_pool_threads(model->pool) * (job.rows == 1 ? 1 : EV_PARTS);
        const double start = context->profiled ? ev_seconds() : 0;
        switch (job.op->code) {
        case EV_OP_QUANTISE:
            clear_padding(&job);
            ev_pool_run_parts(model->pool, job.rows == 1 ? 1 : parts, quantise_task, &job);
            break;
        case EV_OP_GEMM: ev_pool_run_parts(model->pool, parts, gemm_task, &job); break;
        case EV_OP_APPEND:
            if (job.op->sin == EV_NONE && !turned) ev_turn_positions(context, weight_at(context, job.op->cos), job.op->head_dim / 2, rows);
            turned = 1;
            ev_pool_run_parts(model->pool, job.rows == 1 ? 1 : parts, append_task, &job);
            break;
        case EV_OP_ATTEND: run_attend(model->pool, &job); break;
        default: break;
        }
        if (context->profiled) ev_profile_add(context, i, job.rows, ev_seconds() - start);
    }
    return EV_OK;
}
