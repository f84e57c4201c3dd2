/* Random and absurd specs, sizes, plans and buffers for the engine's pictures and its sampler. Buffers have exactly the
 * size that the engine is told, so that the address sanitizer sees each byte outside. Prints how many calls were
 * carried out and how many refused, and a digest of all plans, pixels and tokens, which must be the same on every
 * machine. With -DLIE the tiles' buffer is one byte shorter than told: it must be caught. */
#include <stdio.h>
#include <stdlib.h>

#include "edgevlm.h"
#include "random.h"

static uint64_t digest = 0xcbf29ce484222325ull;

static void digest_bytes(const void *bytes, int64_t size) {
    for (int64_t i = 0; i < size; ++i) digest = (digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ull;
}

static int64_t prepared, refused_plans, refused_tiles, drawn, refused_draws;

static ev_image_spec random_spec(void) {
    ev_image_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.scheme = below(30) ? below(5) : number(9);
    spec.tile_px = number(below(4) ? 40 : 400);
    spec.resample = below(30) ? below(4) : number(9);
    spec.thumbnail = below(30) ? below(3) : number(9);
    spec.max_rows = number(6);
    spec.max_cols = number(6);
    spec.max_tiles = number(20);
    spec.longest_edge_px = below(3) ? number(200) : 0;
    spec.n_pinpoints = number(EV_MAX_PINPOINTS);
    for (int i = 0; i < EV_MAX_PINPOINTS; ++i)
        for (int side = 0; side < 2; ++side) {
            const int64_t length = (int64_t)number(3) * spec.tile_px;
            spec.grid_pinpoints[i][side] = length < INT32_MIN || length > INT32_MAX ? number(99) : (int32_t)length;
        }
    spec.relaxed_alpha = real(0.1);
    spec.rescale_factor = real(1.0 / 255);
    for (int i = 0; i < 3; ++i) {
        spec.image_mean[i] = real(0.5);
        spec.image_std[i] = real(0.25);
    }
    return spec;
}

static void damage(void *bytes, size_t size) {
    const int32_t value = number(300);
    memcpy((char *)bytes + (size_t)below((int32_t)(size / 4)) * 4, &value, 4);
}

static void try_picture(void) {
    const ev_image_spec spec = random_spec();
    const int32_t most = below(8) ? 60 : 3000;
    int32_t height = number(most), width = number(most), upright_height, upright_width;
    const int32_t orientation = below(20) ? below(10) : number(20);
    ev_upright_size(height, width, orientation, &upright_height, &upright_width);
    ev_tile_plan plan;
    if (ev_plan_tiles(upright_height, upright_width, &spec, below(3) ? 0 : number(9), &plan)) {
        ++refused_plans;
        return;
    }
    digest_bytes(&plan, sizeof plan);
    if (!below(8)) damage(&plan, sizeof plan);
    int64_t scratch_bytes;
    const int32_t begin = below(12) ? below(plan.n_tiles > 0 ? plan.n_tiles : 1) : number(9), end = below(12) ? (begin > 0 && begin < 1000 ? begin : 0) + 1 + below(3) : number(9);
    const int64_t count = (int64_t)end - begin;
    if (ev_image_scratch_bytes(&spec, &plan, &scratch_bytes) || scratch_bytes > (1 << 26) || (int64_t)height * width > (1 << 22) || count < 0 ||
        count > 64) {
        ++refused_tiles;
        return;
    }
    const int32_t pixel_bytes = below(20) ? 3 + below(2) : number(5);
    const int64_t row_bytes = below(20) ? (int64_t)width * pixel_bytes + below(9) : number(900);
    const int64_t need = height > 0 && width > 0 ? (int64_t)(height - 1) * row_bytes + (int64_t)width * pixel_bytes : 0;
    const int64_t size = need < 0 || need > (1 << 26) ? 0 : below(20) ? need : need / 2;
    const int64_t area = (int64_t)plan.tile_px * plan.tile_px * 3 * count;
    const int64_t tiles_bytes = area < 0 || area > (1 << 26) ? 1 : area, pixels_bytes = tiles_bytes * 4;
#ifdef LIE
    const int64_t allocated = tiles_bytes - 1;
#else
    const int64_t allocated = tiles_bytes;
#endif
    uint8_t *picture_bytes = malloc(size ? (size_t)size : 1), *tiles = below(2) ? malloc((size_t)allocated) : NULL;
    float *pixels = below(2) ? malloc((size_t)pixels_bytes) : NULL;
    void *scratch = malloc((size_t)scratch_bytes);
    for (int64_t i = 0; i < size; ++i) picture_bytes[i] = (uint8_t)(below(3) ? (i & 1) * 255 : below(256));
    const ev_picture picture = {picture_bytes, size, row_bytes, height, width, pixel_bytes, orientation};
    const ev_status status =
        ev_prepare_tiles(&picture, &spec, &plan, begin, end, tiles, tiles_bytes, pixels, pixels_bytes, scratch, below(20) ? scratch_bytes : scratch_bytes - 1);
    if (status) ++refused_tiles;
    else {
        ++prepared;
        if (tiles) digest_bytes(tiles, tiles_bytes);
        if (pixels) digest_bytes(pixels, pixels_bytes);
    }
    free(picture_bytes);
    free(tiles);
    free(pixels);
    free(scratch);
}

static void try_sampler(void) {
    const int32_t n = number(300);
    ev_sampler *sampler;
    if (n > 1 << 16 || ev_sampler_new(n, &sampler)) {
        ++refused_draws;
        return;
    }
    const ev_sampling_params params = {real(0.8), below(3) ? 0 : number(400), real(0.9), real(0.01), real(1.1), next_random()};
    float *logits = malloc((size_t)n * sizeof *logits);
    const int32_t n_history = below(20);
    int32_t *history = malloc((size_t)n_history * sizeof *history + 1), token;
    for (int32_t i = 0; i < n; ++i) logits[i] = (float)real(((double)below(2001) - 1000) / 100);
    for (int32_t i = 0; i < n_history; ++i) history[i] = below(60) ? below(n) : number(400);
    if (ev_sampler_begin(sampler, &params)) ++refused_draws;
    if (ev_sampler_next(sampler, logits, history, n_history, &token)) ++refused_draws;
    else if (token < 0 || token >= n) abort();
    else {
        ++drawn;
        digest_bytes(&token, sizeof token);
    }
    free(logits);
    free(history);
    ev_sampler_free(sampler);
}

int main(int argc, char **argv) {
    const int64_t trials = argc > 1 ? atoll(argv[1]) : 1000;
    random_state = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    for (int64_t i = 0; i < trials; ++i) {
        try_picture();
        try_sampler();
    }
    printf("%lld %lld %lld %lld %lld %llu\n", (long long)prepared, (long long)refused_plans, (long long)refused_tiles, (long long)drawn,
           (long long)refused_draws, (unsigned long long)digest);
    return 0;
}
