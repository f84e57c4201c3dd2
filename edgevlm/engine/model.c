/* Opening a model: map the two files, check every number in the plan once, pick a variant, find its kernels. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "affinity.h"
#include "cpu.h"
#include "internal.h"
#include "processors.h"
#include "tower.h"

#if defined(__x86_64__)
enum { THIS_ARCH = 1 };
#else
enum { THIS_ARCH = 2 };
#endif

enum { COLUMN_MULTIPLE = 64, MAX_SIDE = 1 << 24, MAX_OPS = 1 << 16, MAX_LAYERS = 1024 };

ev_status ev_map_file(const char *directory, const char *name, ev_mapping *mapping) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return ev_fail(EV_ERROR_USAGE, "the package path is longer than %zu characters", sizeof path - 1);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return ev_fail(EV_ERROR_PACKAGE, "cannot open %s: %s", path, strerror(errno));
    const int64_t size = lseek(file, 0, SEEK_END); /* not fstat: its struct differs between C libraries */
    void *data = MAP_FAILED;
    if (size > 0) data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (data == MAP_FAILED) return ev_fail(EV_ERROR_PACKAGE, "cannot map %s (%lld bytes)", path, (long long)size);
    *mapping = (ev_mapping){data, size};
    return EV_OK;
}

static int inside(uint64_t offset, uint64_t size, uint64_t total) { return offset <= total && size <= total - offset; }

static int weights_inside(uint64_t offset, uint64_t size, uint64_t total, int optional) {
    return (optional && offset == EV_NONE) || (offset % 64 == 0 && inside(offset, size, total));
}

static ev_status bad_op(uint32_t index, const char *what) {
    return ev_fail(EV_ERROR_PACKAGE, "plan.bin: operation %u: %s; compile the package again", index, what);
}

static ev_status check_matrix(const ev_op *op, uint32_t index, uint64_t total) {
    const uint64_t n = (uint64_t)op->n, k = (uint64_t)op->k, groups = n * (k / (uint64_t)op->group);
    if (op->bits != 4 && op->bits != 8) return bad_op(index, "bits must be 4 or 8");
    if (!weights_inside(op->weight, n * k / (op->bits == 4 ? 2 : 1), total, 0)) return bad_op(index, "weights outside weights.bin");
    if (!weights_inside(op->scales, groups * 2, total, 0)) return bad_op(index, "scales outside weights.bin");
    if ((op->flags & EV_FLAG_ZERO_POINT) && !weights_inside(op->zeros, groups, total, 0)) return bad_op(index, "zero points outside weights.bin");
    return EV_OK;
}

/* Every size and offset is checked here, so that running needs no checks. */
static ev_status check_op(const ev_model *model, const ev_plan_graph *graph, uint32_t index) {
    const ev_op *op = &model->ops[index];
    const uint64_t total = model->header->weights_bytes, arena = graph->arena_floats;
    const uint64_t rows = op->flags & EV_FLAG_LAST_ROWS && op->code == EV_OP_GEMM ? EV_MAX_LOGIT_ROWS : (uint64_t)graph->max_rows;
    const int matrix = op->code == EV_OP_EMBED || op->code == EV_OP_QUANTISE || op->code == EV_OP_GEMM;
    if (op->code < EV_OP_EMBED || op->code > EV_OP_ATTEND) return bad_op(index, "unknown code");
    /* What an operation does not use is none or inside too: a pointer is formed from each of these. */
    const uint64_t offsets[] = {op->weight, op->scales, op->zeros, op->bias, op->cos, op->sin, op->centre};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; ++i)
        if (offsets[i] != EV_NONE && offsets[i] > total) return bad_op(index, "an offset outside weights.bin");
    if (matrix) {
        if (op->k <= 0 || op->k >= MAX_SIDE || (op->group != 32 && op->group != 64 && op->group != 128) || op->k % op->group)
            return bad_op(index, "k or group is wrong");
        if (op->code != EV_OP_QUANTISE && (op->n <= 0 || op->n >= MAX_SIDE || op->n % COLUMN_MULTIPLE)) return bad_op(index, "n is wrong");
    }
    switch (op->code) {
    case EV_OP_EMBED:
        if (!inside(op->out, rows * (uint64_t)op->k, arena)) return bad_op(index, "output outside the arena");
        if (op->n < model->header->vocab_size) return bad_op(index, "the table is smaller than the vocabulary");
        return check_matrix(op, index, total);
    case EV_OP_QUANTISE:
        if (!inside(op->in, rows * (uint64_t)op->k, arena)) return bad_op(index, "input outside the arena");
        if ((op->flags & (EV_FLAG_NORM_RMS | EV_FLAG_NORM_LAYER)) && !weights_inside(op->weight, (uint64_t)op->k * 4, total, 0))
            return bad_op(index, "norm weight outside weights.bin");
        if ((op->flags & EV_FLAG_NORM_LAYER) && !weights_inside(op->bias, (uint64_t)op->k * 4, total, 0))
            return bad_op(index, "norm bias outside weights.bin");
        return EV_OK;
    case EV_OP_GEMM: {
        const uint64_t width = (uint64_t)op->n / (op->flags & EV_FLAG_SWIGLU ? 2 : 1);
        if (!inside(op->out, rows * width, arena)) return bad_op(index, "output outside the arena");
        if (!weights_inside(op->bias, (uint64_t)op->n * 4, total, 1)) return bad_op(index, "bias outside weights.bin");
        return check_matrix(op, index, total);
    }
    default: {
        if (op->heads <= 0 || op->kv_heads <= 0 || op->heads > 1024 || op->heads % op->kv_heads ||
            (op->head_dim != 64 && op->head_dim != 128) || op->layer < 0 || (uint32_t)op->layer >= model->header->n_layers)
            return bad_op(index, "heads, head_dim or layer is wrong");
        const uint64_t head = (uint64_t)op->head_dim, q = (uint64_t)op->heads * head, kv = (uint64_t)op->kv_heads * head;
        if ((uint64_t)op->n < q + 2 * kv || (uint64_t)op->n >= MAX_SIDE) return bad_op(index, "the width of qkv is wrong");
        if (!inside(op->in, rows * (uint64_t)op->n, arena)) return bad_op(index, "input outside the arena");
        if (op->code == EV_OP_ATTEND) return inside(op->out, rows * q, arena) ? EV_OK : bad_op(index, "output outside the arena");
        const int computed = op->sin == EV_NONE && model->header->version != EV_PLAN_VERSION_TABLES;
        const uint64_t table = (computed ? 1 : (uint64_t)model->header->max_positions) * head / 2 * 4;
        if (!weights_inside(op->cos, table, total, 0) || !weights_inside(op->sin, table, total, computed) ||
            !weights_inside(op->centre, kv * 4, total, 0))
            return bad_op(index, "tables outside weights.bin");
        return EV_OK;
    }
    }
}

/* What one operation leaves for another is what that one reads: activation codes, and the rows of a layer's cache. */
static ev_status check_order(const ev_model *model, const ev_plan_graph *graph) {
    uint32_t appends[MAX_LAYERS] = {0}; /* per layer the number of the operation that writes its cache, plus 1 */
    const ev_op *quantised = NULL, *first = NULL;
    for (uint32_t i = graph->first_op; i < graph->first_op + graph->n_ops; ++i) {
        const ev_op *op = &model->ops[i];
        if (op->code == EV_OP_QUANTISE) quantised = op;
        if (op->code == EV_OP_GEMM && (!quantised || quantised->k != op->k || quantised->group != op->group))
            return bad_op(i, "it reads activations that were not quantised for it");
        if (op->code == EV_OP_APPEND) {
            if (appends[op->layer]) return bad_op(i, "the cache of its layer is written twice");
            appends[op->layer] = i + 1;
            if (first && (first->cos != op->cos || first->sin != op->sin || first->head_dim != op->head_dim))
                return bad_op(i, "its layer turns by other frequencies than the first");
            if (!first) first = op;
        }
        if (op->code == EV_OP_ATTEND) {
            const ev_op *append = appends[op->layer] ? &model->ops[appends[op->layer] - 1] : NULL;
            if (!append || append->kv_heads != op->kv_heads || append->head_dim != op->head_dim)
                return bad_op(i, "the cache of its layer is not written as it is read");
        }
    }
    return EV_OK;
}

static ev_status check_plan(ev_model *model) {
    const ev_mapping *file = &model->plan_file;
    const ev_plan_header *header = file->data;
    if (file->size < (int64_t)sizeof *header || header->magic != EV_PLAN_MAGIC)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin is not an edgevlm plan");
    if (header->version != EV_PLAN_VERSION && header->version != EV_PLAN_VERSION_TABLES)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin has version %u, this library reads %u; compile the package again", header->version, EV_PLAN_VERSION);
    if (header->arch != THIS_ARCH)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin is for architecture %u, this library is %d; compile the package for this target", header->arch, THIS_ARCH);
    if (header->n_graphs == 0 || header->n_graphs > 8 || header->n_ops == 0 || header->n_ops > MAX_OPS || header->n_layers == 0 ||
        header->n_layers > MAX_LAYERS || header->hidden_size <= 0 || header->hidden_size >= MAX_SIDE || header->vocab_size <= 0 ||
        header->vocab_size >= MAX_SIDE || header->max_positions <= 0 || header->max_positions >= MAX_SIDE || header->chunk_tokens <= 0 ||
        header->chunk_tokens > 1024)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin: a number in the header is out of range");
    const uint64_t expected = sizeof *header + header->n_graphs * sizeof(ev_plan_graph) + header->n_ops * sizeof(ev_op) + header->n_layers * 2ull;
    if ((uint64_t)file->size != expected)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin has %lld bytes, its header asks for %llu; it is truncated or damaged", (long long)file->size, (unsigned long long)expected);
    if ((uint64_t)model->weights_file.size != header->weights_bytes)
        return ev_fail(EV_ERROR_PACKAGE, "weights.bin has %lld bytes, plan.bin expects %llu", (long long)model->weights_file.size, (unsigned long long)header->weights_bytes);
    model->header = header;
    model->graphs = (const ev_plan_graph *)(header + 1);
    model->ops = (const ev_op *)(model->graphs + header->n_graphs);
    model->kv_bits = (const uint8_t *)(model->ops + header->n_ops);
    model->weights = model->weights_file.data;
    uint32_t next = 0;
    for (uint32_t g = 0; g < header->n_graphs; ++g) {
        const ev_plan_graph *graph = &model->graphs[g];
        if (graph->first_op != next || graph->n_ops > header->n_ops - next || graph->max_rows <= 0 || graph->max_rows > 4096 ||
            graph->arena_floats > (1ull << 32))
            return ev_fail(EV_ERROR_PACKAGE, "plan.bin: graph %u is out of range", g);
        next += graph->n_ops;
        if (graph->kind == 1) {
            const ev_status status = ev_check_tower(model, graph);
            if (status) return status;
            continue;
        }
        for (uint32_t i = graph->first_op; i < next; ++i) {
            const ev_status status = check_op(model, graph, i);
            if (status) return status;
        }
        const ev_status status = check_order(model, graph);
        if (status) return status;
    }
    const ev_plan_graph *decoder = &model->graphs[0];
    if (decoder->kind == 1 && header->n_graphs == 1) return EV_OK; /* a vision encoder alone */
    if (decoder->kind != 0 || decoder->max_rows < header->chunk_tokens || decoder->n_ops < 3 || model->ops[0].code != EV_OP_EMBED)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin: the first graph is not a decoder");
    if (!inside(decoder->output, EV_MAX_LOGIT_ROWS * (uint64_t)model->ops[decoder->n_ops - 1].n, decoder->arena_floats) ||
        !inside(decoder->input, (uint64_t)header->chunk_tokens * (uint64_t)header->hidden_size, decoder->arena_floats) ||
        model->ops[decoder->n_ops - 1].code != EV_OP_GEMM || model->ops[0].k != header->hidden_size ||
        model->ops[decoder->n_ops - 1].n < header->vocab_size)
        return ev_fail(EV_ERROR_PACKAGE, "plan.bin: the decoder's input or output is out of range");
    return EV_OK;
}

static int runs_here(const ev_variant *variant) {
    for (const char *const *feature = variant->features; *feature; ++feature)
        if (!ev_cpu_has(*feature)) return 0;
    return 1;
}

int32_t ev_variants(const char **names, int32_t capacity) {
    int32_t count = 0;
    for (int32_t i = 0; i < ev_variant_count; ++i)
        if (runs_here(&ev_variant_table[i])) {
            if (count < capacity) names[count] = ev_variant_table[i].name;
            ++count;
        }
    return count;
}

static ev_status pick_variant(ev_model *model, const char *wanted) {
    for (int32_t i = 0; i < ev_variant_count; ++i) {
        const ev_variant *variant = &ev_variant_table[i];
        if (wanted && strcmp(wanted, variant->name)) continue;
        if (runs_here(variant)) {
            model->variant = variant;
            return EV_OK;
        }
        if (wanted) return ev_fail(EV_ERROR_BACKEND, "this CPU lacks a feature that the variant '%s' needs", wanted);
    }
    if (wanted) return ev_fail(EV_ERROR_USAGE, "there is no variant '%s' in this library", wanted);
    return ev_fail(EV_ERROR_BACKEND, "this CPU is below the oldest variant of this library ('%s'); load the package with onnxruntime", ev_variant_table[ev_variant_count - 1].name);
}

ev_any_fn ev_find_kernel(const ev_model *model, const char *name) {
    for (int32_t i = 0; i < model->variant->n_kernels; ++i)
        if (!strcmp(model->variant->kernels[i].name, name)) return model->variant->kernels[i].function;
    ev_fail(EV_ERROR_BACKEND, "this library has no kernel '%s' for '%s'", name, model->variant->name);
    return NULL;
}

static ev_status find_kernels(ev_model *model) {
    static const char *const norms[] = {"none", "rms", "layer"};
    const ev_plan_graph *tower = ev_tower_graph(model);
    for (uint32_t i = 0; i < model->header->n_ops; ++i) {
        const ev_op *op = &model->ops[i];
        ev_op_kernels *kernels = &model->kernels[i];
        if (tower && i >= tower->first_op && i - tower->first_op < tower->n_ops) {
            const ev_status status = ev_find_tower_kernels(model, op, kernels);
            if (status) return status;
            continue;
        }
        const char *zero = op->flags & EV_FLAG_ZERO_POINT ? "z" : "", *swiglu = op->flags & EV_FLAG_SWIGLU ? "_swiglu" : "";
        char name[64];
        int found = 1;
#define FIND(field, ...) (snprintf(name, sizeof name, __VA_ARGS__), found = found && (kernels->field = ev_find_kernel(model, name)) != NULL)
        switch (op->code) {
        case EV_OP_EMBED: FIND(single, "embed_w%dg%d%s", op->bits, op->group, zero); break;
        case EV_OP_QUANTISE:
            FIND(single, "quantise_%s_g%d", norms[op->flags & EV_FLAG_NORM_RMS ? 1 : op->flags & EV_FLAG_NORM_LAYER ? 2 : 0], op->group);
            break;
        case EV_OP_GEMM:
            FIND(prefill, "gemm_w%dg%d%s%s_prefill", op->bits, op->group, zero, swiglu);
            FIND(batch, "gemm_w%dg%d%s%s_batch", op->bits, op->group, zero, swiglu);
            FIND(decode, "gemm_w%dg%d%s%s_decode", op->bits, op->group, zero, swiglu);
            break;
        default:
            for (int32_t form = 0; form < EV_N_FORMS; ++form) {
                FIND(append[form], "append_e%d_%s", op->head_dim, ev_cache_forms[form].name);
                FIND(attend_prefill[form], "attend_e%d_%s_prefill", op->head_dim, ev_cache_forms[form].name);
                FIND(attend_decode[form], "attend_e%d_%s_decode", op->head_dim, ev_cache_forms[form].name);
            }
            FIND(merge, "merge_e%d", op->head_dim);
        }
#undef FIND
        if (!found) return EV_ERROR_BACKEND;
    }
    return EV_OK;
}

/* More would cost memory and gain nothing. Eight are always allowed, so that whatever a phone can do can be tried anywhere. */
enum { ALWAYS_ALLOWED_THREADS = 8 };

/* The fast cores, at most 4, or the processors that this thread may use, at most 8. */
static int32_t default_threads(int32_t n_fast) {
    const int32_t n = ev_usable_cpus();
    if (n_fast > 0) return n_fast > 4 ? 4 : n_fast;
    return n > 8 ? 8 : n;
}

static ev_status check_threads(int32_t n_threads) {
    const int32_t cpus = ev_machine_cpus(), usable = ev_usable_cpus(), most = cpus > usable ? cpus : usable;
    if (n_threads >= 0 && n_threads <= (most > ALWAYS_ALLOWED_THREADS ? most : ALWAYS_ALLOWED_THREADS)) return EV_OK;
    return ev_fail(EV_ERROR_USAGE, "%d threads were asked for, this machine has %d CPUs and this process may use %d of them; 0 takes what it may use",
                   n_threads, most, usable);
}

ev_status ev_model_open(const char *directory, const ev_model_options *options, ev_model **result) {
    *result = NULL;
    ev_status status = options ? check_threads(options->n_threads) : EV_OK;
    if (status) return status;
    ev_model *model = calloc(1, sizeof *model);
    if (!model) return ev_fail(EV_ERROR_BACKEND, "out of memory");
    status = (model->directory = strdup(directory)) ? EV_OK : ev_fail(EV_ERROR_BACKEND, "out of memory");
    if (!status) status = ev_map_file(directory, "plan.bin", &model->plan_file);
    if (!status) status = ev_map_file(directory, "weights.bin", &model->weights_file);
    if (!status) status = check_plan(model);
    if (!status) status = pick_variant(model, options ? options->variant : NULL);
    if (!status && !(model->kernels = calloc(model->header->n_ops, sizeof *model->kernels))) status = ev_fail(EV_ERROR_BACKEND, "out of memory");
    if (!status) status = find_kernels(model);
    if (!status) {
        const int32_t n_fast = options && options->fast_cores ? ev_fast_cpus(&model->cpus) : 0;
        const int32_t n_threads = options && options->n_threads > 0 ? options->n_threads : default_threads(n_fast);
        model->pool = ev_pool_new_on(n_threads, model->cpus);
        if (!model->pool) status = ev_fail(EV_ERROR_BACKEND, "cannot start %d threads", n_threads);
    }
    if (status) {
        ev_model_close(model);
        return status;
    }
    *result = model;
    return EV_OK;
}

void ev_model_info_get(const ev_model *model, ev_model_info *info) {
    const ev_plan_header *header = model->header;
    *info = (ev_model_info){header->hidden_size, header->vocab_size, (int32_t)header->n_layers, header->max_positions, header->chunk_tokens,
                            (int64_t)header->weights_bytes, ev_pool_threads(model->pool), model->variant->name};
}

void ev_unmap(ev_mapping *mapping) {
    if (mapping->data) munmap(mapping->data, (size_t)mapping->size);
}

void ev_model_close(ev_model *model) {
    if (!model) return;
    ev_pool_free(model->pool);
    free(model->kernels);
    ev_unmap(&model->plan_file);
    ev_unmap(&model->weights_file);
    free(model->directory);
    free(model);
}
