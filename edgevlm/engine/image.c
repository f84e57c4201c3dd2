/* From the pixels of a picture to tiles. The picture's rows are read once, upright, in order, and pushed through a
 * chain of passes that keep only the rows their filters still need; the last one writes its rows into the tiles. A
 * phone's photo so needs a few hundred KB of scratch beside its own pixels, and no turned copy. */
#include <string.h>

#include "layout.h"
#include "picture.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

enum { MAX_SIDE = 1 << 18, MAX_PASSES = 6 };

/* Where finished rows go, normalised or not; `tile` is the tile's place in the prompt. */
typedef struct {
    const ev_tile_plan *plan;
    int32_t tile_begin, tile_end;
    int32_t first_grid_tile; /* 1 behind a thumbnail */
    uint8_t *tiles;
    float *pixels;
    float values[3][256];    /* normalised value of a byte, per channel */
} ev_tile_writer;

enum { COPY = 0, ACROSS = 1, DOWN = 2 };
enum { TO_NOWHERE = 0, TO_GRID = 1, TO_THUMBNAIL = 2 };

/* One axis of one resize. Input rows come in order; output rows leave in order. */
typedef struct ev_pass {
    int kind;
    ev_axis axis;
    int32_t width;              /* of the rows that leave */
    int32_t row_begin, row_end; /* output rows that are wanted */
    int32_t col_begin, col_end; /* output columns that are wanted */
    int32_t in_begin, in_end;   /* input rows that they need */
    int32_t next_out;           /* DOWN: the output row that is due */
    int32_t row_bytes;
    uint8_t *rows;              /* DOWN: the last `taps` input rows, row y in place y % taps; ACROSS: EV_ROWS output rows */
    uint8_t *block;             /* ACROSS: EV_ROWS input rows, (n_in, 3, EV_ROWS) */
    uint8_t *out;               /* DOWN: one output row */
    const uint8_t **inputs;     /* DOWN: the rows of one output row */
    struct ev_pass *next;
    int target;
} ev_pass;

typedef struct {
    ev_pass passes[MAX_PASSES];
    int n_passes;
    int n_grid_passes;          /* the first ones; the rest are the thumbnail's */
    int thumbnail_of_canvas;    /* its rows come from the grid's last pass, else from the picture */
    double *room;
    uint8_t *source_rows;       /* EV_ROWS upright rows */
    int32_t source_bytes;
    ev_tile_writer writer;
    ev_sums sums;
} ev_pipeline;

static int is_transposed(int32_t orientation) { return orientation >= 5 && orientation <= 8; }

void ev_upright_size(int32_t height, int32_t width, int32_t orientation, int32_t *upright_height, int32_t *upright_width) {
    *upright_height = is_transposed(orientation) ? width : height;
    *upright_width = is_transposed(orientation) ? height : width;
}

/* ---- Checks ---- */

static int is_side(int64_t value) { return value >= 1 && value <= MAX_SIDE; }

static ev_status check_plan(const ev_image_spec *spec, const ev_tile_plan *plan) {
    const ev_status status = ev_check_image_spec(spec);
    if (status) return status;
    if (!plan) return ev_fail(EV_ERROR_USAGE, "no tile plan was given");
    if (plan->scheme != spec->scheme || plan->tile_px != spec->tile_px)
        return ev_fail(EV_ERROR_USAGE, "the tile plan was made for another spec");
    if (plan->height < 1 || plan->width < 1 || plan->height > EV_MAX_PICTURE_SIDE || plan->width > EV_MAX_PICTURE_SIDE)
        return ev_fail(EV_ERROR_USAGE, "a picture of %d x %d pixels: sides must be 1 to %d", plan->width, plan->height, EV_MAX_PICTURE_SIDE);
    const int64_t rows = (int64_t)plan->grid_rows * plan->tile_px, cols = (int64_t)plan->grid_cols * plan->tile_px;
    int good = is_side(rows) && is_side(cols) && plan->n_resizes >= 1 && plan->n_resizes <= 2;
    for (int32_t i = 0; good && i < plan->n_resizes; ++i) good = is_side(plan->resizes[i][0]) && is_side(plan->resizes[i][1]);
    if (good) {
        const int32_t *size = plan->resizes[plan->n_resizes - 1];
        good = plan->offset[0] >= 0 && plan->offset[1] >= 0 && plan->offset[0] <= rows - size[0] && plan->offset[1] <= cols - size[1];
    }
    good = good && plan->thumbnail >= EV_THUMBNAIL_NONE && plan->thumbnail <= EV_THUMBNAIL_LAST &&
           plan->n_tiles == (int64_t)plan->grid_rows * plan->grid_cols + (plan->thumbnail != EV_THUMBNAIL_NONE);
    return good ? EV_OK : ev_fail(EV_ERROR_USAGE, "the tile plan is damaged; take it from ev_plan_tiles");
}

static ev_status check_picture(const ev_picture *picture, const ev_tile_plan *plan) {
    if (!picture || !picture->pixels) return ev_fail(EV_ERROR_USAGE, "no pixels were given");
    int32_t height, width;
    ev_upright_size(picture->height, picture->width, picture->orientation, &height, &width);
    if (height != plan->height || width != plan->width)
        return ev_fail(EV_ERROR_USAGE, "the plan is for %d x %d pixels, the upright picture has %d x %d", plan->width, plan->height, width, height);
    if (picture->pixel_bytes != 3 && picture->pixel_bytes != 4)
        return ev_fail(EV_ERROR_USAGE, "a pixel has %d bytes, expected 3 or 4", picture->pixel_bytes);
    const int64_t last_row = (int64_t)picture->width * picture->pixel_bytes;
    if (picture->row_bytes < last_row)
        return ev_fail(EV_ERROR_USAGE, "a row of %d pixels has %lld bytes, expected at least %lld", picture->width, (long long)picture->row_bytes, (long long)last_row);
    if (picture->size_bytes < last_row || (picture->size_bytes - last_row) / picture->row_bytes < picture->height - 1)
        return ev_fail(EV_ERROR_USAGE, "%lld bytes are too few for a picture of %d x %d", (long long)picture->size_bytes, picture->width, picture->height);
    return EV_OK;
}

/* ---- Tiles ---- */

static void fill_values(ev_tile_writer *writer, const ev_image_spec *spec) {
    for (int channel = 0; channel < 3; ++channel) {
        const float mean = (float)spec->image_mean[channel], std = (float)spec->image_std[channel];
        for (int value = 0; value < 256; ++value) {
            const float rescaled = (float)((double)value * spec->rescale_factor);
            writer->values[channel][value] = (rescaled - mean) / std;
        }
    }
}

static void write_run(const ev_tile_writer *writer, int32_t tile, int32_t y, int32_t x, int32_t n, const uint8_t *row) {
    const int64_t side = writer->plan->tile_px, slot = tile - writer->tile_begin;
    if (writer->tiles) memcpy(writer->tiles + ((slot * side + y) * side + x) * 3, row, (size_t)n * 3);
    if (!writer->pixels) return;
    for (int channel = 0; channel < 3; ++channel) {
        const float *values = writer->values[channel];
        float *out = writer->pixels + ((slot * 3 + channel) * side + y) * side + x;
        for (int32_t i = 0; i < n; ++i) out[i] = values[row[3 * (int64_t)i + channel]];
    }
}

/* Row `y` of the resized picture, spread over the tiles that it crosses. */
static void write_grid_row(const ev_tile_writer *writer, int32_t y, const uint8_t *row) {
    const ev_tile_plan *plan = writer->plan;
    const int32_t side = plan->tile_px, width = plan->resizes[plan->n_resizes - 1][1], left = plan->offset[1];
    const int32_t canvas_y = y + plan->offset[0], tile_row = canvas_y / side;
    for (int32_t x = 0; x < width;) {
        const int32_t canvas_x = x + left, in_tile = canvas_x % side;
        const int32_t n = side - in_tile < width - x ? side - in_tile : width - x;
        const int32_t tile = writer->first_grid_tile + tile_row * plan->grid_cols + canvas_x / side;
        if (tile >= writer->tile_begin && tile < writer->tile_end) write_run(writer, tile, canvas_y % side, in_tile, n, row + 3 * (int64_t)x);
        x += n;
    }
}

/* round(255 * mean) with halves to even, as Python rounds. */
static uint8_t mean_byte(double mean) {
    const double shift = 0x1.8p52;
    return (uint8_t)(int32_t)((mean * 255 + shift) - shift);
}

/* Gives grid tiles that are not wholly covered the colour of the padding. */
static void fill_padding(const ev_tile_writer *writer, const ev_image_spec *spec) {
    const ev_tile_plan *plan = writer->plan;
    const int32_t side = plan->tile_px, *size = plan->resizes[plan->n_resizes - 1];
    uint8_t colour[3] = {0, 0, 0}; /* LLaVA-NeXT pads with zeros before it normalises */
    if (size[0] == plan->grid_rows * side && size[1] == plan->grid_cols * side) return;
    for (int channel = 0; channel < 3 && spec->scheme != EV_SCHEME_LLAVA_NEXT; ++channel) colour[channel] = mean_byte(spec->image_mean[channel]);
    const int64_t area = (int64_t)side * side;
    for (int32_t tile = writer->tile_begin; tile < writer->tile_end; ++tile) {
        const int64_t slot = tile - writer->tile_begin;
        for (int64_t i = 0; writer->tiles && i < area * 3; ++i) writer->tiles[slot * area * 3 + i] = colour[i % 3];
        for (int channel = 0; writer->pixels && channel < 3; ++channel)
            for (int64_t i = 0; i < area; ++i) writer->pixels[(slot * 3 + channel) * area + i] = writer->values[channel][colour[channel]];
    }
}

/* ---- Resizes ---- */

static void push(const ev_pipeline *pipeline, ev_pass *pass, int32_t y, const uint8_t *row);

static void emit(const ev_pipeline *pipeline, const ev_pass *pass, int32_t y, const uint8_t *row) {
    if (pass->next) push(pipeline, pass->next, y, row);
    if (pass->target == TO_GRID) write_grid_row(&pipeline->writer, y, row);
    if (pass->target == TO_THUMBNAIL) {
        const ev_tile_plan *plan = pipeline->writer.plan;
        write_run(&pipeline->writer, plan->thumbnail == EV_THUMBNAIL_FIRST ? 0 : plan->n_tiles - 1, y, 0, plan->tile_px, row);
    }
}

static uint8_t *kept_row(const ev_pass *pass, int32_t y) { return pass->rows + (int64_t)(y % pass->axis.taps) * pass->row_bytes; }

static void push_down(const ev_pipeline *pipeline, ev_pass *pass, int32_t y, const uint8_t *row) {
    const int32_t begin = pass->col_begin * 3 / EV_ROW_ALIGN * EV_ROW_ALIGN;
    const int32_t end = (pass->col_end * 3 + EV_ROW_ALIGN - 1) / EV_ROW_ALIGN * EV_ROW_ALIGN;
    memcpy(kept_row(pass, y), row, (size_t)pass->width * 3);
    for (; pass->next_out < pass->row_end; ++pass->next_out) {
        const int32_t due = pass->next_out, first = pass->axis.first[due], n = pass->axis.n[due];
        if (first + n > y + 1) return;
        for (int32_t k = 0; k < n; ++k) pass->inputs[k] = kept_row(pass, first + k);
        pipeline->sums.row(pass->inputs, pass->axis.weights + (int64_t)due * pass->axis.taps, n, begin, end, pass->out);
        emit(pipeline, pass, due, pass->out);
    }
}

static void push_across(const ev_pipeline *pipeline, const ev_pass *pass, int32_t y, const uint8_t *row) {
    const int32_t lane = (y - pass->in_begin) % EV_ROWS;
    const int64_t bytes = (int64_t)pass->axis.n_in * 3;
    uint8_t *block = pass->block + lane;
    for (int64_t i = 0; i < bytes; ++i) block[i * EV_ROWS] = row[i];
    if (lane != EV_ROWS - 1 && y != pass->in_end - 1) return;
    uint8_t *rows[EV_ROWS];
    for (int32_t i = 0; i < EV_ROWS; ++i) rows[i] = pass->rows + (int64_t)i * pass->row_bytes;
    pipeline->sums.columns(&pass->axis, pass->block, pass->col_begin, pass->col_end, rows);
    for (int32_t i = 0; i <= lane; ++i) emit(pipeline, pass, y - lane + i, rows[i]);
}

static void push(const ev_pipeline *pipeline, ev_pass *pass, int32_t y, const uint8_t *row) {
    if (y < pass->in_begin || y >= pass->in_end) return;
    if (pass->kind == ACROSS) push_across(pipeline, pass, y, row);
    else if (pass->kind == DOWN) push_down(pipeline, pass, y, row);
    else emit(pipeline, pass, y, row);
}

static void add_pass(ev_pipeline *pipeline, int kind, int32_t n_in, int32_t n_out, int32_t width, int32_t resample, ev_layout *layout) {
    ev_pass *pass = &pipeline->passes[pipeline->n_passes++];
    *pass = (ev_pass){.kind = kind, .axis = {.n_in = n_in, .n_out = n_out}, .width = width, .col_end = width};
    if (kind == COPY) return;
    ev_axis *axis = &pass->axis;
    axis->taps = ev_axis_taps(n_in, n_out, resample);
    axis->first = ev_take(layout, n_out * (int64_t)sizeof(int32_t));
    axis->n = ev_take(layout, n_out * (int64_t)sizeof(int32_t));
    axis->weights = ev_take(layout, (int64_t)axis->taps * n_out * (int64_t)sizeof(int32_t));
    pass->row_bytes = (width * 3 + EV_ROW_ALIGN - 1) / EV_ROW_ALIGN * EV_ROW_ALIGN;
    pass->rows = ev_take(layout, (int64_t)pass->row_bytes * (kind == DOWN ? axis->taps : EV_ROWS));
    if (kind == ACROSS) {
        pass->block = ev_take(layout, (int64_t)n_in * 3 * EV_ROWS);
        return;
    }
    pass->out = ev_take(layout, pass->row_bytes);
    pass->inputs = ev_take(layout, (int64_t)axis->taps * (int64_t)sizeof *pass->inputs);
}

/* Passes that change nothing are left out. A picture whose height shrinks by more than twice what its width does is
 * resized vertically first. Source: Pillow 13, Resample.c, ImagingResampleInner. */
static void add_resize(ev_pipeline *pipeline, const int32_t from[2], const int32_t to[2], int32_t resample, ev_layout *layout) {
    const int32_t shorter = from[0] - to[0], narrower = from[1] - to[1];
    const int down_first = shorter > 0 && shorter > 2 * (int64_t)narrower;
    if (down_first && shorter) add_pass(pipeline, DOWN, from[0], to[0], from[1], resample, layout);
    if (narrower) add_pass(pipeline, ACROSS, from[1], to[1], to[1], resample, layout);
    if (!down_first && shorter) add_pass(pipeline, DOWN, from[0], to[0], to[1], resample, layout);
    if (!shorter && !narrower) add_pass(pipeline, COPY, to[0], to[0], to[1], resample, layout);
}

static void build(ev_pipeline *pipeline, const ev_image_spec *spec, const ev_tile_plan *plan, ev_layout *layout) {
    const int32_t picture[2] = {plan->height, plan->width}, thumbnail[2] = {plan->tile_px, plan->tile_px};
    const int32_t *size = picture;
    pipeline->n_passes = 0;
    for (int32_t i = 0; i < plan->n_resizes; ++i) {
        add_resize(pipeline, size, plan->resizes[i], spec->resample, layout);
        size = plan->resizes[i];
    }
    pipeline->n_grid_passes = pipeline->n_passes;
    /* Idefics3 makes the thumbnail from the canvas, everyone else from the picture. */
    pipeline->thumbnail_of_canvas = spec->scheme == EV_SCHEME_TILE_GRID;
    if (plan->thumbnail) add_resize(pipeline, pipeline->thumbnail_of_canvas ? size : picture, thumbnail, spec->resample, layout);
    int32_t taps = 1;
    for (int i = 0; i < pipeline->n_passes; ++i) {
        if (pipeline->passes[i].axis.taps > taps) taps = pipeline->passes[i].axis.taps;
        if (i + 1 < pipeline->n_passes && i + 1 != pipeline->n_grid_passes) pipeline->passes[i].next = &pipeline->passes[i + 1];
    }
    pipeline->room = ev_take(layout, taps * (int64_t)sizeof(double));
    pipeline->source_bytes = (int32_t)ev_aligned(plan->width * 3);
    pipeline->source_rows = ev_take(layout, (int64_t)pipeline->source_bytes * EV_ROWS);
}

ev_status ev_image_scratch_bytes(const ev_image_spec *spec, const ev_tile_plan *plan, int64_t *size_bytes) {
    const ev_status status = check_plan(spec, plan);
    if (status) return status;
    ev_pipeline pipeline;
    ev_layout measure = {NULL, 0};
    build(&pipeline, spec, plan, &measure);
    *size_bytes = measure.used + EV_ALIGNMENT;
    return EV_OK;
}

/* Asks passes first..last for output rows begin..end-1 of the last one. */
static void want_rows(ev_pass *passes, int first, int last, int32_t begin, int32_t end) {
    for (int i = last; i >= first; --i) {
        ev_pass *pass = &passes[i];
        pass->row_begin = pass->next_out = pass->in_begin = begin;
        pass->row_end = pass->in_end = end;
        if (pass->kind == DOWN && begin < end) {
            pass->in_begin = pass->axis.first[begin];
            pass->in_end = pass->axis.first[end - 1] + pass->axis.n[end - 1];
        }
        begin = pass->in_begin;
        end = pass->in_end;
    }
}

static int32_t clamp(int64_t value, int32_t most) { return value < 0 ? 0 : value > most ? most : (int32_t)value; }

/* Limits the work to what the tiles of the range show. */
static void want_tiles(ev_pipeline *pipeline) {
    const ev_tile_writer *writer = &pipeline->writer;
    const ev_tile_plan *plan = writer->plan;
    ev_pass *passes = pipeline->passes;
    const int last_grid = pipeline->n_grid_passes - 1;
    const int32_t side = plan->tile_px, n_grid = plan->grid_rows * plan->grid_cols, *size = plan->resizes[plan->n_resizes - 1];
    const int32_t thumbnail_tile = plan->thumbnail == EV_THUMBNAIL_FIRST ? 0 : plan->n_tiles - 1;
    const int wants_thumbnail = plan->thumbnail && thumbnail_tile >= writer->tile_begin && thumbnail_tile < writer->tile_end;
    const int wants_canvas = wants_thumbnail && pipeline->thumbnail_of_canvas;
    const int32_t begin = clamp((int64_t)writer->tile_begin - writer->first_grid_tile, n_grid);
    const int32_t end = clamp((int64_t)writer->tile_end - writer->first_grid_tile, n_grid);
    int32_t row_begin = 0, row_end = 0;
    if (begin < end) {
        const int64_t first = begin / plan->grid_cols, last = (end - 1) / plan->grid_cols;
        row_begin = clamp(first * side - plan->offset[0], size[0]);
        row_end = clamp((last + 1) * side - plan->offset[0], size[0]);
        passes[last_grid].target = TO_GRID;
        for (int i = last_grid; first == last && !wants_canvas && i >= 0; --i) {
            passes[i].col_begin = clamp((int64_t)(begin % plan->grid_cols) * side - plan->offset[1], size[1]);
            passes[i].col_end = clamp((int64_t)((end - 1) % plan->grid_cols + 1) * side - plan->offset[1], size[1]);
            if (passes[i].kind == ACROSS) break;
        }
    }
    if (wants_thumbnail) {
        passes[pipeline->n_passes - 1].target = TO_THUMBNAIL;
        want_rows(passes, pipeline->n_grid_passes, pipeline->n_passes - 1, 0, side);
    }
    if (wants_canvas) {
        passes[last_grid].next = &passes[last_grid + 1];
        row_begin = 0;
        row_end = size[0];
    }
    want_rows(passes, 0, last_grid, row_begin, row_end);
}

/* Copies upright rows begin..end-1, at most EV_ROWS, into the pipeline's buffer. */
static void read_rows(const ev_pipeline *pipeline, const ev_picture *picture, int32_t begin, int32_t end) {
    const int32_t orientation = picture->orientation, width = pipeline->writer.plan->width;
    const int flip_rows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const int flip_cols = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int64_t down = flip_rows ? -picture->row_bytes : picture->row_bytes, along = flip_cols ? -picture->pixel_bytes : picture->pixel_bytes;
    const uint8_t *corner = picture->pixels + (flip_rows ? (picture->height - 1) * picture->row_bytes : 0) +
                            (flip_cols ? (picture->width - 1) * (int64_t)picture->pixel_bytes : 0);
    const int transposed = is_transposed(orientation);
    const int64_t step_y = transposed ? along : down, step_x = transposed ? down : along;
    /* A turned picture is read along its stored rows, a few pixels of each. */
    const int32_t strip = transposed ? end - begin : 1;
    for (int32_t y = begin; y < end; y += strip)
        for (int32_t x = 0; x < width; ++x)
            for (int32_t r = y; r < y + strip; ++r) {
                const uint8_t *in = corner + r * step_y + x * step_x;
                uint8_t *out = pipeline->source_rows + (int64_t)(r - begin) * pipeline->source_bytes + 3 * (int64_t)x;
                out[0] = in[0];
                out[1] = in[1];
                out[2] = in[2];
            }
}

static void run(ev_pipeline *pipeline, const ev_picture *picture) {
    ev_pass *grid = pipeline->passes, *thumbnail = NULL;
    const int as_stored = picture->pixel_bytes == 3 && (picture->orientation < 2 || picture->orientation > 8);
    int32_t begin = grid->in_begin, end = grid->in_end;
    if (!pipeline->thumbnail_of_canvas && pipeline->n_grid_passes < pipeline->n_passes) thumbnail = grid + pipeline->n_grid_passes;
    if (thumbnail && thumbnail->in_begin < thumbnail->in_end) {
        const int none = begin >= end;
        begin = none || thumbnail->in_begin < begin ? thumbnail->in_begin : begin;
        end = none || thumbnail->in_end > end ? thumbnail->in_end : end;
    }
    for (int32_t y = begin; y < end; y += EV_ROWS) {
        const int32_t n = end - y < EV_ROWS ? end - y : EV_ROWS;
        if (!as_stored) read_rows(pipeline, picture, y, y + n);
        for (int32_t i = 0; i < n; ++i) {
            const uint8_t *row = as_stored ? picture->pixels + (y + i) * picture->row_bytes : pipeline->source_rows + (int64_t)i * pipeline->source_bytes;
            push(pipeline, grid, y + i, row);
            if (thumbnail) push(pipeline, thumbnail, y + i, row);
        }
    }
}

ev_status ev_prepare_tiles(const ev_picture *picture, const ev_image_spec *spec, const ev_tile_plan *plan, int32_t tile_begin, int32_t tile_end,
                           uint8_t *tiles, int64_t tiles_bytes, float *pixels, int64_t pixels_bytes, void *scratch, int64_t scratch_bytes) {
    ev_pipeline pipeline;
    ev_layout layout = {NULL, 0};
    ev_status status = check_plan(spec, plan);
    if (!status) status = check_picture(picture, plan);
    if (status) return status;
    if (tile_begin < 0 || tile_begin >= tile_end || tile_end > plan->n_tiles)
        return ev_fail(EV_ERROR_USAGE, "tiles %d to %d are outside 0 to %d", tile_begin, tile_end, plan->n_tiles);
    const int64_t bytes = (int64_t)(tile_end - tile_begin) * plan->tile_px * plan->tile_px * 3;
    if (!tiles && !pixels) return ev_fail(EV_ERROR_USAGE, "no place for the tiles was given");
    if ((tiles && tiles_bytes != bytes) || (pixels && pixels_bytes != bytes * (int64_t)sizeof(float)))
        return ev_fail(EV_ERROR_USAGE, "%d tiles have %lld bytes, as floats %lld; the buffers have %lld and %lld", tile_end - tile_begin, (long long)bytes,
                       (long long)bytes * (long long)sizeof(float), (long long)tiles_bytes, (long long)pixels_bytes);
    build(&pipeline, spec, plan, &layout);
    if (!scratch || scratch_bytes < layout.used + EV_ALIGNMENT)
        return ev_fail(EV_ERROR_USAGE, "the scratch has %lld bytes, expected %lld", (long long)scratch_bytes, (long long)layout.used + EV_ALIGNMENT);
    memset(scratch, 0, (size_t)(layout.used + EV_ALIGNMENT));
    layout = (ev_layout){(char *)(((uintptr_t)scratch + EV_ALIGNMENT - 1) / EV_ALIGNMENT * EV_ALIGNMENT), 0};
    build(&pipeline, spec, plan, &layout);
    for (int i = 0; i < pipeline.n_passes; ++i)
        if (pipeline.passes[i].kind != COPY) ev_axis_fill(&pipeline.passes[i].axis, spec->resample, pipeline.room);
    pipeline.sums = ev_pick_sums();
    pipeline.writer = (ev_tile_writer){.plan = plan, .tile_begin = tile_begin, .tile_end = tile_end, .tiles = tiles, .pixels = pixels};
    pipeline.writer.first_grid_tile = plan->thumbnail == EV_THUMBNAIL_FIRST;
    fill_values(&pipeline.writer, spec);
    fill_padding(&pipeline.writer, spec);
    want_tiles(&pipeline);
    run(&pipeline, picture);
    return EV_OK;
}
