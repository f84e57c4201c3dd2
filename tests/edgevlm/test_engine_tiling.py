"""The engine's tile plans against edgevlm/tiling.py, and against transformers' own in tests/golden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native_library import NativeLibrary
from edgevlm.backends.native_picture import NativePictures
from edgevlm.errors import UnsupportedModelError, UsageError
from edgevlm.spec import ProcessorSpec
from edgevlm.tiles_drawing import SCHEMES
from edgevlm.tiling import plan_tiles
from tests.golden import make_tiling

GOLDEN = Path(__file__).parent.parent / "golden"
BLUELM, SMOLVLM = SCHEMES["bluelm_v"][0], SCHEMES["smolvlm-256m"][0]
SPECS: dict[str, ProcessorSpec] = {
    "relaxed": BLUELM,
    "relaxed-wide-box": replace(BLUELM, max_rows=7, max_cols=5, max_tiles=20, tile_px=378, relaxed_alpha=0.25),
    "smolvlm": SMOLVLM,
    "smolvlm-1920": replace(SMOLVLM, longest_edge_px=1920),
    "idefics3": replace(SMOLVLM, tile_px=364, longest_edge_px=4 * 364),
    "above-idefics3-limit": replace(SMOLVLM, tile_px=7, longest_edge_px=5000),
    "internvl": SCHEMES["internvl"][0],
    "llava-next": SCHEMES["llava-next"][0],
    "square": replace(BLUELM, scheme="square"),
    "square-edge": replace(BLUELM, scheme="square", longest_edge_px=500),
    "edge-below-a-tile": replace(SMOLVLM, tile_px=64, longest_edge_px=21, max_tiles=1),
}
N_SIZES = {"relaxed": 20_000, "smolvlm": 20_000}


def random_sizes(seed: int, count: int) -> list[tuple[int, int, int | None]]:
    """Sizes of photos, of tiny pictures and of strips; half of them with a tile budget."""
    rng = np.random.default_rng(seed)
    most = rng.choice([8, 70, 700, 5_000, 65_535, 2**31 - 1], (count, 2))
    sides = rng.integers(1, most, endpoint=True)
    budgets = np.where(rng.random(count) < 0.5, 0, rng.integers(1, 20, count))
    return [(int(h), int(w), int(b) or None) for (h, w), b in zip(sides, budgets, strict=True)]


@pytest.mark.parametrize("name", SPECS)
def test_plans_equal_the_runtimes(name: str, engine: NativeLibrary) -> None:
    spec = SPECS[name]
    native = NativePictures(engine, spec)
    for height, width, budget in random_sizes(len(name), N_SIZES.get(name, 1_500)):
        plan = native.plan(height, width, budget)
        assert native.tile_plan(plan) == plan_tiles(height, width, spec, budget), (height, width, budget)
        assert plan.n_tiles == plan_tiles(height, width, spec, budget).n_tiles


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("relaxed", {"relaxed_alpha": 0.11}),
        ("smolvlm", {"longest_edge_px": 2047}),
        ("internvl", {"tile_px": 447}),
        ("llava-next", {"grid_pinpoints": ((336, 673), *SCHEMES["llava-next"][0].grid_pinpoints[1:])}),
    ],
)
def test_another_setting_gives_other_plans(name: str, wrong: dict[str, object], engine: NativeLibrary) -> None:
    """Negative control: the comparison sees the smallest change of a setting."""
    native = NativePictures(engine, replace(SPECS[name], **wrong))
    differs = sum(
        native.tile_plan(native.plan(height, width, budget)) != plan_tiles(height, width, SPECS[name], budget)
        for height, width, budget in random_sizes(1, 1_000)
    )
    assert differs > 0


def test_grids_equal_transformers(engine: NativeLibrary) -> None:
    with np.load(GOLDEN / "hf_grids.npz") as data:
        golden = {name: data[name].tolist() for name in data.files}
    for name, (_, tile, edge) in make_tiling.TILE_GRID_PROCESSORS.items():
        spec = replace(SMOLVLM, tile_px=tile, longest_edge_px=edge, max_tiles=(-(-edge // tile)) ** 2)
        native = NativePictures(engine, spec)
        for (height, width), expected in zip(golden["sizes"], golden[name], strict=True):
            plan = native.plan(height, width)
            assert [plan.grid_rows, plan.grid_cols, plan.n_tiles] == expected, (name, height, width)
    internvl, llava = (NativePictures(engine, SPECS[name]) for name in ("internvl", "llava-next"))
    for i, (height, width) in enumerate(golden["sizes"]):
        plan = internvl.plan(height, width)
        assert [plan.grid_rows, plan.grid_cols] == golden["internvl"][i], (height, width)
        plan = llava.plan(height, width)
        canvas = [plan.grid_rows * 336, plan.grid_cols * 336]
        assert [*canvas, *plan.resizes[0]] == golden["llava-next"][i], (height, width)


def test_grids_equal_the_order_sensitive_list(engine: NativeLibrary) -> None:
    rows = json.loads((GOLDEN / "relaxed_order.json").read_text())["sizes"]
    ours = next(iter(make_tiling.ORDERS))
    native = NativePictures(engine, BLUELM)
    plans = [native.plan(row["height"], row["width"]) for row in rows]
    assert len(rows) >= 20
    assert [[p.grid_cols, p.grid_rows] for p in plans] == [list(row["grids"][ours]) for row in rows]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 1.0, 0.123456, 1e-6])
def test_alpha_is_the_decimal_that_it_is_written_as(alpha: float, engine: NativeLibrary) -> None:
    spec = replace(BLUELM, relaxed_alpha=alpha)
    native = NativePictures(engine, spec)
    for height, width, budget in random_sizes(7, 500):
        assert native.tile_plan(native.plan(height, width, budget)) == plan_tiles(height, width, spec, budget)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 0}, "tile_px is 0"),
        ({"tile_px": 5_000}, "tile_px is 5000"),
        ({"max_rows": 65}, "max_rows"),
        ({"max_cols": -1}, "max_cols"),
        ({"max_tiles": 0}, "max_tiles is 0"),
        ({"relaxed_alpha": 0.12345678}, "six decimals"),
        ({"relaxed_alpha": float("nan")}, "relaxed_alpha"),
        ({"image_std": (1.0, 0.0, 1.0)}, "image_std"),
        ({"image_mean": (0.5, -0.5, 0.5)}, "image_mean is -0.5, expected 0 to 1"),
        ({"image_mean": (0.5, -2e6, 0.5), "scheme": "square"}, "image_mean is -2e\\+06, expected -1e6 to 1e6"),
        ({"image_mean": (0.5, float("nan"), 0.5), "scheme": "square"}, "image_mean is -?nan"),
        ({"rescale_factor": 0.0}, "rescale_factor is 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor is inf"),
        ({"scheme": "tile_grid"}, "longest_edge_px"),
        ({"scheme": "llava_next"}, "0 grid_pinpoints"),
    ],
)
def test_specs_out_of_range_are_refused(wrong: dict[str, object], message: str, engine: NativeLibrary) -> None:
    with pytest.raises(UsageError, match=message):
        NativePictures(engine, replace(BLUELM, **wrong)).plan(100, 100)


def test_sizes_and_budgets_out_of_range_are_refused(engine: NativeLibrary) -> None:
    native = NativePictures(engine, BLUELM)
    for height, width in ((0, 5), (5, 0), (-1, 5), (5, -(2**31))):
        with pytest.raises(UsageError, match="cannot be tiled"):
            native.plan(height, width)
    with pytest.raises(UsageError, match="budget is -1"):
        native.plan(5, 5, -1)
    with pytest.raises(UnsupportedModelError, match="naflex"):
        NativePictures(engine, replace(BLUELM, scheme="naflex"))
    with pytest.raises(UnsupportedModelError, match="65 grid_pinpoints"):
        NativePictures(engine, replace(BLUELM, grid_pinpoints=((384, 384),) * 65))
