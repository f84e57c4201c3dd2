"""Tilings for measurements: published grids over the package's own box, its own paint, options that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native_picture import image_spec
from edgevlm.errors import UnsupportedModelError, UsageError
from edgevlm.evaluation.question_set import open_set
from edgevlm.evaluation.run import evaluate
from edgevlm.evaluation.tilings import measured_tiling, tiling_names
from edgevlm.model import load
from edgevlm.tile_batches import PillowTiles
from edgevlm.tiles_drawing import SCHEMES
from edgevlm.tiling import cut_tiles, plan_tiles
from tests.edgevlm.question_sets import questions, write_set

BLUELM = SCHEMES["bluelm_v"][0]
SMOLVLM = SCHEMES["smolvlm-256m"][0]


# The sizes that BlueLM-V-3B publishes for each rule (arXiv 2411.10640, section 3.2), columns : rows.
@pytest.mark.parametrize(
    ("name", "max_tiles", "width", "height", "grid"),
    [
        ("relaxed", None, 394, 390, (1, 1)),
        ("relaxed", None, 380, 76, (1, 1)),
        ("relaxed", None, 500, 102, (2, 1)),
        ("relaxed", None, 1080, 2400, (2, 4)),
        ("llava-next", None, 394, 390, (2, 2)),
        ("llava-next", None, 380, 393, (1, 2)),
        ("internvl", 6, 380, 76, (5, 1)),
        ("internvl", 6, 500, 102, (5, 1)),
        ("square", None, 1080, 2400, (1, 1)),
        ("fixed:2x3", None, 10, 2000, (3, 2)),
    ],
)
def test_published_grids(name: str, max_tiles: int | None, width: int, height: int, grid: tuple[int, int]) -> None:
    plan = plan_tiles(height, width, measured_tiling(BLUELM, name, max_tiles=max_tiles))
    assert (plan.grid_cols, plan.grid_rows) == grid


def test_alpha_moves_the_choice() -> None:
    """394 x 390 shows 5.0 % less on one tile: at alpha 0.02 that is too much.

    At 0 nothing is about equal, so that the first grid stays, the largest: algorithm 1 as printed.
    """
    grids = {
        alpha: plan_tiles(390, 394, measured_tiling(BLUELM, alpha=alpha)).n_tiles for alpha in (0.0, 0.02, 0.1, 0.3)
    }
    assert grids == {0.0: 17, 0.02: 5, 0.1: 1, 0.3: 1}


def test_thumbnail_and_budget() -> None:
    with_thumbnail = plan_tiles(2400, 1080, measured_tiling(BLUELM, "relaxed"))
    without = plan_tiles(2400, 1080, measured_tiling(BLUELM, "relaxed", thumbnail=False))
    assert (with_thumbnail.n_tiles, without.n_tiles) == (9, 8)
    assert plan_tiles(2400, 1080, measured_tiling(BLUELM, max_tiles=4)).n_tiles <= 5
    # LLaVA-NeXT adds the thumbnail to a grid of one tile, too
    assert plan_tiles(384, 384, measured_tiling(BLUELM, "llava-next")).n_tiles == 2


def test_fixed_grid_keeps_the_ratio_and_obeys_a_budget() -> None:
    spec = measured_tiling(BLUELM, "fixed:2x2")
    plan = plan_tiles(100, 400, spec)
    assert (plan.n_tiles, plan.resizes, plan.offset) == (5, ((192, 768),), (288, 0))
    assert plan_tiles(100, 400, spec, max_tiles=3).n_tiles == 1


def test_a_package_with_another_rule_gets_the_square_box_of_its_budget() -> None:
    spec = measured_tiling(SMOLVLM, "relaxed")
    assert (spec.max_rows, spec.max_cols, spec.tile_px) == (4, 4, 512)
    assert plan_tiles(500, 500, spec).n_tiles == 1  # SmolVLM's own rule takes 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mosaic"}, "expected one of: relaxed, llava-next"),
        ({"name": "fixed:0x2"}, "expected one of"),
        ({"name": "internvl", "alpha": 0.1}, "alpha is for"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measured_tiling(BLUELM, **options)  # type: ignore[arg-type]


def test_phones_refuse_the_measuring_rule_by_name() -> None:
    assert image_spec(measured_tiling(BLUELM, "llava-next")).n_pinpoints == 16
    with pytest.raises(UnsupportedModelError, match="'fixed' is not in the engine"):
        image_spec(measured_tiling(BLUELM, "fixed:1x1"))


def test_the_paint_stays_the_packages() -> None:
    """LLaVA-NeXT's rule on a package that pads with its mean colour: planned by the one, painted by the other."""
    own = replace(BLUELM, tile_px=32)
    rule = measured_tiling(own, "llava-next")
    picture = np.full((20, 60, 3), 255, np.uint8)
    plan = plan_tiles(20, 60, rule)
    painted = PillowTiles(own)(picture, plan, 0, plan.n_tiles)
    padding = painted[1, :, 0, 0]
    assert np.abs(padding).max() < 0.01, "the mean colour normalises to about zero"
    published = cut_tiles(picture, plan, rule)
    assert published[1, 0, 0].tolist() == [0, 0, 0]  # negative control: as LLaVA-NeXT paints it


def test_every_rule_answers(tiny: Path, tmp_path: Path) -> None:
    asked = open_set(str(write_set(tmp_path / "set", questions(2))))
    tiles = {}
    for name in [*tiling_names()[:-1], "fixed:1x1", "fixed:2x2"]:
        found = evaluate(str(tiny), asked, max_new_tokens=2, tiling={"name": name})
        tiles[name] = [picture.n_tiles for picture in found.pictures]
        assert found.score.n_asked == 2
    assert tiles["fixed:1x1"] == tiles["square"] == [1, 1] and tiles["fixed:2x2"] == [5, 5]
    assert tiles["relaxed"][1] == 1 and tiles["llava-next"][1] == 2
    with load(tiny) as model:
        own = [model.picture(tmp_path / "set" / q.image).plan.n_tiles for q in asked.questions]
    assert own == tiles["relaxed"]
