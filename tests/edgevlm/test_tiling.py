"""Tile plans and tiles: the paper's sizes, the order-sensitive list, transformers' processors, and invariants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import ImageError, UnsupportedModelError, UsageError
from edgevlm.image import normalize
from edgevlm.spec import ProcessorSpec
from edgevlm.tiles_drawing import SCHEMES, count_tokens, draw_grid, tile_report
from edgevlm.tiling import TilePlan, cut_tiles, plan_tiles, relaxed_candidates, relaxed_grid
from tests.golden import make_tiling

GOLDEN = Path(__file__).parent.parent / "golden"
BLUELM = SCHEMES["bluelm_v"][0]
SMOLVLM = SCHEMES["smolvlm-256m"][0]
LLAVA = SCHEMES["llava-next"][0]
INTERNVL = SCHEMES["internvl"][0]
BOX3 = replace(BLUELM, max_rows=3, max_cols=3, max_tiles=9)

TILE_GRIDS = {
    name: replace(SMOLVLM, tile_px=tile, longest_edge_px=edge, max_tiles=(-(-edge // tile)) ** 2)
    for name, (_, tile, edge) in make_tiling.TILE_GRID_PROCESSORS.items()
}


def grid_wh(height: int, width: int, spec: ProcessorSpec) -> tuple[int, int]:
    plan = plan_tiles(height, width, spec)
    return plan.grid_cols, plan.grid_rows


# The paper's published points (arXiv 2411.10640, section 3.2 and figure 4), as width x height → columns : rows.
@pytest.mark.parametrize("spec", [BLUELM, BOX3], ids=["4x4", "3x3"])
@pytest.mark.parametrize(
    ("width", "height", "grid"), [(394, 390, (1, 1)), (380, 76, (1, 1)), (380, 393, (1, 1)), (500, 102, (2, 1))]
)
def test_relaxed_published_sizes(width: int, height: int, grid: tuple[int, int], spec: ProcessorSpec) -> None:
    assert grid_wh(height, width, spec) == grid


def test_relaxed_phone_screen() -> None:
    assert grid_wh(2400, 1080, BLUELM) == (2, 4)
    assert grid_wh(2400, 1080, BOX3) == (2, 3)
    assert plan_tiles(2400, 1080, BLUELM).n_tiles == 9  # 196 * 9 = 1764 tokens in the paper


@pytest.mark.parametrize(("width", "height", "grid"), [(394, 390, (2, 2)), (380, 393, (1, 2))])
def test_peers_choose_larger_grids_where_the_paper_says_so(width: int, height: int, grid: tuple[int, int]) -> None:
    pinpoints = tuple((384 * rows, 384 * cols) for rows in range(1, 4) for cols in range(1, 4))
    assert grid_wh(height, width, replace(LLAVA, tile_px=384, grid_pinpoints=pinpoints)) == grid


@pytest.mark.parametrize(("width", "height"), [(380, 76), (500, 102)])
def test_internvl_chooses_five_by_one(width: int, height: int) -> None:
    assert grid_wh(height, width, replace(INTERNVL, tile_px=384, max_tiles=6)) == (5, 1)


def order_rows() -> list[dict[str, object]]:
    return json.loads((GOLDEN / "relaxed_order.json").read_text())["sizes"]


def test_relaxed_order_sensitive_sizes() -> None:
    rows = order_rows()
    assert len(rows) >= 20
    ours = next(iter(make_tiling.ORDERS))
    for row in rows:
        assert grid_wh(row["height"], row["width"], BLUELM) == tuple(row["grids"][ours]), row


def test_relaxed_order_matters_on_these_sizes() -> None:
    """Negative control: enumerated ascending, many of the same sizes give other grids."""
    ascending = relaxed_candidates(BLUELM)[::-1]
    wrong = [
        row
        for row in order_rows()
        if relaxed_grid(row["height"], row["width"], 384, ascending, 0.1)
        != tuple(row["grids"]["descending area, descending columns"])
    ]
    assert len(wrong) >= 20


def test_relaxed_candidates_are_ordered_by_area_then_columns() -> None:
    assert relaxed_candidates(BLUELM)[:5] == [(4, 4), (4, 3), (3, 4), (3, 3), (4, 2)]
    assert relaxed_candidates(BLUELM, 4) == [(4, 1), (2, 2), (1, 4), (3, 1), (1, 3), (2, 1), (1, 2), (1, 1)]


def golden_grids() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "hf_grids.npz") as data:
        return {name: data[name] for name in data.files}


@pytest.mark.parametrize("name", list(TILE_GRIDS))
def test_tile_grid_equals_transformers(name: str) -> None:
    data = golden_grids()
    assert len(data["sizes"]) >= 2_000
    for (height, width), expected in zip(data["sizes"].tolist(), data[name].tolist(), strict=True):
        plan = plan_tiles(height, width, TILE_GRIDS[name])
        assert [plan.grid_rows, plan.grid_cols, plan.n_tiles] == expected, (height, width)


def test_tile_grid_check_can_fail() -> None:
    """Negative control: a longest edge that is off by one pixel shows in the grids."""
    data = golden_grids()
    wrong = replace(SMOLVLM, longest_edge_px=2049)
    differs = 0
    for (height, width), expected in zip(data["sizes"].tolist(), data["smolvlm-256m"].tolist(), strict=True):
        plan = plan_tiles(height, width, wrong)
        differs += [plan.grid_rows, plan.grid_cols, plan.n_tiles] != expected
    assert differs > 0


def test_internvl_equals_transformers() -> None:
    data = golden_grids()
    for (height, width), expected in zip(data["sizes"].tolist(), data["internvl"].tolist(), strict=True):
        plan = plan_tiles(height, width, INTERNVL)
        assert [plan.grid_rows, plan.grid_cols] == expected, (height, width)


def test_llava_next_equals_transformers() -> None:
    data = golden_grids()
    for (height, width), expected in zip(data["sizes"].tolist(), data["llava-next"].tolist(), strict=True):
        plan = plan_tiles(height, width, LLAVA)
        assert [*plan.canvas, *plan.resizes[0]] == expected, (height, width)


GOLDEN_SPECS = {
    "smolvlm-256m": SMOLVLM,
    "idefics3": TILE_GRIDS["idefics3"],
    "internvl": INTERNVL,
    "llava-next": LLAVA,
}


@pytest.mark.parametrize("name", ["coffee", "coffee-tall", "coffee-tiny", "coffee-flat", "coffee-large", "strip"])
def test_tiles_equal_transformers_to_the_byte(name: str) -> None:
    golden = json.loads((GOLDEN / "hf_tiles.json").read_text())[name]
    image = make_tiling.pictures()[name]
    for scheme, expected in golden.items():
        spec = GOLDEN_SPECS[scheme]
        tiles = cut_tiles(image, plan_tiles(*image.shape[:2], spec), spec)
        assert {"n_tiles": len(tiles), "sha256": hashlib.sha256(tiles.tobytes()).hexdigest()} == expected, scheme


def test_tile_hash_sees_a_thumbnail_made_from_the_picture() -> None:
    """Negative control: Idefics3's thumbnail is made from the canvas; from the picture it differs."""
    image = make_tiling.pictures()["coffee"]
    golden = json.loads((GOLDEN / "hf_tiles.json").read_text())["coffee"]["smolvlm-256m"]
    plan = plan_tiles(*image.shape[:2], SMOLVLM)
    tiles = cut_tiles(image, plan, replace(SMOLVLM, scheme="square"))
    assert len(tiles) == golden["n_tiles"]
    assert hashlib.sha256(tiles.tobytes()).hexdigest() != golden["sha256"]


sides = st.one_of(st.integers(1, 64), st.integers(1, 4_000), st.sampled_from([1, 20_000, 65_535, 384, 512, 513]))
specs = st.sampled_from(
    [BLUELM, BOX3, SMOLVLM, LLAVA, INTERNVL, *TILE_GRIDS.values(), replace(BLUELM, scheme="square")]
)


@settings(max_examples=300, deadline=None)
@given(height=sides, width=sides, spec=specs, budget=st.one_of(st.none(), st.integers(1, 20)))
def test_plan_invariants(height: int, width: int, spec: ProcessorSpec, budget: int | None) -> None:
    plan = plan_tiles(height, width, spec, budget)
    grid = plan.grid_rows * plan.grid_cols
    assert grid >= 1
    assert plan.n_tiles == grid + plan.thumbnail
    assert plan.canvas == (plan.grid_rows * spec.tile_px, plan.grid_cols * spec.tile_px)
    if budget is not None:
        assert grid <= budget
    if spec.scheme in ("relaxed", "internvl"):
        assert grid <= spec.max_tiles
    check_coverage(plan)


def check_coverage(plan: TilePlan) -> None:
    """The resized picture lies inside the canvas, touches two opposite edges, and is centred."""
    (height, width), (top, left), (canvas_height, canvas_width) = plan.resizes[-1], plan.offset, plan.canvas
    assert min(height, width, top + 1, left + 1) >= 1
    assert top + height <= canvas_height and left + width <= canvas_width
    assert height == canvas_height or width == canvas_width
    assert 0 <= canvas_height - height - 2 * top <= 1 and 0 <= canvas_width - width - 2 * left <= 1


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides)
def test_relaxed_is_exact_at_any_ratio(height: int, width: int) -> None:
    """The size on the canvas is the exact floor, with no drift of a float scale."""
    plan = plan_tiles(height, width, BLUELM)
    canvas_height, canvas_width = plan.canvas
    if plan.resizes[0][1] == canvas_width and plan.resizes[0][0] != canvas_height:
        assert plan.resizes[0][0] == max(1, height * canvas_width // width)
    elif plan.resizes[0][0] == canvas_height and plan.resizes[0][1] != canvas_width:
        assert plan.resizes[0][1] == max(1, width * canvas_height // height)


@settings(max_examples=100, deadline=None)
@given(height=sides, width=sides)
def test_relaxed_of_a_turned_picture_has_the_same_area(height: int, width: int) -> None:
    plan, turned = plan_tiles(height, width, BLUELM), plan_tiles(width, height, BLUELM)
    assert plan.n_tiles == turned.n_tiles


def test_extreme_panorama() -> None:
    wide, tall = plan_tiles(1, 20_000, BLUELM), plan_tiles(20_000, 1, BLUELM)
    assert (wide.grid_rows, wide.grid_cols) == (1, 4) and wide.resizes == ((1, 1536),)
    assert (tall.grid_rows, tall.grid_cols) == (4, 1) and tall.resizes == ((1536, 1),)
    image = np.full((1, 20_000, 3), 7, np.uint8)
    assert cut_tiles(image, wide, BLUELM).shape == (5, 384, 384, 3)


def test_relaxed_tiles_lie_on_the_mean_colour_with_the_thumbnail_first() -> None:
    image = np.full((384, 700, 3), 255, np.uint8)
    spec = replace(BLUELM, image_mean=(0.1, 0.5, 0.9))
    plan = plan_tiles(384, 700, spec)
    tiles = cut_tiles(image, plan, spec)
    assert (plan.grid_rows, plan.grid_cols, plan.thumbnail, plan.offset) == (1, 2, True, (0, 34))
    assert (tiles[0] == 255).all()
    assert tiles[1, 0, 0].tolist() == [26, 128, 230] == tiles[1, 383, 33].tolist()
    assert (tiles[1, :, 34:] == 255).all() and tiles[2, 5, 383].tolist() == [26, 128, 230]


def test_one_tile_has_no_thumbnail() -> None:
    plan = plan_tiles(390, 394, BLUELM)
    assert (plan.n_tiles, plan.thumbnail) == (1, False)


def test_budget_lowers_the_longest_edge_by_whole_tiles() -> None:
    sizes = [plan_tiles(1000, 1000, SMOLVLM, budget) for budget in (16, 15, 9, 8, 4, 3, 1)]
    assert [plan.grid_rows * plan.grid_cols for plan in sizes] == [16, 9, 9, 4, 4, 1, 1]
    assert [max(plan.resizes[0]) for plan in sizes] == [2048, 1536, 1536, 1024, 1024, 512, 512]
    odd = replace(SMOLVLM, tile_px=7, longest_edge_px=28)
    assert plan_tiles(10, 10, odd, 1).n_tiles == 1


def test_a_longest_edge_below_a_tile_is_what_the_picture_becomes_first() -> None:
    """Not one pixel less than the tile, which is only the last resort of a budget."""
    plan = plan_tiles(455, 2, replace(SMOLVLM, tile_px=32, longest_edge_px=1, max_tiles=1))
    assert plan.resizes == ((1, 1), (32, 32))
    plan = plan_tiles(40, 20, replace(SMOLVLM, tile_px=32, longest_edge_px=20, max_tiles=1))
    assert plan.resizes == ((20, 10), (32, 32))


def test_the_colour_of_padding_is_a_colour_whatever_the_mean_is() -> None:
    """A measured tiling pads with the mean of a processor that does not rescale."""
    spec = replace(BLUELM, tile_px=32, image_mean=(123.7, -0.5, 0.5), rescale_factor=1.0)
    tiles = cut_tiles(np.full((8, 64, 3), 7, np.uint8), plan_tiles(8, 64, spec), spec)
    assert tiles[-1, -1, -1].tolist() == [255, 0, 128]


def test_an_exported_budget_holds_without_being_asked_for() -> None:
    """`edgevlm export --max-tiles 4`: the package's own number is the limit."""
    small = replace(SMOLVLM, max_tiles=4)
    for budget in (None, 4, 16):
        assert plan_tiles(1000, 1000, small, budget).n_tiles == 5


def test_refused_plans() -> None:
    with pytest.raises(UsageError, match="budget is 0"):
        plan_tiles(10, 10, BLUELM, 0)
    with pytest.raises(ImageError, match="cannot be tiled"):
        plan_tiles(0, 10, BLUELM)
    with pytest.raises(UnsupportedModelError, match="'naflex' is not implemented"):
        plan_tiles(10, 10, replace(BLUELM, scheme="naflex"))
    with pytest.raises(UnsupportedModelError, match="longest_edge_px"):
        plan_tiles(10, 10, replace(SMOLVLM, longest_edge_px=None))


def test_report_counts_tokens_per_scheme() -> None:
    image = np.zeros((2400, 1080, 3), np.uint8)
    rows = {row.scheme: row for row in tile_report(image)}
    assert rows["bluelm_v"].n_tokens == 1764
    assert (rows["smolvlm-256m"].rows, rows["smolvlm-256m"].cols, rows["smolvlm-256m"].n_tokens) == (4, 2, 9 * 64)
    assert rows["internvl"].n_tokens == 256 * rows["internvl"].n_tiles
    fitted = {row.scheme: row for row in tile_report(image, max_tiles=2)}
    assert all(row.rows * row.cols <= 2 for row in fitted.values())


def test_drawing_has_the_size_of_the_canvas() -> None:
    image = make_tiling.pictures()["coffee"]
    for spec, _ in SCHEMES.values():
        plan = plan_tiles(*image.shape[:2], spec)
        drawn = draw_grid(image, plan)
        assert (drawn.height, drawn.width) == plan.canvas
        assert drawn.getpixel((0, 0)) == (255, 64, 32)


@pytest.mark.reference
def test_live_transformers_grids_and_pixels() -> None:
    pytest.importorskip("transformers")
    image = make_tiling.pictures()["coffee"]
    with make_tiling.sizes_only():
        for name, setting in make_tiling.TILE_GRID_PROCESSORS.items():
            proc = make_tiling.processor(*setting)
            for height, width in make_tiling.random_sizes(11, 2_000):
                plan = plan_tiles(height, width, TILE_GRIDS[name])
                expected = make_tiling.hf_grid(proc, height, width)
                assert (plan.grid_rows, plan.grid_cols, plan.n_tiles) == expected, (height, width)
    for name in ("smolvlm-256m", "idefics3"):
        proc, spec = make_tiling.processor(*make_tiling.TILE_GRID_PROCESSORS[name]), TILE_GRIDS[name]
        tiles = cut_tiles(image, plan_tiles(*image.shape[:2], spec), spec)
        np.testing.assert_array_equal(tiles, make_tiling.hf_tiles(proc, image))
        from PIL import Image

        pixels = proc.preprocess([Image.fromarray(image)], do_pad=False)["pixel_values"][0]
        spec = replace(spec, image_mean=tuple(proc.image_mean), image_std=tuple(proc.image_std))
        np.testing.assert_array_equal(normalize(tiles, spec), np.stack(pixels))


@pytest.mark.reference
def test_live_llava_next_token_count() -> None:
    pytest.importorskip("transformers")
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    counter = LlavaNextProcessor.__new__(LlavaNextProcessor)
    counter.patch_size, counter.num_additional_image_tokens = 14, 0
    counter.vision_feature_select_strategy = "full"
    for height, width in make_tiling.random_sizes(5, 500):
        plan = plan_tiles(height, width, LLAVA)
        unpadded, newline = counter._get_unpadded_features(
            height, width, 24, 24, plan.canvas[0] // 336, plan.canvas[1] // 336
        )
        assert count_tokens(plan, 576, height, width) == 576 + unpadded + newline, (height, width)
