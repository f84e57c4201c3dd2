"""A picture's tiles as batches of pixels, the next one made while the tower works on the last (BlueLM-V-3B's pipeline).

`prepare` makes tiles [begin, end) of a picture. The tower may run on another device: what crosses the seam is float32
(n, 3, S, S) in the order of the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import TILE_BATCHES, Float32
from edgevlm.image import normalize
from edgevlm.spec import ProcessorSpec
from edgevlm.tiling import TilePlan, cut_tiles

Prepare = Callable[[NDArray[np.uint8], TilePlan, int, int], Float32]
"""(picture (H, W, 3), plan, begin, end) → pixels (end - begin, 3, S, S)."""


def batch_ranges(n_tiles: int) -> list[tuple[int, int]]:
    """The (begin, end) of each batch of the tower: 9 tiles → (0, 4), (4, 8), (8, 9)."""
    ranges: list[tuple[int, int]] = []
    begin = 0
    while begin < n_tiles:
        size = next(size for size in TILE_BATCHES if size <= n_tiles - begin)
        ranges.append((begin, begin + size))
        begin += size
    return ranges


class PillowTiles:
    """`Prepare` by Pillow: the whole picture is cut when its first tiles are asked for."""

    def __init__(self, spec: ProcessorSpec) -> None:
        self._spec = spec
        self._last: tuple[int, TilePlan, NDArray[np.uint8]] | None = None

    def __call__(self, image: NDArray[np.uint8], plan: TilePlan, begin: int, end: int) -> Float32:
        """Returns normalised pixels of tiles [begin, end)."""
        if self._last is None or self._last[:2] != (id(image), plan) or begin == 0:
            self._last = (id(image), plan, cut_tiles(image, plan, self._spec))
        pixels = normalize(self._last[2][begin:end], self._spec)
        if end == plan.n_tiles:
            self._last = None
        return pixels


def tile_batches(
    prepare: Prepare, image: NDArray[np.uint8], plan: TilePlan, record: Callable[[str, float], None]
) -> Iterator[Float32]:
    """Yields the batches of a picture; while the caller works on one, a thread prepares the next.

    `record(name, start_s)` is told when a batch is ready.
    """

    def prepared(begin: int, end: int) -> Float32:
        start = time.perf_counter()
        pixels = prepare(image, plan, begin, end)
        record(f"prepare {end - begin} tiles" if end - begin > 1 else "prepare 1 tile", start)
        return pixels

    ranges = batch_ranges(plan.n_tiles)
    with ThreadPoolExecutor(1, thread_name_prefix="edgevlm-tiles") as pool:
        coming = pool.submit(prepared, *ranges[0])
        for following in [*ranges[1:], None]:
            pixels = coming.result()
            if following is not None:
                coming = pool.submit(prepared, *following)
            yield pixels
