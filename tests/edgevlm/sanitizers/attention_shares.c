/* Which keys each thread's part of decode attention reads: the engine's own split (run.c), kernels that only write down
 * what they are asked for. `attention_shares HEADS KV_HEADS HEAD_DIM KEYS THREADS` prints "part kv_head begin end". */
#include <stdio.h>
#include <stdlib.h>

#include "run.c"

static int32_t current_part;

static int32_t write_down(const float *q, const void *keys, const float *key_scales, const void *values, const float *value_scales,
                          const int32_t *tree, float *partial, int32_t heads, int32_t kv_heads, int32_t q_stride, int32_t capacity,
                          int32_t n_past, int32_t tree_rows, int32_t window, int32_t kv_head, int32_t row_begin, int32_t row_end,
                          int32_t key_begin, int32_t key_end) {
    (void)q, (void)keys, (void)key_scales, (void)values, (void)value_scales, (void)tree, (void)partial, (void)kv_heads, (void)q_stride;
    (void)capacity, (void)n_past, (void)tree_rows, (void)window;
    if (row_begin == 0 && row_end == heads / kv_heads) printf("%d %d %d %d\n", current_part, kv_head, key_begin, key_end);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const int32_t keys = atoi(argv[4]), threads = atoi(argv[5]);
    const ev_op op = {.heads = atoi(argv[1]), .kv_heads = atoi(argv[2]), .head_dim = atoi(argv[3])};
    ev_layer_cache layer = {0};
    ev_context context = {.layers = &layer};
    ev_op_kernels kernels = {0};
    kernels.attend_decode[0] = kernels.attend_prefill[0] = (ev_any_fn)write_down;
    ev_step_job job = {.context = &context, .op = &op, .kernels = &kernels, .rows = 1, .n_past = keys - 1};
    for (current_part = 0; current_part < threads; ++current_part) attend_decode_task(&job, current_part, threads);
    return 0;
}
