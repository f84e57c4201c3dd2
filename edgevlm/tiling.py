"""Tile plans: how a picture of a given size is resized, placed on a canvas of equal square tiles, and cut.

`plan_tiles` needs only the size, so that the cost of a picture is known before it is decoded; `cut_tiles` carries a
plan out. `relaxed` counts in integers only. `tile_grid`, `internvl` and `llava_next` follow transformers' order of
floating-point operations, since their results must be equal to it, rounding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ImageError, UnsupportedModelError, UsageError
from edgevlm.image import resize
from edgevlm.spec import ProcessorSpec

MAX_LONGEST_EDGE_PX = 4096
"""Idefics3's absolute limit: transformers 5.24, idefics3/image_processing_pil_idefics3.py, MAX_IMAGE_SIZE."""


@dataclass(frozen=True)
class TilePlan:
    """What happens to one picture. Sizes are (height, width) in pixels."""

    scheme: str
    tile_px: int
    grid_rows: int
    grid_cols: int
    resizes: tuple[tuple[int, int], ...]
    """Sizes the picture is resized to, one after the other; the last one is placed on the canvas."""
    offset: tuple[int, int]
    """Where the top left corner of the resized picture lies on the canvas."""
    thumbnail: bool
    thumbnail_first: bool = False
    """The thumbnail stands before the grid's tiles in the prompt; else after them."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Size of the grid."""
        return (self.grid_rows * self.tile_px, self.grid_cols * self.tile_px)

    @property
    def n_tiles(self) -> int:
        """Tiles that are encoded, with the thumbnail."""
        return self.grid_rows * self.grid_cols + self.thumbnail


def plan_tiles(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int | None = None) -> TilePlan:
    """Return the plan for a picture of `height_px` x `width_px`.

    `max_tiles` lowers the number of grid tiles (without the thumbnail) below `spec.max_tiles`: fewer candidates for the
    schemes that choose among grids, a longest edge that is smaller by whole tiles for `tile_grid`.
    """
    if height_px < 1 or width_px < 1:
        raise ImageError(f"a picture of {width_px} x {height_px} pixels cannot be tiled.")
    if max_tiles is not None and max_tiles < 1:
        raise UsageError(f"the tile budget is {max_tiles}; expected at least 1.")
    planner = _PLANNERS.get(spec.scheme)
    if planner is None:
        raise UnsupportedModelError(
            f"the tiling scheme '{spec.scheme}' is not implemented; known: {', '.join(sorted(_PLANNERS))}."
        )
    limit = spec.max_tiles if max_tiles is None else min(max_tiles, spec.max_tiles)
    return planner(height_px, width_px, spec, limit)


def cut_tiles(image: NDArray[np.uint8], plan: TilePlan, spec: ProcessorSpec) -> NDArray[np.uint8]:
    """Return the tiles of `image` (H, W, 3) as uint8 (C, S, S, 3): row-major, the thumbnail first or last."""
    size = plan.tile_px
    canvas = _paint_canvas(image, plan, spec)
    tiles = np.empty((plan.n_tiles, size, size, 3), dtype=np.uint8)
    first = int(plan.thumbnail and plan.thumbnail_first)
    grid = canvas.reshape(plan.grid_rows, size, plan.grid_cols, size, 3).swapaxes(1, 2)
    tiles[first : first + plan.grid_rows * plan.grid_cols] = grid.reshape(-1, size, size, 3)
    if plan.thumbnail:
        # Idefics3 makes it from the canvas (a second Lanczos pass), everyone else from the picture.
        source = canvas if spec.scheme == "tile_grid" else image
        tiles[0 if plan.thumbnail_first else -1] = resize(source, size, size, spec.resample)
    return tiles


def relaxed_candidates(spec: ProcessorSpec, max_tiles: int | None = None) -> list[tuple[int, int]]:
    """Return grids (columns m, rows n) of `relaxed` by descending area, then descending m."""
    limit = spec.max_tiles if max_tiles is None else min(spec.max_tiles, max_tiles)
    grids = [
        (cols, rows)
        for cols in range(1, spec.max_cols + 1)
        for rows in range(1, spec.max_rows + 1)
        if cols * rows <= limit
    ]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0]), reverse=True)


def relaxed_grid(
    height_px: int, width_px: int, tile_px: int, candidates: list[tuple[int, int]], alpha: float
) -> tuple[int, int]:
    """Return the (columns, rows) of BlueLM-V-3B's relaxed aspect-ratio matching.

    A later candidate wins when it shows clearly more of the picture (by more than `alpha`), or about as much with less
    padding. Source: arXiv 2411.10640, algorithm 1; in integers, `alpha` read as the decimal number it is written as.
    A side never shrinks below one pixel, so that a picture of 1 x 20,000 has an area too.
    """
    ratio = Fraction(str(alpha))
    best = (1, 1)
    best_effective, least_waste = 0, None
    for cols, rows in candidates:
        fit_height, fit_width = _fit(height_px, width_px, rows * tile_px, cols * tile_px)
        effective = min(fit_height * fit_width, height_px * width_px)
        waste = cols * rows * tile_px * tile_px - effective
        gain = (effective - best_effective) * ratio.denominator
        slack = best_effective * ratio.numerator
        if gain > slack or (-gain < slack and (least_waste is None or waste < least_waste)):
            best, best_effective, least_waste = (cols, rows), effective, waste
    return best


def _fit(height_px: int, width_px: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """Return the largest size of the picture's ratio inside the canvas, rounded down, at least 1."""
    if canvas_width * height_px <= canvas_height * width_px:
        return max(1, height_px * canvas_width // width_px), canvas_width
    return canvas_height, max(1, width_px * canvas_height // height_px)


def _paint_canvas(image: NDArray[np.uint8], plan: TilePlan, spec: ProcessorSpec) -> NDArray[np.uint8]:
    for height_px, width_px in plan.resizes:
        image = resize(image, height_px, width_px, spec.resample)
    if image.shape[:2] == plan.canvas:
        return image
    # LLaVA-NeXT pads with zeros before it normalises; `relaxed` with the colour that normalises to about zero, as far
    # as there is one: a measured tiling may meet the mean of values that are not rescaled.
    means = (min(max(mean, 0.0), 1.0) for mean in spec.image_mean)
    colour = (0, 0, 0) if spec.scheme == "llava_next" else tuple(round(mean * 255) for mean in means)
    canvas = np.empty((*plan.canvas, 3), dtype=np.uint8)
    canvas[:] = np.asarray(colour, dtype=np.uint8)
    top, left = plan.offset
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def _plan_relaxed(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    candidates = relaxed_candidates(spec, max_tiles)
    cols, rows = relaxed_grid(height_px, width_px, spec.tile_px, candidates, spec.relaxed_alpha)
    size = _fit(height_px, width_px, rows * spec.tile_px, cols * spec.tile_px)
    return _placed(spec, rows, cols, size, thumbnail=rows * cols > 1)


def _plan_fixed(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    """One grid for every picture, which keeps its ratio: what a rule that looks at the picture is measured against.

    A budget below the grid's tiles leaves one tile.
    """
    rows, cols = (spec.max_rows, spec.max_cols) if spec.max_rows * spec.max_cols <= max_tiles else (1, 1)
    size = _fit(height_px, width_px, rows * spec.tile_px, cols * spec.tile_px)
    return _placed(spec, rows, cols, size, thumbnail=rows * cols > 1)


def _plan_llava_next(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    """Source: transformers 5.24, image_processing_utils.py: select_best_resolution and get_patch_output_size."""
    tile = spec.tile_px
    allowed = [
        (height, width) for height, width in spec.grid_pinpoints if (height // tile) * (width // tile) <= max_tiles
    ] or [(tile, tile)]
    best, best_effective, least_waste = allowed[0], 0, math.inf
    for height, width in allowed:
        scale = min(width / width_px, height / height_px)
        effective = min(int(width_px * scale) * int(height_px * scale), height_px * width_px)
        waste = height * width - effective
        if effective > best_effective or (effective == best_effective and waste < least_waste):
            best, best_effective, least_waste = (height, width), effective, waste
    scale_w, scale_h = best[1] / width_px, best[0] / height_px
    if scale_w < scale_h:
        size = (min(math.ceil(height_px * scale_w), best[0]), best[1])
    else:
        size = (best[0], min(math.ceil(width_px * scale_h), best[1]))
    return _placed(spec, best[0] // tile, best[1] // tile, size, thumbnail=True)


def _placed(spec: ProcessorSpec, rows: int, cols: int, size: tuple[int, int], *, thumbnail: bool) -> TilePlan:
    """A picture of `size` centred on its canvas; an odd pixel of padding goes right or to the bottom."""
    offset = ((rows * spec.tile_px - size[0]) // 2, (cols * spec.tile_px - size[1]) // 2)
    return TilePlan(
        spec.scheme, spec.tile_px, rows, cols, (size,), offset,
        thumbnail and spec.thumbnail != "none", spec.thumbnail == "first",
    )  # fmt: skip


def _stretched(spec: ProcessorSpec, rows: int, cols: int, *first: tuple[int, int], thumbnail: bool) -> TilePlan:
    """A picture resized to fill its canvas, after the resizes `first`."""
    canvas = (rows * spec.tile_px, cols * spec.tile_px)
    return TilePlan(
        spec.scheme, spec.tile_px, rows, cols, (*first, canvas), (0, 0),
        thumbnail and spec.thumbnail != "none", spec.thumbnail == "first",
    )  # fmt: skip


def _plan_internvl(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    """Source: transformers 5.24, got_ocr2/image_processing_pil_got_ocr2.py: get_optimal_tiled_canvas."""
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    best, least = (1, 1), math.inf
    for cols, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width_px / height_px - cols / rows)
        large_enough = width_px * height_px > 0.5 * spec.tile_px * spec.tile_px * cols * rows
        if difference < least or (difference == least and large_enough):
            best, least = (cols, rows), difference
    cols, rows = best
    return _stretched(spec, rows, cols, thumbnail=cols * rows > 1)


def _plan_square(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    """One tile. With a longest edge: Idefics3 without splitting, which resizes to that first."""
    if spec.longest_edge_px is None:
        return _stretched(spec, 1, 1, thumbnail=False)
    return _stretched(spec, 1, 1, _longest_edge_size(height_px, width_px, spec.longest_edge_px), thumbnail=False)


def _plan_tile_grid(height_px: int, width_px: int, spec: ProcessorSpec, max_tiles: int) -> TilePlan:
    """Source: transformers 5.24, idefics3/ and smolvlm/image_processing_pil_*.py (the two are the same)."""
    if spec.longest_edge_px is None:
        raise UnsupportedModelError("the tiling scheme 'tile_grid' needs longest_edge_px; the package has none.")
    tile = spec.tile_px
    # One pixel less than a tile is the last resort: it always ends in one tile, when an odd side is made even too.
    edges = [spec.longest_edge_px, *range(spec.longest_edge_px - tile, tile - 1, -tile), tile - 1]
    # A budget of the whole square or more is none: making an odd side even can take one row more than the square has.
    whole = max_tiles >= (-(-spec.longest_edge_px // tile)) ** 2
    for edge in edges:
        size = _longest_edge_size(height_px, width_px, max(edge, 1))
        rows, cols = _round_up_to_tiles(*size, tile)
        if whole or rows * cols <= max_tiles:
            break
    return _stretched(spec, rows, cols, size, thumbnail=rows * cols > 1)


def _longest_edge_size(height_px: int, width_px: int, edge_px: int) -> tuple[int, int]:
    """The size with the longer side `edge_px`; the other side is made even; capped at 4096 (the other side is not)."""
    aspect_ratio = width_px / height_px
    if width_px >= height_px:
        width = edge_px
        height = int(width / aspect_ratio)
        height += height % 2
    else:
        height = edge_px
        width = int(height * aspect_ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)

    aspect_ratio = width / height
    if width >= height and width > MAX_LONGEST_EDGE_PX:
        width = MAX_LONGEST_EDGE_PX
        height = int(width / aspect_ratio)
    elif height > width and height > MAX_LONGEST_EDGE_PX:
        height = MAX_LONGEST_EDGE_PX
        width = int(height * aspect_ratio)
    return max(height, 1), max(width, 1)


def _round_up_to_tiles(height_px: int, width_px: int, tile_px: int) -> tuple[int, int]:
    """(rows, cols) after the longer side, then the shorter one, is rounded up to whole tiles."""
    aspect_ratio = width_px / height_px
    if width_px >= height_px:
        width = math.ceil(width_px / tile_px) * tile_px
        height = math.ceil(int(width / aspect_ratio) / tile_px) * tile_px
    else:
        height = math.ceil(height_px / tile_px) * tile_px
        width = math.ceil(int(height * aspect_ratio) / tile_px) * tile_px
    return height // tile_px, width // tile_px


_PLANNERS: dict[str, Callable[[int, int, ProcessorSpec, int], TilePlan]] = {
    "square": _plan_square,
    "relaxed": _plan_relaxed,
    "fixed": _plan_fixed,
    "tile_grid": _plan_tile_grid,
    "internvl": _plan_internvl,
    "llava_next": _plan_llava_next,
}
