/* Tile plans, equal to edgevlm/tiling.py: grids, sizes and offsets from a picture's size alone. `relaxed` counts in
 * integers. The schemes of transformers are defined by their float64 operations, whose results IEEE 754 fixes; here
 * they are done one by one in the same order, with no function of libm. */
#include "picture.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

enum {
    MAX_TILE = 4096,
    MAX_GRID = 64,          /* rows or columns of `relaxed` */
    MAX_TILES = 4096,
    MAX_GRID_TILES = 1 << 20,
    MAX_EDGE = 1 << 16,
    IDEFICS3_MAX_EDGE = 4096 /* transformers 5.24, idefics3/image_processing_pil_idefics3.py, MAX_IMAGE_SIZE */
};

static const int64_t MAX_DENOMINATOR = 1000000;

typedef struct {
    int64_t height, width;
} ev_size;

static int64_t at_least_1(int64_t value) { return value < 1 ? 1 : value; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t ceiling(double value) {
    const int64_t whole = (int64_t)value;
    return whole + (value > (double)whole);
}

/* relaxed_alpha as the fraction that its decimal form is; 0 when it has more decimals than MAX_DENOMINATOR. */
static int64_t alpha_denominator(double alpha, int64_t *numerator) {
    for (int64_t denominator = 1; denominator <= MAX_DENOMINATOR; denominator *= 10) {
        *numerator = (int64_t)(alpha * (double)denominator + 0.5);
        if ((double)*numerator / (double)denominator == alpha) return denominator;
    }
    return 0;
}

ev_status ev_check_image_spec(const ev_image_spec *spec) {
    int64_t numerator;
    if (!spec) return ev_fail(EV_ERROR_USAGE, "no image spec was given");
    if (spec->scheme < EV_SCHEME_SQUARE || spec->scheme > EV_SCHEME_LLAVA_NEXT)
        return ev_fail(EV_ERROR_USAGE, "the tiling scheme %d is not known", spec->scheme);
    if (spec->tile_px < 1 || spec->tile_px > MAX_TILE)
        return ev_fail(EV_ERROR_USAGE, "tile_px is %d, expected 1 to %d", spec->tile_px, MAX_TILE);
    if (spec->resample < EV_NEAREST || spec->resample > EV_BICUBIC)
        return ev_fail(EV_ERROR_USAGE, "the resampling filter %d is not known", spec->resample);
    if (spec->thumbnail < EV_THUMBNAIL_NONE || spec->thumbnail > EV_THUMBNAIL_LAST)
        return ev_fail(EV_ERROR_USAGE, "the thumbnail rule %d is not known", spec->thumbnail);
    if (spec->max_tiles < 1 || spec->max_tiles > MAX_TILES)
        return ev_fail(EV_ERROR_USAGE, "max_tiles is %d, expected 1 to %d", spec->max_tiles, MAX_TILES);
    if (spec->longest_edge_px < 0 || spec->longest_edge_px > MAX_EDGE)
        return ev_fail(EV_ERROR_USAGE, "longest_edge_px is %d, expected 0 to %d", spec->longest_edge_px, MAX_EDGE);
    /* The mean is a share of white where it is the padding's colour too, and in the units of rescale_factor elsewhere. */
    const int pads = spec->scheme == EV_SCHEME_RELAXED;
    for (int channel = 0; channel < 3; ++channel) {
        if (!(spec->image_mean[channel] >= (pads ? 0 : -1e6) && spec->image_mean[channel] <= (pads ? 1 : 1e6)))
            return ev_fail(EV_ERROR_USAGE, "image_mean is %g, expected %s", spec->image_mean[channel], pads ? "0 to 1" : "-1e6 to 1e6");
        if (!(spec->image_std[channel] >= 1e-6 && spec->image_std[channel] <= 1e6))
            return ev_fail(EV_ERROR_USAGE, "image_std is %g, expected 1e-6 to 1e6", spec->image_std[channel]);
    }
    if (!(spec->rescale_factor >= 1e-6 && spec->rescale_factor <= 1e6))
        return ev_fail(EV_ERROR_USAGE, "rescale_factor is %g, expected 1e-6 to 1e6", spec->rescale_factor);
    switch (spec->scheme) {
    case EV_SCHEME_RELAXED:
        if (spec->max_rows < 1 || spec->max_rows > MAX_GRID || spec->max_cols < 1 || spec->max_cols > MAX_GRID)
            return ev_fail(EV_ERROR_USAGE, "max_rows and max_cols are %d and %d, expected 1 to %d", spec->max_rows, spec->max_cols, MAX_GRID);
        if (!(spec->relaxed_alpha >= 0 && spec->relaxed_alpha <= 1) || !alpha_denominator(spec->relaxed_alpha, &numerator))
            return ev_fail(EV_ERROR_USAGE, "relaxed_alpha is %.17g, expected 0 to 1 with at most six decimals", spec->relaxed_alpha);
        break;
    case EV_SCHEME_TILE_GRID:
        if (!spec->longest_edge_px) return ev_fail(EV_ERROR_USAGE, "the scheme tile_grid needs longest_edge_px");
        break;
    case EV_SCHEME_LLAVA_NEXT:
        if (spec->n_pinpoints < 1 || spec->n_pinpoints > EV_MAX_PINPOINTS)
            return ev_fail(EV_ERROR_USAGE, "there are %d grid_pinpoints, expected 1 to %d", spec->n_pinpoints, EV_MAX_PINPOINTS);
        for (int32_t i = 0; i < spec->n_pinpoints; ++i)
            for (int side = 0; side < 2; ++side)
                if (spec->grid_pinpoints[i][side] < spec->tile_px || spec->grid_pinpoints[i][side] > MAX_EDGE)
                    return ev_fail(EV_ERROR_USAGE, "grid_pinpoints %d is %d, expected tile_px to %d", i, spec->grid_pinpoints[i][side], MAX_EDGE);
        break;
    default: break;
    }
    return EV_OK;
}

/* A picture of `size` centred on its canvas; an odd pixel of padding goes right or to the bottom. */
static void place(const ev_image_spec *spec, ev_tile_plan *plan, int64_t rows, int64_t cols, ev_size size) {
    plan->grid_rows = (int32_t)rows;
    plan->grid_cols = (int32_t)cols;
    plan->resizes[plan->n_resizes][0] = (int32_t)size.height;
    plan->resizes[plan->n_resizes][1] = (int32_t)size.width;
    ++plan->n_resizes;
    plan->offset[0] = (int32_t)((rows * spec->tile_px - size.height) / 2);
    plan->offset[1] = (int32_t)((cols * spec->tile_px - size.width) / 2);
}

static void stretch(const ev_image_spec *spec, ev_tile_plan *plan, int64_t rows, int64_t cols) {
    place(spec, plan, rows, cols, (ev_size){rows * spec->tile_px, cols * spec->tile_px});
}

/* The largest size of the picture's ratio inside the canvas, rounded down, at least 1. */
static ev_size fit(ev_size picture, ev_size canvas) {
    if (canvas.width * picture.height <= canvas.height * picture.width)
        return (ev_size){at_least_1(picture.height * canvas.width / picture.width), canvas.width};
    return (ev_size){canvas.height, at_least_1(picture.width * canvas.height / picture.height)};
}

/* BlueLM-V-3B's relaxed aspect-ratio matching (arXiv 2411.10640, algorithm 1) over grids by descending area, then
 * descending columns. Bounds: an area is below 2^38 and a denominator below 2^20, so no product overflows. */
static void plan_relaxed(ev_size picture, const ev_image_spec *spec, int64_t max_tiles, ev_tile_plan *plan) {
    const int64_t tile = spec->tile_px, area = picture.height * picture.width;
    int64_t numerator, best_rows = 1, best_cols = 1, best_effective = 0, least_waste = -1;
    const int64_t denominator = alpha_denominator(spec->relaxed_alpha, &numerator);
    for (int64_t tiles = smaller(max_tiles, (int64_t)spec->max_rows * spec->max_cols); tiles >= 1; --tiles) {
        for (int64_t cols = smaller(spec->max_cols, tiles); cols >= 1; --cols) {
            const int64_t rows = tiles / cols;
            if (rows * cols != tiles || rows > spec->max_rows) continue;
            const ev_size fitted = fit(picture, (ev_size){rows * tile, cols * tile});
            const int64_t effective = smaller(fitted.height * fitted.width, area);
            const int64_t waste = tiles * tile * tile - effective;
            const int64_t gain = (effective - best_effective) * denominator, slack = best_effective * numerator;
            if (gain > slack || (-gain < slack && (least_waste < 0 || waste < least_waste))) {
                best_rows = rows;
                best_cols = cols;
                best_effective = effective;
                least_waste = waste;
            }
        }
    }
    place(spec, plan, best_rows, best_cols, fit(picture, (ev_size){best_rows * tile, best_cols * tile}));
}

/* The size with the longer side `edge`; the other side is made even; capped at 4096 (the other side is not). */
static ev_size longest_edge_size(ev_size picture, int64_t edge) {
    double ratio = (double)picture.width / (double)picture.height;
    int64_t width = edge, height = edge;
    if (picture.width >= picture.height) {
        height = (int64_t)((double)width / ratio);
        height += height % 2;
    } else {
        width = (int64_t)((double)height * ratio);
        width += width % 2;
    }
    height = at_least_1(height);
    width = at_least_1(width);
    ratio = (double)width / (double)height;
    if (width >= height && width > IDEFICS3_MAX_EDGE) {
        width = IDEFICS3_MAX_EDGE;
        height = (int64_t)((double)width / ratio);
    } else if (height > width && height > IDEFICS3_MAX_EDGE) {
        height = IDEFICS3_MAX_EDGE;
        width = (int64_t)((double)height * ratio);
    }
    return (ev_size){at_least_1(height), at_least_1(width)};
}

static int64_t tiles_over(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/* (rows, cols) after the longer side, then the shorter one, is rounded up to whole tiles. */
static ev_size round_up_to_tiles(ev_size size, int64_t tile) {
    const double ratio = (double)size.width / (double)size.height;
    if (size.width >= size.height) {
        const int64_t cols = tiles_over(size.width, tile);
        return (ev_size){tiles_over((int64_t)((double)(cols * tile) / ratio), tile), cols};
    }
    const int64_t rows = tiles_over(size.height, tile);
    return (ev_size){rows, tiles_over((int64_t)((double)(rows * tile) * ratio), tile)};
}

/* Source: transformers 5.24, idefics3/ and smolvlm/image_processing_pil_*.py. A budget takes whole tiles off the
 * longest edge; one pixel less than a tile is the last resort and always ends in one tile. */
static void plan_tile_grid(ev_size picture, const ev_image_spec *spec, int64_t budget, ev_tile_plan *plan) {
    const int64_t tile = spec->tile_px;
    int64_t edge = spec->longest_edge_px;
    /* A budget of the whole square or more is none: making an odd side even can take one row more than it has. */
    const int64_t side = (edge + tile - 1) / tile;
    int last = budget >= side * side;
    if (!last && edge < tile) {
        edge = tile - 1;
        last = 1;
    }
    for (;;) {
        const ev_size size = longest_edge_size(picture, at_least_1(edge)), grid = round_up_to_tiles(size, tile);
        if (grid.height * grid.width <= budget || last) {
            plan->resizes[0][0] = (int32_t)size.height;
            plan->resizes[0][1] = (int32_t)size.width;
            plan->n_resizes = 1;
            stretch(spec, plan, grid.height, grid.width);
            return;
        }
        edge -= tile;
        if (edge < tile) {
            edge = tile - 1;
            last = 1;
        }
    }
}

/* Source: transformers 5.24, got_ocr2/image_processing_pil_got_ocr2.py: get_optimal_tiled_canvas. */
static void plan_internvl(ev_size picture, const ev_image_spec *spec, int64_t max_tiles, ev_tile_plan *plan) {
    const double ratio = (double)picture.width / (double)picture.height, area = (double)(picture.width * picture.height);
    const double half_tile = 0.5 * (double)spec->tile_px * (double)spec->tile_px;
    int64_t best_rows = 1, best_cols = 1;
    double least = -1;
    for (int64_t tiles = 1; tiles <= max_tiles; ++tiles) {
        for (int64_t cols = 1; cols <= tiles; ++cols) {
            const int64_t rows = tiles / cols;
            if (rows * cols != tiles) continue;
            const double signed_difference = ratio - (double)cols / (double)rows;
            const double difference = signed_difference < 0 ? -signed_difference : signed_difference;
            const int large_enough = area > half_tile * (double)cols * (double)rows;
            if (least < 0 || difference < least || (difference == least && large_enough)) {
                best_rows = rows;
                best_cols = cols;
                least = difference;
            }
        }
    }
    stretch(spec, plan, best_rows, best_cols);
}

/* Source: transformers 5.24, image_processing_utils.py: select_best_resolution and get_patch_output_size. */
static void plan_llava_next(ev_size picture, const ev_image_spec *spec, int64_t budget, ev_tile_plan *plan) {
    const int64_t tile = spec->tile_px;
    const double width = (double)picture.width, height = (double)picture.height;
    ev_size best = {tile, tile};
    int64_t best_effective = 0, least_waste = -1;
    int found = 0;
    for (int32_t i = 0; i < spec->n_pinpoints; ++i) {
        const ev_size canvas = {spec->grid_pinpoints[i][0], spec->grid_pinpoints[i][1]};
        if ((canvas.height / tile) * (canvas.width / tile) > budget) continue;
        const double scale_w = (double)canvas.width / width, scale_h = (double)canvas.height / height;
        const double scale = scale_h < scale_w ? scale_h : scale_w;
        const int64_t effective = smaller((int64_t)(width * scale) * (int64_t)(height * scale), picture.height * picture.width);
        const int64_t waste = canvas.height * canvas.width - effective;
        if (!found) best = canvas;
        found = 1;
        if (effective > best_effective || (effective == best_effective && (least_waste < 0 || waste < least_waste))) {
            best = canvas;
            best_effective = effective;
            least_waste = waste;
        }
    }
    const double scale_w = (double)best.width / width, scale_h = (double)best.height / height;
    ev_size size = best;
    if (scale_w < scale_h) size.height = smaller(ceiling(height * scale_w), best.height);
    else size.width = smaller(ceiling(width * scale_h), best.width);
    place(spec, plan, best.height / tile, best.width / tile, size);
}

ev_status ev_plan_tiles(int32_t height, int32_t width, const ev_image_spec *spec, int32_t max_tiles, ev_tile_plan *plan) {
    const ev_status status = ev_check_image_spec(spec);
    if (status) return status;
    if (!plan) return ev_fail(EV_ERROR_USAGE, "no place for the plan was given");
    if (height < 1 || width < 1) return ev_fail(EV_ERROR_USAGE, "a picture of %d x %d pixels cannot be tiled", width, height);
    if (max_tiles < 0) return ev_fail(EV_ERROR_USAGE, "the tile budget is %d; expected at least 1, or 0 for none", max_tiles);
    const ev_size picture = {height, width};
    const int64_t limit = max_tiles ? smaller(max_tiles, spec->max_tiles) : spec->max_tiles;
    *plan = (ev_tile_plan){.scheme = spec->scheme, .tile_px = spec->tile_px, .height = height, .width = width};
    switch (spec->scheme) {
    case EV_SCHEME_RELAXED: plan_relaxed(picture, spec, limit, plan); break;
    case EV_SCHEME_TILE_GRID: plan_tile_grid(picture, spec, limit, plan); break;
    case EV_SCHEME_INTERNVL: plan_internvl(picture, spec, limit, plan); break;
    case EV_SCHEME_LLAVA_NEXT: plan_llava_next(picture, spec, limit, plan); break;
    default:
        /* One tile; with a longest edge, Idefics3 without splitting, which resizes to that first. */
        if (spec->longest_edge_px) {
            const ev_size size = longest_edge_size(picture, spec->longest_edge_px);
            plan->resizes[0][0] = (int32_t)size.height;
            plan->resizes[0][1] = (int32_t)size.width;
            plan->n_resizes = 1;
        }
        stretch(spec, plan, 1, 1);
    }
    const int64_t n_grid = (int64_t)plan->grid_rows * plan->grid_cols;
    if (n_grid > MAX_GRID_TILES) return ev_fail(EV_ERROR_USAGE, "a grid of %lld tiles is larger than any tower reads", (long long)n_grid);
    const int wanted = spec->scheme == EV_SCHEME_LLAVA_NEXT || (spec->scheme != EV_SCHEME_SQUARE && n_grid > 1);
    plan->thumbnail = wanted ? spec->thumbnail : EV_THUMBNAIL_NONE;
    plan->n_tiles = (int32_t)(n_grid + (plan->thumbnail != EV_THUMBNAIL_NONE));
    return EV_OK;
}
