"""Tile plans and pixels from the C engine, the twins of edgevlm/tiling.py and edgevlm/image.py: what a phone sees.

The native backend prepares tiles with them, one batch ahead of the tower; decoding stays Pillow's. Tests compare the
twins through them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.native_library import NativeLibrary
from edgevlm.errors import UnsupportedModelError
from edgevlm.spec import ProcessorSpec
from edgevlm.tiling import TilePlan

MAX_PINPOINTS = 64
_INT = ctypes.c_int32
_LONG = ctypes.c_int64
_DOUBLE = ctypes.c_double
SCHEMES = ("square", "relaxed", "tile_grid", "internvl", "llava_next")
"""By their numbers in edgevlm.h, as the next two."""
RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic")
THUMBNAILS = ("none", "first", "last")


class ImageSpecStruct(ctypes.Structure):
    """ev_image_spec."""

    _fields_ = [
        *((name, _INT) for name in ("scheme", "tile_px", "resample", "thumbnail")),
        *((name, _INT) for name in ("max_rows", "max_cols", "max_tiles", "longest_edge_px", "n_pinpoints")),
        ("grid_pinpoints", _INT * 2 * MAX_PINPOINTS),
        ("relaxed_alpha", _DOUBLE),
        ("rescale_factor", _DOUBLE),
        ("image_mean", _DOUBLE * 3),
        ("image_std", _DOUBLE * 3),
    ]


class TilePlanStruct(ctypes.Structure):
    """ev_tile_plan."""

    _fields_ = [
        *((name, _INT) for name in ("scheme", "tile_px", "height", "width", "grid_rows", "grid_cols", "n_resizes")),
        ("resizes", _INT * 2 * 2),
        ("offset", _INT * 2),
        ("thumbnail", _INT),
        ("n_tiles", _INT),
    ]


class PictureStruct(ctypes.Structure):
    """ev_picture."""

    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("size_bytes", _LONG),
        ("row_bytes", _LONG),
        *((name, _INT) for name in ("height", "width", "pixel_bytes", "orientation")),
    ]


def image_spec(spec: ProcessorSpec) -> ImageSpecStruct:
    """Returns `spec` as the engine takes it.

    Raises UnsupportedModelError for a scheme that the engine does not know or more pinpoints than it holds.
    """
    if spec.scheme not in SCHEMES:
        raise UnsupportedModelError(
            f"the tiling scheme '{spec.scheme}' is not in the engine; known: {', '.join(SCHEMES)}"
        )
    if len(spec.grid_pinpoints) > MAX_PINPOINTS:
        raise UnsupportedModelError(
            f"the processor has {len(spec.grid_pinpoints)} grid_pinpoints, the engine holds {MAX_PINPOINTS}"
        )
    struct = ImageSpecStruct(
        scheme=SCHEMES.index(spec.scheme),
        tile_px=spec.tile_px,
        resample=RESAMPLES.index(spec.resample),
        thumbnail=THUMBNAILS.index(spec.thumbnail),
        max_rows=spec.max_rows,
        max_cols=spec.max_cols,
        max_tiles=spec.max_tiles,
        longest_edge_px=spec.longest_edge_px or 0,
        n_pinpoints=len(spec.grid_pinpoints),
        relaxed_alpha=spec.relaxed_alpha,
        rescale_factor=spec.rescale_factor,
        image_mean=spec.image_mean,
        image_std=spec.image_std,
    )
    for i, (height_px, width_px) in enumerate(spec.grid_pinpoints):
        struct.grid_pinpoints[i][:] = (height_px, width_px)
    return struct


class NativeTiles:
    """`edgevlm.tile_batches.Prepare` by the engine: of a batch, only the rows that its tiles show are resized."""

    def __init__(self, library: NativeLibrary, spec: ProcessorSpec) -> None:
        """Raises UnsupportedModelError for a tiling that the engine does not know."""
        self._pictures = NativePictures(library, spec)

    def __call__(self, image: NDArray[np.uint8], plan: TilePlan, begin: int, end: int) -> NDArray[np.float32]:
        """Returns normalised pixels (end - begin, 3, S, S) of an upright picture."""
        height_px, width_px, _ = image.shape
        struct = TilePlanStruct(
            SCHEMES.index(plan.scheme), plan.tile_px, height_px, width_px, plan.grid_rows, plan.grid_cols,
            len(plan.resizes), n_tiles=plan.n_tiles,
            thumbnail=0 if not plan.thumbnail else THUMBNAILS.index("first" if plan.thumbnail_first else "last"),
        )  # fmt: skip
        for i, size in enumerate(plan.resizes):
            struct.resizes[i][:] = size
        struct.offset[:] = plan.offset
        pixels: NDArray[np.float32] = self._pictures.tiles(image, struct, tile_range=(begin, end), normalized=True)
        return pixels


class NativePictures:
    """Plans and tiles of one processor, computed by the engine."""

    def __init__(self, library: NativeLibrary, spec: ProcessorSpec) -> None:
        self._library = library
        self._spec = image_spec(spec)

    def plan(self, height_px: int, width_px: int, max_tiles: int | None = None) -> TilePlanStruct:
        """Returns the engine's plan for an upright picture. Raises UsageError for what cannot be tiled."""
        plan = TilePlanStruct()
        spec = ctypes.byref(self._spec)
        self._library.call("ev_plan_tiles", height_px, width_px, spec, max_tiles or 0, ctypes.byref(plan))
        return plan

    def tile_plan(self, plan: TilePlanStruct) -> TilePlan:
        """Returns the engine's plan as edgevlm/tiling.py writes it."""
        sizes = tuple((size[0], size[1]) for size in plan.resizes[: plan.n_resizes])
        return TilePlan(
            SCHEMES[plan.scheme], plan.tile_px, plan.grid_rows, plan.grid_cols, sizes, (plan.offset[0], plan.offset[1]),
            plan.thumbnail != 0, self._spec.thumbnail == THUMBNAILS.index("first"),
        )  # fmt: skip

    def tiles(
        self,
        stored: NDArray[np.uint8],
        plan: TilePlanStruct,
        orientation: int = 1,
        tile_range: tuple[int, int] | None = None,
        *,
        normalized: bool = False,
    ) -> NDArray[Any]:
        """Returns tiles of `stored` (height, width, 3 or 4), turned by the EXIF orientation first.

        uint8 (C, S, S, 3), or float32 (C, 3, S, S) when `normalized`; of `tile_range` (begin, end) if it is given.
        """
        begin, end = tile_range or (0, plan.n_tiles)
        stored = np.ascontiguousarray(stored)
        height_px, width_px, pixel_bytes = stored.shape
        row_bytes = width_px * pixel_bytes
        picture = PictureStruct(
            stored.ctypes.data, stored.nbytes, row_bytes, height_px, width_px, pixel_bytes, orientation
        )
        size = _LONG()
        spec_at, plan_at = ctypes.byref(self._spec), ctypes.byref(plan)
        self._library.call("ev_image_scratch_bytes", spec_at, plan_at, ctypes.byref(size))
        scratch = np.empty(size.value, np.uint8)
        count, side = max(end - begin, 0), plan.tile_px
        shape = (count, 3, side, side) if normalized else (count, side, side, 3)
        tiles = np.empty(shape, np.float32 if normalized else np.uint8)
        none, place = (None, 0), (tiles.ctypes.data, tiles.nbytes)
        outputs = (*none, *place) if normalized else (*place, *none)
        self._library.call(
            "ev_prepare_tiles", ctypes.byref(picture), spec_at, plan_at, begin, end, *outputs,
            scratch.ctypes.data, scratch.nbytes,
        )  # fmt: skip
        return tiles
