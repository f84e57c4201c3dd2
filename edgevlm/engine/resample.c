/* Pillow's antialiased resize of 8-bit pixels, bit for bit: which inputs an output sees, with which 22-bit weights,
 * and the two sums. Source of the rules: Pillow 13, src/libImaging/Resample.c and (nearest) Geometry.c. */
#include "cpu.h"
#include "picture.h"
#include "sine.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

enum { WEIGHT_BITS = 22, HALF = 1 << (WEIGHT_BITS - 1) };

static const double PI = 3.14159265358979323846;

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x = x * PI;
    double sine, cosine;
    ev_sine_cosine(x, &sine, &cosine);
    return sine / x;
}

static double support(int32_t resample) { return resample == EV_LANCZOS ? 3.0 : resample == EV_BICUBIC ? 2.0 : 1.0; }

static double filter(int32_t resample, double x) {
    const double positive = x < 0.0 ? -x : x;
    switch (resample) {
    case EV_LANCZOS: return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    case EV_BICUBIC:
        if (positive < 1.0) return (1.5 * positive - 2.5) * positive * positive + 1;
        return positive < 2.0 ? (((positive - 5) * positive + 8) * positive - 4) * -0.5 : 0.0;
    default: return positive < 1.0 ? 1.0 - positive : 0.0;
    }
}

static double reach(int32_t n_in, int32_t n_out, int32_t resample) {
    const double scale = (double)n_in / n_out;
    return support(resample) * (scale < 1.0 ? 1.0 : scale);
}

int32_t ev_axis_taps(int32_t n_in, int32_t n_out, int32_t resample) {
    if (resample == EV_NEAREST) return 1;
    const double value = reach(n_in, n_out, resample);
    const int32_t whole = (int32_t)value;
    return (whole + (value > whole)) * 2 + 1;
}

/* The position is added up and not multiplied, as Pillow does; one that ends outside the picture gives black. */
static void fill_nearest(ev_axis *axis) {
    const double scale = (double)axis->n_in / axis->n_out;
    double position = scale * 0.5;
    for (int32_t i = 0; i < axis->n_out; ++i) {
        const int32_t place = (int32_t)position, inside = place < axis->n_in;
        axis->first[i] = inside ? place : axis->n_in - 1;
        axis->n[i] = 1;
        axis->weights[i] = inside ? 1 << WEIGHT_BITS : 0;
        position += scale;
    }
}

void ev_axis_fill(ev_axis *axis, int32_t resample, double *room) {
    if (resample == EV_NEAREST) {
        fill_nearest(axis);
        return;
    }
    const double scale = (double)axis->n_in / axis->n_out, filter_scale = scale < 1.0 ? 1.0 : scale;
    const double radius = reach(axis->n_in, axis->n_out, resample), step = 1.0 / filter_scale;
    for (int32_t i = 0; i < axis->n_out; ++i) {
        const double centre = (i + 0.5) * scale;
        int32_t first = (int32_t)(centre - radius + 0.5), last = (int32_t)(centre + radius + 0.5);
        if (first < 0) first = 0;
        if (last > axis->n_in) last = axis->n_in;
        const int32_t n = last - first;
        double total = 0.0;
        for (int32_t k = 0; k < n; ++k) {
            room[k] = filter(resample, (k + first - centre + 0.5) * step);
            total += room[k];
        }
        int32_t *weights = axis->weights + (int64_t)i * axis->taps;
        for (int32_t k = 0; k < n; ++k) {
            const double weight = total != 0.0 ? room[k] / total : room[k];
            weights[k] = (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << WEIGHT_BITS));
        }
        axis->first[i] = first;
        axis->n[i] = n;
    }
}

static inline uint8_t clip(int32_t sum) {
    const int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

#define INLINE static inline __attribute__((always_inline))

INLINE void columns(const ev_axis *axis, const uint8_t *restrict block, int32_t begin, int32_t end, uint8_t *const *rows) {
    for (int32_t i = begin; i < end; ++i) {
        int32_t sums[3 * EV_ROWS];
        for (int r = 0; r < 3 * EV_ROWS; ++r) sums[r] = HALF;
        const uint8_t *restrict in = block + (int64_t)axis->first[i] * (3 * EV_ROWS);
        const int32_t *restrict weights = axis->weights + (int64_t)i * axis->taps;
        for (int32_t k = 0; k < axis->n[i]; ++k, in += 3 * EV_ROWS)
            for (int r = 0; r < 3 * EV_ROWS; ++r) sums[r] += in[r] * weights[k];
        for (int r = 0; r < EV_ROWS; ++r)
            for (int channel = 0; channel < 3; ++channel) rows[r][3 * (int64_t)i + channel] = clip(sums[channel * EV_ROWS + r]);
    }
}

/* Constant lengths, so that compilers use vectors at -O2 too. */
INLINE void one_row(const uint8_t *const *rows, const int32_t *weights, int32_t n, int32_t begin, int32_t end, uint8_t *out) {
    for (int32_t x = begin; x < end; x += EV_ROW_ALIGN) {
        int32_t sums[EV_ROW_ALIGN];
        for (int i = 0; i < EV_ROW_ALIGN; ++i) sums[i] = HALF;
        for (int32_t k = 0; k < n; ++k) {
            const uint8_t *restrict in = rows[k] + x;
            const int32_t weight = weights[k];
            for (int i = 0; i < EV_ROW_ALIGN; ++i) sums[i] += in[i] * weight;
        }
        for (int i = 0; i < EV_ROW_ALIGN; ++i) out[x + i] = clip(sums[i]);
    }
}

static void columns_plain(const ev_axis *axis, const uint8_t *block, int32_t begin, int32_t end, uint8_t *const *rows) {
    columns(axis, block, begin, end, rows);
}

static void one_row_plain(const uint8_t *const *rows, const int32_t *weights, int32_t n, int32_t begin, int32_t end, uint8_t *out) {
    one_row(rows, weights, n, begin, end, out);
}

#if defined(__x86_64__)
/* Plain x86-64 has no 32-bit vector product. */
__attribute__((target("avx2"))) static void columns_avx2(const ev_axis *axis, const uint8_t *block, int32_t begin, int32_t end, uint8_t *const *rows) {
    columns(axis, block, begin, end, rows);
}

__attribute__((target("avx2"))) static void one_row_avx2(const uint8_t *const *rows, const int32_t *weights, int32_t n, int32_t begin, int32_t end,
                                                         uint8_t *out) {
    one_row(rows, weights, n, begin, end, out);
}
#endif

ev_sums ev_pick_sums(void) {
#if defined(__x86_64__)
    if (ev_cpu_has("avx2")) return (ev_sums){columns_avx2, one_row_avx2};
#endif
    return (ev_sums){columns_plain, one_row_plain};
}
