"""`edgevlm tiles`: counts on stdout, the drawing in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm.cli.main import main
from edgevlm.cli.tiles import JSON_FIELDS

AsJson = Callable[..., dict[str, Any]]


def test_all_schemes(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiles", picture]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{picture}: 120 x 60 pixels\n")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["bluelm_v", "smolvlm-256m", "llava-next", "internvl"]


def test_json_and_drawing(picture: str, package: str, tmp_path: Path, as_json: AsJson) -> None:
    out = tmp_path / "grid.png"
    found = as_json("tiles", picture, "--package", package, "-o", out)
    assert set(found) == set(JSON_FIELDS)
    (row,) = found["schemes"]
    assert row["n_tiles"] == row["rows"] * row["cols"] + 1 and row["n_tokens"] == 4 * row["n_tiles"]
    assert (found["height_px"], found["width_px"], found["output"]) == (60, 120, str(out))
    with Image.open(out) as drawing:
        assert (drawing.format, drawing.size) == ("PNG", (28 * row["cols"], 28 * row["rows"]))


def test_max_tiles(picture: str, package: str, as_json: AsJson) -> None:
    (row,) = as_json("tiles", picture, "--package", package, "--max-tiles", 1)["schemes"]
    assert row["rows"] * row["cols"] == 1


def test_unknown_scheme(picture: str, as_json: AsJson) -> None:
    assert "expected one of: bluelm_v" in as_json("tiles", picture, "--scheme", "mosaic", code=2)["error"]["message"]
