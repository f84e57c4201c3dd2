"""Batches of tiles: the same pixels as the whole picture at once, each batch made while the one before is worked on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native_library import NativeLibrary, library_path
from edgevlm.backends.native_picture import NativeTiles
from edgevlm.image import load_image, normalize
from edgevlm.spec import ProcessorSpec
from edgevlm.tile_batches import PillowTiles, Prepare, batch_ranges, tile_batches
from edgevlm.tiling import cut_tiles, plan_tiles

PICTURE = Path(__file__).resolve().parents[2] / "assets" / "coffee.jpg"
HALF = (0.5, 0.5, 0.5)
SPEC = ProcessorSpec(
    scheme="relaxed", tile_px=112, resample="bicubic", image_mean=HALF, image_std=HALF, thumbnail="first", max_rows=4,
    max_cols=4, max_tiles=16,
)  # fmt: skip


def test_ranges() -> None:
    assert batch_ranges(9) == [(0, 4), (4, 8), (8, 9)]
    assert batch_ranges(3) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("kind", ["pillow", "native"])
def test_batches_are_the_whole_picture(kind: str) -> None:
    image = load_image(PICTURE)
    plan = plan_tiles(*image.shape[:2], SPEC)
    prepare: Prepare = PillowTiles(SPEC)
    if kind == "native":
        if not library_path().exists():
            pytest.skip("no native library here; `make native` builds it")
        prepare = NativeTiles(NativeLibrary(library_path()), SPEC)
    whole = normalize(cut_tiles(image, plan, SPEC), SPEC)
    batches = list(tile_batches(prepare, image, plan, lambda name, start: None))
    assert [len(batch) for batch in batches] == [end - begin for begin, end in batch_ranges(plan.n_tiles)]
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    assert not np.array_equal(np.concatenate(batches[::-1]), whole)  # negative control


def test_the_next_batch_is_prepared_meanwhile() -> None:
    image = load_image(PICTURE)
    plan = plan_tiles(*image.shape[:2], SPEC)
    started = [threading.Event() for _ in batch_ranges(plan.n_tiles)]

    def prepare(image: np.ndarray, plan: object, begin: int, end: int) -> np.ndarray:
        started[[first for first, _ in batch_ranges(17)].index(begin)].set()
        return np.zeros((end - begin, 3, 1, 1), np.float32)

    assert plan.n_tiles > 4
    recorded: list[str] = []
    batches = tile_batches(prepare, image, plan, lambda name, start: recorded.append(name))
    next(batches)
    assert started[1].wait(5)  # before the caller asks for it
    if len(started) > 2:
        time.sleep(0.05)
        assert not started[2].is_set()  # one ahead, not all
    assert sum(len(batch) for batch in batches) == plan.n_tiles - 4
    assert recorded[0] == "prepare 4 tiles" and len(recorded) == len(started)


def test_an_error_reaches_the_caller() -> None:
    image = load_image(PICTURE)
    plan = plan_tiles(*image.shape[:2], SPEC)

    def broken(image: np.ndarray, plan: object, begin: int, end: int) -> np.ndarray:
        raise ValueError("no pixels")

    with pytest.raises(ValueError, match="no pixels"):
        list(tile_batches(broken, image, plan, lambda name, start: None))
