/* What tiling.c, image.c and resample.c share. */
#ifndef EV_PICTURE_H
#define EV_PICTURE_H

#include "edgevlm.h"

ev_status ev_fail(ev_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

ev_status ev_check_image_spec(const ev_image_spec *spec);

/* One axis of a resize as Pillow computes it: output `i` is the sum of n[i] inputs from first[i], weighted with
 * weights[i * taps ...] in units of 2^-22. */
typedef struct {
    int32_t n_in, n_out, taps;
    int32_t *first, *n;
    int32_t *weights;
} ev_axis;

/* Inputs of one output at most. */
int32_t ev_axis_taps(int32_t n_in, int32_t n_out, int32_t resample);
/* Fills the tables of `axis`; `room` holds `taps` doubles. */
void ev_axis_fill(ev_axis *axis, int32_t resample, double *room);

enum {
    EV_ROWS = 16,     /* rows that are resampled horizontally together: their bytes lie side by side */
    EV_ROW_ALIGN = 64 /* length of a row buffer is a multiple of it */
};

/* The two sums, as this CPU does them best; the results are the same. */
typedef struct {
    /* EV_ROWS rows at once: `block` (n_in, 3, EV_ROWS) holds their pixels; columns begin..end-1 go to rows[r] (n_out, 3). */
    void (*columns)(const ev_axis *axis, const uint8_t *block, int32_t begin, int32_t end, uint8_t *const *rows);
    /* Bytes begin..end-1 (multiples of EV_ROW_ALIGN) of the weighted sum of n rows. */
    void (*row)(const uint8_t *const *rows, const int32_t *weights, int32_t n, int32_t begin, int32_t end, uint8_t *out);
} ev_sums;

ev_sums ev_pick_sums(void);

#endif
