"""Tiling rules for measurements: a package's pictures planned by another rule, in memory, with its own tower.

A rule chooses the grid and how the picture is fitted into it, as published. Tile side, tokens of a tile, resampling,
the colour of padding and the thumbnail's place stay the package's own, since the tower and the language model were
trained with them. What a rule's own model does to the features afterwards (LLaVA-NeXT drops those of the padding and
adds a newline to each row) is therefore no part of the measurement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from edgevlm.errors import UsageError
from edgevlm.spec import ProcessorSpec

_FIXED = re.compile(r"fixed:([1-9]\d?)x([1-9]\d?)")


def tiling_names() -> tuple[str, ...]:
    """Returns what `measured_tiling` takes; R and C stand for rows and columns."""
    return (*_RULES, "fixed:RxC")


def measured_tiling(
    spec: ProcessorSpec,
    name: str | None = None,
    *,
    alpha: float | None = None,
    thumbnail: bool = True,
    max_tiles: int | None = None,
) -> ProcessorSpec:
    """Returns `spec` with the rule `name` (default: its own) in its place, over the same box of grids.

    `alpha` is for 'relaxed'. Raises UsageError for an unknown name and for an option that the rule does not have.
    """
    changed = _named(spec, name)
    if alpha is not None:
        if changed.scheme != "relaxed":
            raise UsageError(f"alpha is for the tiling 'relaxed'; this one is {name or changed.scheme!r}")
        changed = replace(changed, relaxed_alpha=alpha)
    if max_tiles is not None:
        changed = replace(changed, max_tiles=max_tiles)
    return changed if thumbnail else replace(changed, thumbnail="none")


def _named(spec: ProcessorSpec, name: str | None) -> ProcessorSpec:
    if name is None:
        return spec
    if fixed := _FIXED.fullmatch(name):
        rows, cols = int(fixed[1]), int(fixed[2])
        return replace(spec, scheme="fixed", max_rows=rows, max_cols=cols, max_tiles=rows * cols)
    if name not in _RULES:
        raise UsageError(f"the tiling is {name!r}, expected one of: {', '.join(tiling_names())}")
    return _RULES[name](spec)


def _box(spec: ProcessorSpec) -> tuple[int, int]:
    """(rows, columns) of the largest grid: the package's, or the square of its budget where its rule has no box."""
    if spec.scheme == "relaxed":
        return spec.max_rows, spec.max_cols
    side = max(1, math.isqrt(spec.max_tiles))
    return side, side


def _relaxed(spec: ProcessorSpec) -> ProcessorSpec:
    rows, cols = _box(spec)
    return replace(spec, scheme="relaxed", max_rows=rows, max_cols=cols)


def _llava_next(spec: ProcessorSpec) -> ProcessorSpec:
    """The candidates are the package's box, listed by rows, then columns, as LLaVA-OneVision's pinpoints are."""
    rows, cols = _box(spec)
    pinpoints = [(row * spec.tile_px, col * spec.tile_px) for row in range(1, rows + 1) for col in range(1, cols + 1)]
    return replace(spec, scheme="llava_next", grid_pinpoints=tuple(pinpoints))


_RULES: dict[str, Callable[[ProcessorSpec], ProcessorSpec]] = {
    "relaxed": _relaxed,
    "llava-next": _llava_next,
    "internvl": lambda spec: replace(spec, scheme="internvl"),
    "square": lambda spec: replace(spec, scheme="square", longest_edge_px=None),
}
