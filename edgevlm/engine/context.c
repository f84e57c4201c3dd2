/* One conversation: its cache and scratch in one block, and the calls that move it forward and back. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "layout.h"

enum { KEY_BLOCK = 64 };

static int32_t padded_rows(const ev_model *model) {
    const int32_t rows = model->header->chunk_tokens, tile = model->variant->prefill_rows;
    return (rows + tile - 1) / tile * tile;
}

const ev_cache_form ev_cache_forms[EV_N_FORMS] = {{8, 8, "k8v8"}, {8, 4, "k8v4"}, {4, 8, "k4v8"}, {4, 4, "k4v4"}, {16, 16, "float"}};

/* Bytes of `count` keys or values of one KV head's channel: floats take four, codes their bits. */
static int64_t cache_bytes(int64_t count, int32_t bits) { return bits == 16 ? count * 4 : count * bits / 8; }

static int64_t partial_floats(const ev_context *context) {
    const ev_model *model = context->model;
    int64_t most = 0;
    for (uint32_t i = 0; i < model->graphs[0].n_ops; ++i) {
        const ev_op *op = &model->ops[i];
        if (op->code != EV_OP_ATTEND) continue;
        const int64_t units = ev_most_units(context, op), parts = (int64_t)ev_pool_threads(model->pool) * EV_PARTS;
        const int64_t decode = units * op->heads * EV_MAX_LOGIT_ROWS * (op->head_dim + 2);
        const int64_t prefill = parts * units * ev_attend_rows(context, op) * (op->head_dim + 2);
        if (decode > most) most = decode;
        if (prefill > most) most = prefill;
    }
    return most;
}

/* Half of a head when cosines and sines are computed for each call, 0 when the plan has tables of them. */
static int32_t computed_half(const ev_model *model) {
    const ev_plan_graph *graph = &model->graphs[0];
    for (uint32_t i = 0; i < graph->n_ops; ++i)
        if (model->ops[i].code == EV_OP_APPEND) return model->ops[i].sin == EV_NONE ? model->ops[i].head_dim / 2 : 0;
    return 0;
}

static void lay_out(ev_context *context, ev_layout *layout) {
    const ev_model *model = context->model;
    const ev_plan_graph *graph = &model->graphs[0];
    const int64_t rows = padded_rows(model);
    int64_t widest = 0, most_groups = 0;
    for (uint32_t i = 0; i < graph->n_ops; ++i) {
        const ev_op *op = &model->ops[i];
        if (op->code == EV_OP_APPEND) {
            ev_layer_cache *layer = &context->layers[op->layer];
            layer->kv_heads = op->kv_heads;
            layer->head_dim = op->head_dim;
        }
        if (op->code != EV_OP_QUANTISE) continue;
        if (op->k > widest) widest = op->k;
        if (op->k / op->group > most_groups) most_groups = op->k / op->group;
    }
    for (uint32_t i = 0; i < model->header->n_layers; ++i) {
        ev_layer_cache *layer = &context->layers[i];
        const int64_t slots = (int64_t)layer->kv_heads * context->capacity;
        layer->keys = ev_take(layout, cache_bytes(slots * layer->head_dim, ev_cache_forms[layer->form].key_bits));
        layer->values = ev_take(layout, cache_bytes(slots * layer->head_dim, ev_cache_forms[layer->form].value_bits));
        layer->key_scales = ev_take(layout, slots * 4);
        layer->value_scales = ev_take(layout, slots * 4);
    }
    context->arena = ev_take(layout, (int64_t)graph->arena_floats * 4);
    context->codes = ev_take(layout, rows * widest);
    context->scales = ev_take(layout, rows * most_groups * model->variant->row_copies * 4);
    context->sums = ev_take(layout, rows * most_groups * model->variant->row_copies * 4);
    context->partials = ev_take(layout, partial_floats(context) * 4);
    context->ids = ev_take(layout, rows * 4);
    context->positions = ev_take(layout, rows * 4);
    const int32_t half = computed_half(model);
    context->cosines = ev_take(layout, rows * half * 4);
    context->sines = ev_take(layout, rows * half * 4);
    context->row_numbers = ev_take(layout, half ? rows * 4 : 0);
    context->op_times = ev_take(layout, graph->n_ops * (int64_t)sizeof *context->op_times);
    context->tree = ev_take(layout, EV_MAX_LOGIT_ROWS * 4);
}

ev_status ev_context_new(ev_model *model, int32_t capacity, const uint8_t *kv_bits, ev_context **result) {
    *result = NULL;
    if (model->graphs[0].kind != 0) return ev_fail(EV_ERROR_USAGE, "the plan has no decoder");
    if (capacity < 1 || capacity > model->header->max_positions)
        return ev_fail(EV_ERROR_USAGE, "a context of %d tokens is outside 1..%d", capacity, model->header->max_positions);
    ev_context *context = calloc(1, sizeof *context);
    if (context) context->layers = calloc(model->header->n_layers, sizeof *context->layers);
    if (!context || !context->layers) {
        ev_context_free(context);
        return ev_fail(EV_ERROR_BACKEND, "out of memory");
    }
    context->model = model;
    context->capacity = (capacity + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    for (uint32_t i = 0; i < model->header->n_layers; ++i) {
        const uint8_t *bits = (kv_bits ? kv_bits : model->kv_bits) + 2 * i;
        int32_t form = 0;
        while (form < EV_N_FORMS && (ev_cache_forms[form].key_bits != bits[0] || ev_cache_forms[form].value_bits != bits[1])) ++form;
        if (form == EV_N_FORMS) {
            ev_context_free(context);
            return ev_fail(EV_ERROR_USAGE, "layer %u: a cache of %u and %u bits is not one of 8/8, 8/4, 4/8, 4/4, 16/16", i, bits[0], bits[1]);
        }
        context->layers[i].form = form;
    }
    ev_layout measure = {NULL, 0};
    lay_out(context, &measure);
    context->block_bytes = measure.used;
    if (posix_memalign(&context->block, EV_ALIGNMENT, (size_t)measure.used)) {
        context->block = NULL;
        ev_context_free(context);
        return ev_fail(EV_ERROR_BACKEND, "cannot allocate %lld bytes for a context of %d tokens", (long long)measure.used, capacity);
    }
    memset(context->block, 0, (size_t)measure.used);
    ev_layout place = {context->block, 0};
    lay_out(context, &place);
    if (computed_half(model))
        for (int32_t i = 0; i < padded_rows(model); ++i) context->row_numbers[i] = i;
    *result = context;
    return EV_OK;
}

int64_t ev_context_bytes(const ev_context *context) { return context->block_bytes; }

void ev_context_free(ev_context *context) {
    if (!context) return;
    free(context->block);
    free(context->layers);
    free(context);
}

static ev_status check_tokens(const ev_context *context, const int32_t *ids, const int32_t *positions, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        if (ids && (ids[i] < 0 || ids[i] >= context->model->header->vocab_size))
            return ev_fail(EV_ERROR_USAGE, "token id %d is outside 0..%d", ids[i], context->model->header->vocab_size - 1);
        if (positions && (positions[i] < 0 || positions[i] >= context->model->header->max_positions))
            return ev_fail(EV_ERROR_USAGE, "position %d is outside 0..%d", positions[i], context->model->header->max_positions - 1);
    }
    return EV_OK;
}

static ev_status check_room(const ev_context *context, int64_t n) {
    if (n < 1) return ev_fail(EV_ERROR_USAGE, "no tokens were given");
    if (n > context->capacity - context->n_past)
        return ev_fail(EV_ERROR_CONTEXT, "%lld tokens do not fit: %d of %d are used", (long long)n, context->n_past, context->capacity);
    return EV_OK;
}

static void copy_logits(const ev_context *context, float *logits, int32_t rows) {
    const ev_plan_graph *graph = &context->model->graphs[0];
    const int32_t width = context->model->ops[graph->n_ops - 1].n, vocab = context->model->header->vocab_size;
    for (int32_t i = 0; i < rows; ++i)
        memcpy(logits + (int64_t)i * vocab, context->arena + graph->output + (int64_t)i * width, (size_t)vocab * sizeof(float));
}

static ev_status is_cancelled(const ev_context *context) { return ev_fail(EV_CANCELLED, "cancelled after %d tokens", context->n_past); }

ev_status ev_prefill(ev_context *context, const ev_segment *segments, int32_t n_segments, const int32_t *positions, float *logits,
                     const ev_cancel_flag *cancel) {
    const ev_plan_header *header = context->model->header;
    int64_t total = 0;
    for (int32_t i = 0; i < n_segments; ++i) {
        if (segments[i].n < 0 || !segments[i].ids == !segments[i].features)
            return ev_fail(EV_ERROR_USAGE, "segment %d needs ids or features, and a count of at least 0", i);
        const ev_status status = check_tokens(context, segments[i].ids, NULL, segments[i].n);
        if (status) return status;
        total += segments[i].n;
    }
    context->tree_rows = 0;
    ev_status status = check_room(context, total);
    if (!status) status = check_tokens(context, NULL, positions, (int32_t)total);
    if (status) return status;
    float *input = context->arena + context->model->graphs[0].input;
    int32_t segment = 0, taken = 0;
    for (int64_t done = 0; done < total;) {
        if (ev_is_cancelled(cancel)) return is_cancelled(context);
        const int32_t rows = total - done < header->chunk_tokens ? (int32_t)(total - done) : header->chunk_tokens;
        for (int32_t row = 0; row < rows;) {
            const ev_segment *source = &segments[segment];
            const int32_t left = source->n - taken, n = left < rows - row ? left : rows - row;
            if (source->ids && n > 0)
                ev_run_embed(context, source->ids + taken, row, n);
            else if (n > 0)
                memcpy(input + (int64_t)row * header->hidden_size, source->features + (int64_t)taken * header->hidden_size,
                       (size_t)n * (size_t)header->hidden_size * sizeof(float));
            row += n;
            taken += n;
            if (taken == source->n) {
                ++segment;
                taken = 0;
            }
        }
        memcpy(context->positions, positions + done, (size_t)rows * sizeof *positions);
        done += rows;
        if (ev_run_decoder(context, rows, done == total ? 1 : 0, 0, cancel)) return is_cancelled(context);
        context->n_past += rows;
    }
    copy_logits(context, logits, 1);
    return EV_OK;
}

ev_status ev_step(ev_context *context, int32_t token, int32_t position, float *logits, const ev_cancel_flag *cancel) {
    return ev_score(context, &token, 1, &position, logits, cancel);
}

static ev_status score(ev_context *context, const int32_t *ids, int32_t n, const int32_t *positions, int32_t tree_rows, float *logits,
                       const ev_cancel_flag *cancel) {
    ev_run_embed(context, ids, 0, n);
    memcpy(context->positions, positions, (size_t)n * sizeof *positions);
    if (ev_run_decoder(context, n, n, tree_rows, cancel)) return is_cancelled(context);
    copy_logits(context, logits, n);
    return EV_OK;
}

static ev_status check_scored(ev_context *context, const int32_t *ids, int32_t n, const int32_t *positions, const ev_cancel_flag *cancel) {
    context->tree_rows = 0;
    ev_status status = check_room(context, n);
    if (!status && n > EV_MAX_LOGIT_ROWS)
        status = ev_fail(EV_ERROR_USAGE, "%d tokens are more than the %d that one call scores", n, EV_MAX_LOGIT_ROWS);
    if (!status) status = check_tokens(context, ids, positions, n);
    if (!status && ev_is_cancelled(cancel)) status = is_cancelled(context);
    return status;
}

ev_status ev_score(ev_context *context, const int32_t *ids, int32_t n, const int32_t *positions, float *logits, const ev_cancel_flag *cancel) {
    ev_status status = check_scored(context, ids, n, positions, cancel);
    if (!status) status = score(context, ids, n, positions, 0, logits, cancel);
    if (!status) context->n_past += n;
    return status;
}

ev_status ev_score_tree(ev_context *context, const int32_t *ids, const int32_t *parents, int32_t n, const int32_t *positions, float *logits,
                        const ev_cancel_flag *cancel) {
    ev_status status = check_scored(context, ids, n, positions, cancel);
    for (int32_t i = 0; i < n && !status; ++i) {
        if (parents[i] < -1 || parents[i] >= i)
            return ev_fail(EV_ERROR_USAGE, "drafted token %d has parent %d; parents come before their children, -1 is the last committed token", i, parents[i]);
        context->tree[i] = (parents[i] < 0 ? 0 : context->tree[parents[i]]) | 1 << i;
    }
    if (!status) status = score(context, ids, n, positions, n, logits, cancel);
    if (!status) context->tree_rows = n;
    return status;
}

/* Copies one token's keys and values to an earlier slot, in the layout of tvm_schedules/attention/cache.py. */
static void move_slot(const ev_context *context, const ev_layer_cache *layer, int32_t head, int32_t from, int32_t to) {
    const ev_cache_form *form = &ev_cache_forms[layer->form];
    const int64_t first = (int64_t)head * context->capacity, e = layer->head_dim;
    const int64_t key_unit = form->key_bits == 16 ? 4 : 2, key_units = cache_bytes(e, form->key_bits) / key_unit;
    const int64_t block_bytes = cache_bytes(16 * e, form->key_bits), base = cache_bytes(first * e, form->key_bits);
    char *keys = (char *)layer->keys + base;
    for (int64_t i = 0; i < key_units; ++i)
        memcpy(keys + to / 16 * block_bytes + (i * 16 + to % 16) * key_unit, keys + from / 16 * block_bytes + (i * 16 + from % 16) * key_unit, (size_t)key_unit);
    char *values = (char *)layer->values + cache_bytes(first * e, form->value_bits);
    const int64_t value_bytes = cache_bytes(e, form->value_bits);
    if (form->value_bits == 16) memcpy(values + to * value_bytes, values + from * value_bytes, (size_t)value_bytes);
    else
        for (int64_t i = 0; i < value_bytes; ++i) values[to / 2 * 2 * value_bytes + i * 2 + to % 2] = values[from / 2 * 2 * value_bytes + i * 2 + from % 2];
    layer->key_scales[first + to] = layer->key_scales[first + from];
    layer->value_scales[first + to] = layer->value_scales[first + from];
}

ev_status ev_accept(ev_context *context, const int32_t *nodes, int32_t n) {
    if (!context->tree_rows) return ev_fail(EV_ERROR_USAGE, "there is no drafted tree: call ev_score_tree first");
    int32_t path = 0;
    for (int32_t i = 0; i < n; ++i) {
        if (nodes[i] < 0 || nodes[i] >= context->tree_rows || context->tree[nodes[i]] != (path | 1 << nodes[i]) || path >> nodes[i] & 1)
            return ev_fail(EV_ERROR_USAGE, "the accepted nodes are not a path from the root of the drafted tree");
        path |= 1 << nodes[i];
    }
    for (uint32_t l = 0; l < context->model->header->n_layers; ++l)
        for (int32_t head = 0; head < context->layers[l].kv_heads; ++head)
            for (int32_t i = 0; i < n; ++i)
                if (nodes[i] != i) move_slot(context, &context->layers[l], head, context->n_past + nodes[i], context->n_past + i);
    context->n_past += n;
    context->tree_rows = 0;
    return EV_OK;
}

ev_status ev_truncate(ev_context *context, int32_t n_tokens) {
    if (n_tokens < 0 || n_tokens > context->n_past)
        return ev_fail(EV_ERROR_USAGE, "cannot keep %d tokens of %d", n_tokens, context->n_past);
    context->n_past = n_tokens;
    context->tree_rows = 0;
    return EV_OK;
}

int32_t ev_n_past(const ev_context *context) { return context->n_past; }

/* A snapshot: the number of tokens, then per layer and KV head the used part of keys, values and their scales. */
typedef struct {
    char *bytes;
    int64_t used;
    int restoring;
} ev_copier;

static void copy_part(ev_copier *copier, void *data, int64_t bytes) {
    if (copier->bytes && copier->restoring) memcpy(data, copier->bytes + copier->used, (size_t)bytes);
    else if (copier->bytes) memcpy(copier->bytes + copier->used, data, (size_t)bytes);
    copier->used += bytes;
}

static void copy_cache(const ev_context *context, ev_copier *copier, int32_t n_past) {
    const int64_t blocks = ((int64_t)n_past + 15) / 16 * 16;
    for (uint32_t i = 0; i < context->model->header->n_layers; ++i) {
        const ev_layer_cache *layer = &context->layers[i];
        for (int32_t head = 0; head < layer->kv_heads; ++head) {
            const ev_cache_form *form = &ev_cache_forms[layer->form];
            const int64_t start = (int64_t)head * context->capacity, e = layer->head_dim;
            copy_part(copier, (char *)layer->keys + cache_bytes(start * e, form->key_bits), cache_bytes(blocks * e, form->key_bits));
            copy_part(copier, (char *)layer->values + cache_bytes(start * e, form->value_bits), cache_bytes(blocks * e, form->value_bits));
            copy_part(copier, layer->key_scales + start, (int64_t)n_past * 4);
            copy_part(copier, layer->value_scales + start, (int64_t)n_past * 4);
        }
    }
}

int64_t ev_snapshot_bytes(const ev_context *context) {
    ev_copier copier = {NULL, (int64_t)sizeof context->n_past, 0};
    copy_cache(context, &copier, context->n_past);
    return copier.used;
}

ev_status ev_snapshot(const ev_context *context, void *bytes, int64_t size) {
    if (size != ev_snapshot_bytes(context)) return ev_fail(EV_ERROR_USAGE, "a snapshot of %d tokens has %lld bytes, not %lld", context->n_past, (long long)ev_snapshot_bytes(context), (long long)size);
    memcpy(bytes, &context->n_past, sizeof context->n_past);
    ev_copier copier = {bytes, (int64_t)sizeof context->n_past, 0};
    copy_cache(context, &copier, context->n_past);
    return EV_OK;
}

ev_status ev_restore(ev_context *context, const void *bytes, int64_t size) {
    int32_t n_past = -1;
    if (size >= (int64_t)sizeof n_past) memcpy(&n_past, bytes, sizeof n_past);
    if (n_past < 0 || n_past > context->capacity) return ev_fail(EV_ERROR_USAGE, "the snapshot does not fit into this context");
    ev_copier measure = {NULL, (int64_t)sizeof n_past, 1};
    copy_cache(context, &measure, n_past);
    if (measure.used != size) return ev_fail(EV_ERROR_USAGE, "a snapshot of %d tokens has %lld bytes here, not %lld", n_past, (long long)measure.used, (long long)size);
    ev_copier copier = {(char *)bytes, (int64_t)sizeof n_past, 1};
    copy_cache(context, &copier, n_past);
    context->n_past = n_past;
    context->tree_rows = 0;
    return EV_OK;
}
