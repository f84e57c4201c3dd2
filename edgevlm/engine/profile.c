/* Where the time goes: per operation while a context is profiled, and what this machine can do at most. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tower.h"

double ev_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void ev_profile_start(ev_context *context, int32_t on) {
    context->profiled = on != 0;
    memset(context->op_times, 0, context->model->graphs[0].n_ops * sizeof *context->op_times);
}

static double cache_row_bytes(const ev_context *context, const ev_op *op) {
    const ev_cache_form *form = &ev_cache_forms[context->layers[op->layer].form];
    const double bits = (form->key_bits == 16 ? 32 : form->key_bits) + (form->value_bits == 16 ? 32 : form->value_bits);
    return op->kv_heads * (op->head_dim * bits / 8 + 8);
}

void ev_profile_add(ev_context *context, uint32_t index, int32_t rows, double seconds) {
    const ev_op *op = &context->model->ops[index];
    ev_op_time *time = &context->op_times[index];
    time->calls += 1;
    time->seconds += seconds;
    time->rows = rows;
    const double n = op->n, k = op->k, keys = context->n_past + (op->code == EV_OP_ATTEND ? (rows + 1) / 2.0 : 0);
    switch (op->code) {
    case EV_OP_GEMM:
        time->operations += 2 * n * k * rows;
        time->bytes += n * k * op->bits / 8 + n * k / op->group * (op->flags & EV_FLAG_ZERO_POINT ? 3 : 2);
        break;
    case EV_OP_ATTEND:
        time->operations += 4.0 * op->heads * op->head_dim * rows * (op->window > 0 && op->window < keys ? op->window : keys);
        time->bytes += cache_row_bytes(context, op) * (context->n_past + rows);
        break;
    case EV_OP_APPEND: time->bytes += rows * (n * 4 + cache_row_bytes(context, op)); break;
    case EV_OP_QUANTISE: time->bytes += rows * k * 5; break;
    default: break;
    }
}

static const char *const tile_names[] = {"decode", "batch", "prefill"};

static void name_op(const void *owner, uint32_t index, char *name, size_t size) {
    const ev_context *context = owner;
    const ev_op *op = &context->model->ops[index];
    const int32_t rows = context->op_times[index].rows;
    const char *tile = tile_names[rows == 1 ? 0 : rows <= context->model->variant->batch_rows ? 1 : 2];
    switch (op->code) {
    case EV_OP_GEMM:
        snprintf(name, size, "gemm_w%dg%d%s%s_%s", op->bits, op->group, op->flags & EV_FLAG_ZERO_POINT ? "z" : "",
                 op->flags & EV_FLAG_SWIGLU ? "_swiglu" : "", tile);
        break;
    case EV_OP_ATTEND:
        snprintf(name, size, "attend_e%d_%s", op->head_dim, ev_cache_forms[context->layers[op->layer].form].name);
        break;
    case EV_OP_APPEND: snprintf(name, size, "append_e%d", op->head_dim); break;
    default: snprintf(name, size, "quantise_g%d", op->group);
    }
}

typedef void (*name_fn)(const void *owner, uint32_t index, char *name, size_t size);

/* One entry a kernel, its operations added up. */
static int32_t collect(const void *owner, const ev_op_time *times, uint32_t n_ops, name_fn name_of, ev_profile_entry *entries, int32_t capacity) {
    int32_t count = 0;
    for (uint32_t i = 0; i < n_ops; ++i) {
        const ev_op_time *time = &times[i];
        if (!time->calls) continue;
        char name[sizeof entries->kernel];
        name_of(owner, i, name, sizeof name);
        int32_t at = 0;
        while (at < count && at < capacity && strcmp(entries[at].kernel, name)) ++at;
        if (at == count) {
            if (at < capacity) {
                memset(&entries[at], 0, sizeof entries[at]);
                memcpy(entries[at].kernel, name, sizeof name);
            }
            ++count;
        }
        if (at >= capacity) continue;
        entries[at].calls += time->calls;
        entries[at].seconds += time->seconds;
        entries[at].operations += time->operations;
        entries[at].bytes += time->bytes;
    }
    return count;
}

int32_t ev_profile_get(const ev_context *context, ev_profile_entry *entries, int32_t capacity) {
    return collect(context, context->op_times, context->model->graphs[0].n_ops, name_op, entries, capacity);
}

/* ---- the vision encoder */

void ev_tower_profile_start(ev_tower *tower, int32_t on) {
    tower->profiled = on != 0;
    memset(tower->op_times, 0, tower->graph->n_ops * sizeof *tower->op_times);
}

void ev_tower_profile_add(ev_tower *tower, uint32_t index, int32_t n_tiles, double seconds) {
    const ev_op *op = &tower->model->ops[tower->graph->first_op + index];
    ev_op_time *time = &tower->op_times[index];
    time->calls += 1;
    time->seconds += seconds;
    const double n = op->n, k = op->k, rows = (double)n_tiles * op->rows;
    switch (op->code) {
    case EV_OP_PATCHES:
        time->operations += 2 * n * k * (rows - (double)n_tiles * op->layer);
        time->bytes += 4 * (n * k + rows * (n + k));
        break;
    case EV_OP_LINEAR:
        time->operations += 2 * n * k * rows;
        time->bytes += n * k * op->bits / 8 + n * k / op->group * 2 + rows * (k + (op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH) ? n : 4 * n));
        break;
    case EV_OP_ATTEND_ALL:
        time->operations += 4.0 * op->heads * op->head_dim * op->rows * rows;
        time->bytes += rows * 16.0 * op->heads * op->head_dim;
        break;
    default: time->bytes += rows * (k > n ? k : n) * 8;
    }
}

static void name_tower_op(const void *owner, uint32_t index, char *name, size_t size) {
    const ev_tower *tower = owner;
    const ev_op *op = &tower->model->ops[tower->graph->first_op + index];
    switch (op->code) {
    case EV_OP_PATCHES: snprintf(name, size, "patches"); break;
    case EV_OP_LINEAR:
        snprintf(name, size, "linear_w%dg%d%s", op->bits, op->group, op->flags & (EV_FLAG_GELU | EV_FLAG_GELU_TANH) ? "_gelu" : "");
        break;
    case EV_OP_ATTEND_ALL: snprintf(name, size, "attend_all_e%d", op->head_dim); break;
    case EV_OP_NORM: snprintf(name, size, "norm"); break;
    case EV_OP_MERGE: snprintf(name, size, "merge"); break;
    default: snprintf(name, size, "quantise_g%d", op->group);
    }
}

int32_t ev_tower_profile_get(const ev_tower *tower, ev_profile_entry *entries, int32_t capacity) {
    return collect(tower, tower->op_times, tower->graph->n_ops, name_tower_op, entries, capacity);
}

/* The machine's limits: each thread repeats integer dot products on registers, then reads its share of a buffer. */
enum { DOT_ROUNDS = 1 << 18, LIMIT_RUNS = 5, READ_RUN = 4096 };
#define READ_BYTES ((int64_t)192 << 20)

typedef struct {
    const ev_model *model;
    ev_limit_fn dots, read;
    const uint8_t *buffer;
    int32_t *out; /* 256 numbers a part */
} limit_job;

static void dot_task(void *argument, int32_t part, int32_t n_parts) {
    const limit_job *job = argument;
    (void)n_parts;
    job->dots(job->buffer, job->out + 256 * part, DOT_ROUNDS);
}

static void read_task(void *argument, int32_t part, int32_t n_parts) {
    const limit_job *job = argument;
    int32_t begin, end;
    ev_share((int32_t)(READ_BYTES / READ_RUN), part, n_parts, &begin, &end);
    job->read(job->buffer + (int64_t)begin * READ_RUN, job->out + 256 * part, end - begin);
}

static double fastest(const ev_model *model, ev_task task, limit_job *job) {
    double best = 1e30;
    for (int i = 0; i <= LIMIT_RUNS; ++i) {
        const double start = ev_seconds();
        ev_pool_run(model->pool, task, job);
        const double elapsed = ev_seconds() - start;
        if (i && elapsed < best) best = elapsed;
    }
    return best;
}

ev_status ev_model_limits(ev_model *model, ev_limits *limits) {
    const int32_t threads = ev_pool_threads(model->pool);
    limit_job job = {.model = model};
    job.dots = (ev_limit_fn)ev_find_kernel(model, "limit_dots");
    job.read = (ev_limit_fn)ev_find_kernel(model, "limit_read");
    if (!job.dots || !job.read) return EV_ERROR_BACKEND;
    void *buffer = NULL, *out = NULL; /* posix_memalign: Android has aligned_alloc from API 28 on */
    if (!posix_memalign(&buffer, 64, (size_t)READ_BYTES) && !posix_memalign(&out, 64, (size_t)threads * 1024)) {
        job.out = out;
        memset(buffer, 1, (size_t)READ_BYTES);
        job.buffer = buffer;
        /* limit_dots: 12 sums, each one vector of `dot_lanes` lanes of 4 products. */
        limits->giga_operations_per_s = 1e-9 * threads * DOT_ROUNDS * 12.0 * model->variant->dot_lanes * 8 / fastest(model, dot_task, &job);
        limits->giga_bytes_per_s = 1e-9 * (double)READ_BYTES / fastest(model, read_task, &job);
    }
    const int complete = buffer && job.out;
    free(buffer);
    free(job.out);
    return complete ? EV_OK : ev_fail(EV_ERROR_BACKEND, "out of memory: measuring the machine takes %lld MB", (long long)(READ_BYTES >> 20));
}
