"""The engine's pixels against Pillow, edgevlm/image.py and edgevlm/tiling.py, bit for bit."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.backends.native_library import NativeLibrary
from edgevlm.backends.native_picture import NativePictures, PictureStruct
from edgevlm.errors import UsageError
from edgevlm.image import normalize, resize
from edgevlm.spec import ProcessorSpec, Resample
from edgevlm.tiles_drawing import SCHEMES
from edgevlm.tiling import cut_tiles, plan_tiles
from tests.edgevlm.test_image import STORED
from tests.golden import make_tiling

GOLDEN = Path(__file__).parent.parent / "golden"
BLUELM, SMOLVLM = SCHEMES["bluelm_v"][0], SCHEMES["smolvlm-256m"][0]
SQUARE = replace(BLUELM, scheme="square")
FILTERS: dict[Resample, int] = {"nearest": 300, "bilinear": 500, "bicubic": 500, "lanczos": 500}
SPECS: dict[str, ProcessorSpec] = {
    "relaxed": replace(BLUELM, tile_px=48, image_mean=(0.1, 0.5, 0.9)),
    "relaxed-last": replace(BLUELM, tile_px=32, thumbnail="last", resample="lanczos"),
    "relaxed-bare": replace(BLUELM, tile_px=32, thumbnail="none", resample="nearest"),
    "tile_grid": replace(SMOLVLM, tile_px=48, longest_edge_px=192),
    "tile_grid-first": replace(SMOLVLM, tile_px=48, longest_edge_px=180, thumbnail="first", resample="bicubic"),
    "internvl": replace(SCHEMES["internvl"][0], tile_px=40),
    "llava_next": replace(
        SCHEMES["llava-next"][0], tile_px=32, grid_pinpoints=((32, 64), (64, 32), (64, 64), (96, 32))
    ),
    "square": replace(SQUARE, tile_px=40, resample="bilinear"),
    "square-edge": replace(SQUARE, tile_px=40, longest_edge_px=91),
    "square-small-edge": replace(SQUARE, tile_px=40, longest_edge_px=7, resample="lanczos"),
    "tile_grid-small-edge": replace(SMOLVLM, tile_px=48, longest_edge_px=11, max_tiles=1),
    "square-bytes": replace(
        SQUARE, tile_px=40, rescale_factor=1.0, image_mean=(123.675, 116.28, -3.5), image_std=(58.395, 57.12, 200.0)
    ),
    "tile_grid-as-they-are": replace(
        SMOLVLM, tile_px=48, longest_edge_px=192, rescale_factor=1.0, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    ),
}


def noise(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise, or black and white alone, which drives the filters' overshoot into the limits."""
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels if rng.random() < 0.6 else np.where(pixels > 127, np.uint8(255), np.uint8(0))


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Sides of 1 px, icons, photos, and strips whose one side is hundreds of times the other."""
    shape = rng.integers(0, 10)
    if shape == 0:
        size = (1, 1) if rng.random() < 0.2 else (1, int(rng.integers(1, 20_000)))
        return size if rng.random() < 0.5 else size[::-1]
    most = rng.choice([6, 50, 400, 900], 2)
    return (int(rng.integers(1, most[0] + 1)), int(rng.integers(1, most[1] + 1)))


@pytest.mark.parametrize("resample", FILTERS)
def test_resize_equals_pillow(resample: Resample, engine: NativeLibrary) -> None:
    """1,800 sizes in all; both orders of the passes and passes left out are among them."""
    rng = np.random.default_rng(FILTERS[resample])
    for _ in range(FILTERS[resample]):
        (height, width), side = random_size(rng), int(rng.choice([1, 2, 7, 32, 100, 224, 384]))
        if rng.random() < 0.1:
            height = side
        image = noise(rng, height, width)
        native = NativePictures(engine, replace(SQUARE, tile_px=side, resample=resample))
        found = native.tiles(image, native.plan(height, width))
        np.testing.assert_array_equal(found[0], resize(image, side, side, resample), f"{height} x {width} -> {side}")


def test_the_resize_is_pillows_own(engine: NativeLibrary) -> None:
    """image.resize splits the passes itself where the order matters; here it is Pillow 13 in one call."""
    if int(Image.__version__.split(".")[0]) < 13:
        pytest.skip("before Pillow 13 the horizontal pass always came first")
    rng = np.random.default_rng(1)
    for _ in range(100):
        image = noise(rng, int(rng.integers(1, 400)), int(rng.integers(1, 200)))
        native = NativePictures(engine, replace(SQUARE, tile_px=64))
        expected = Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)
        found = native.tiles(image, native.plan(*image.shape[:2]))
        np.testing.assert_array_equal(found[0], np.asarray(expected))


def test_another_filter_or_order_shows(engine: NativeLibrary) -> None:
    """Negative control: the comparison sees another filter, and the passes in the other order."""
    image = noise(np.random.default_rng(0), 300, 90)
    native = NativePictures(engine, replace(SQUARE, tile_px=64))
    found = native.tiles(image, native.plan(300, 90))[0]
    assert not np.array_equal(found, resize(image, 64, 64, "lanczos"))
    across_first = resize(resize(image, 300, 64, "bicubic"), 64, 64, "bicubic")
    assert 0 < np.abs(found.astype(int) - across_first).max() <= 8


@pytest.mark.parametrize("name", SPECS)
def test_tiles_equal_the_runtimes(name: str, engine: NativeLibrary) -> None:
    spec = SPECS[name]
    native, rng = NativePictures(engine, spec), np.random.default_rng(len(name))
    for trial in range(60):
        (height, width), budget = random_size(rng), int(rng.integers(0, 8)) or None
        if trial < 4:
            height, width = 7 * 48 * (1 + trial % 2), 3 * 48
        image = noise(rng, height, width)
        plan, expected_plan = native.plan(height, width, budget), plan_tiles(height, width, spec, budget)
        expected = cut_tiles(image, expected_plan, spec)
        np.testing.assert_array_equal(native.tiles(image, plan), expected, f"{height} x {width}, {budget}")
        begin = int(rng.integers(0, plan.n_tiles))
        end = int(rng.integers(begin + 1, plan.n_tiles + 1))
        part = native.tiles(image, plan, tile_range=(begin, end), normalized=True)
        np.testing.assert_array_equal(part, normalize(expected[begin:end], spec), f"{height} x {width}: {begin}, {end}")


def test_batches_of_tiles_add_up(engine: NativeLibrary) -> None:
    image = noise(np.random.default_rng(3), 500, 700)
    for name, spec in SPECS.items():
        native = NativePictures(engine, spec)
        plan = native.plan(500, 700)
        whole = native.tiles(image, plan)
        for size in (1, 2, 4):
            parts = [
                native.tiles(image, plan, tile_range=(i, min(i + size, plan.n_tiles)))
                for i in range(0, plan.n_tiles, size)
            ]
            np.testing.assert_array_equal(np.concatenate(parts), whole, f"{name}, {size} at a time")


@pytest.mark.parametrize("orientation", [*STORED, 0, 9, -3])
@pytest.mark.parametrize("channels", [3, 4])
def test_exif_orientation(orientation: int, channels: int, engine: NativeLibrary) -> None:
    """Sizes around the sixteen rows that are read at a time."""
    store: Callable[[Any], Any] = STORED.get(orientation, STORED[1])
    native = NativePictures(engine, SPECS["relaxed"])
    for height, width in ((1, 1), (16, 33), (31, 17), (64, 65), (100, 37)):
        upright = noise(np.random.default_rng(height), height, width, channels)
        expected = cut_tiles(upright[..., :3], plan_tiles(height, width, SPECS["relaxed"]), SPECS["relaxed"])
        stored = np.ascontiguousarray(store(upright))
        at = (ctypes.c_int32 * 2)()
        engine.call("ev_upright_size", *stored.shape[:2], orientation, ctypes.byref(at), ctypes.byref(at, 4))
        assert tuple(at) == (height, width)
        found = native.tiles(stored, native.plan(height, width), orientation)
        np.testing.assert_array_equal(found, expected)
    if orientation in range(2, 9):  # negative control: read as stored, the picture is another
        square = noise(np.random.default_rng(0), 40, 40)
        plan = native.plan(40, 40)
        assert not np.array_equal(native.tiles(square, plan, orientation), native.tiles(square, plan, 1))


def test_tiles_equal_transformers_to_the_byte(engine: NativeLibrary) -> None:
    golden = json.loads((GOLDEN / "hf_tiles.json").read_text())
    idefics3 = replace(SMOLVLM, tile_px=364, longest_edge_px=1820)
    _, tile, edge = make_tiling.TILE_GRID_PROCESSORS["idefics3"]
    specs = {
        "smolvlm-256m": SMOLVLM,
        "idefics3": replace(idefics3, tile_px=tile, longest_edge_px=edge),
        "internvl": SCHEMES["internvl"][0],
        "llava-next": SCHEMES["llava-next"][0],
    }
    for name, image in make_tiling.pictures().items():
        for scheme, expected in golden[name].items():
            native = NativePictures(engine, specs[scheme])
            tiles = native.tiles(image, native.plan(*image.shape[:2]))
            digest = hashlib.sha256(tiles.tobytes()).hexdigest()
            assert {"n_tiles": len(tiles), "sha256": digest} == expected, (name, scheme)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_normalized_values_of_real_processors(name: str, engine: NativeLibrary) -> None:
    spec = replace(SCHEMES[name][0], scheme="square", tile_px=16, longest_edge_px=None)
    image = np.arange(768, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)
    native = NativePictures(engine, spec)
    found = native.tiles(image, native.plan(16, 16), normalized=True)
    np.testing.assert_array_equal(found, normalize(image[None], spec))
    shifted = replace(spec, image_mean=(spec.image_mean[0] + 1e-7, *spec.image_mean[1:]))
    other = NativePictures(engine, shifted)
    assert not np.array_equal(found, other.tiles(image, other.plan(16, 16), normalized=True))  # negative control


class Call:
    """One call of ev_prepare_tiles whose arguments a test bends."""

    def __init__(self, engine: NativeLibrary) -> None:
        self.engine, self.native = engine, NativePictures(engine, SPECS["relaxed"])
        self.pixels = noise(np.random.default_rng(0), 60, 100)
        self.plan = self.native.plan(60, 100)
        self.picture = PictureStruct(self.pixels.ctypes.data, self.pixels.nbytes, 300, 60, 100, 3, 1)
        self.tiles = np.zeros((self.plan.n_tiles, 48, 48, 3), np.uint8)
        spec, plan, size = ctypes.byref(self.native._spec), ctypes.byref(self.plan), ctypes.c_int64()
        engine.call("ev_image_scratch_bytes", spec, plan, ctypes.byref(size))
        self.scratch = np.empty(size.value, np.uint8)
        self.arguments = {
            "begin": 0, "end": self.plan.n_tiles, "tiles": self.tiles.ctypes.data, "tiles_bytes": self.tiles.nbytes,
            "pixels": None, "pixels_bytes": 0, "scratch": self.scratch.ctypes.data, "scratch_bytes": size.value,
        }  # fmt: skip

    def __call__(self) -> None:
        spec = ctypes.byref(self.native._spec)
        self.engine.call(
            "ev_prepare_tiles", ctypes.byref(self.picture), spec, ctypes.byref(self.plan), *self.arguments.values()
        )


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        ("picture", "size_bytes", 60 * 300 - 1, "too few"),
        ("picture", "size_bytes", 0, "too few"),
        ("picture", "row_bytes", 299, "at least 300"),
        ("picture", "row_bytes", 2**62, "too few"),
        ("picture", "row_bytes", -300, "at least 300"),
        ("picture", "height", 61, "the upright picture has 100 x 61"),
        ("picture", "width", 2**31 - 1, "the upright picture has"),
        ("picture", "orientation", 6, "the upright picture has 60 x 100"),
        ("picture", "pixel_bytes", 2, "2 bytes, expected 3 or 4"),
        ("picture", "pixels", None, "no pixels"),
        ("plan", "height", 70_000, "sides must be"),
        ("plan", "tile_px", 49, "another spec"),
        ("plan", "grid_rows", 2**31 - 1, "damaged"),
        ("plan", "n_resizes", 3, "damaged"),
        ("plan", "n_tiles", 99, "damaged"),
        ("plan", "thumbnail", 7, "damaged"),
        ("arguments", "begin", -1, "outside 0 to"),
        ("arguments", "begin", 5, "outside 0 to"),
        ("arguments", "end", 9, "outside 0 to"),
        ("arguments", "tiles", None, "no place"),
        ("arguments", "tiles_bytes", 5 * 48 * 48 * 3 - 1, "the buffers have"),
        ("arguments", "scratch_bytes", 100, "the scratch has 100 bytes"),
        ("arguments", "scratch", None, "the scratch has"),
    ],
)
def test_what_does_not_fit_is_refused(
    where: str, field: str, value: int | None, message: str, engine: NativeLibrary
) -> None:
    call = Call(engine)
    call()  # as it is, it works
    assert call.tiles.any() and call.plan.n_tiles == 5
    target: Any = getattr(call, where)
    if isinstance(target, dict):
        target[field] = value
    else:
        setattr(target, field, value)
    with pytest.raises(UsageError, match=message):
        call()


def test_rows_may_be_padded(engine: NativeLibrary) -> None:
    call = Call(engine)
    call()
    expected = call.tiles.copy()
    wide = np.full((60, 307), 99, np.uint8)
    wide[:, :300] = call.pixels.reshape(60, 300)
    call.picture.pixels, call.picture.row_bytes, call.picture.size_bytes = wide.ctypes.data, 307, 59 * 307 + 300
    call.tiles[:] = 0
    call()
    np.testing.assert_array_equal(call.tiles, expected)


def test_scratch_of_a_photo_stays_small(engine: NativeLibrary) -> None:
    """A phone's photo of 12 megapixels needs less than 2 MB beside its own pixels."""
    for spec in (BLUELM, SMOLVLM):
        native, size = NativePictures(engine, spec), ctypes.c_int64()
        plan = native.plan(4000, 3000)
        engine.call("ev_image_scratch_bytes", ctypes.byref(native._spec), ctypes.byref(plan), ctypes.byref(size))
        assert 0 < size.value < 2 << 20
