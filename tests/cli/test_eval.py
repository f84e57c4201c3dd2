"""`edgevlm eval`: counts on stdout, comparisons, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.eval import JSON_FIELDS
from edgevlm.cli.main import main
from tests.edgevlm.question_sets import questions, write_set
from tests.edgevlm.tiny_package import write_package

AsJson = Callable[..., dict[str, Any]]
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_set(tmp_path_factory.mktemp("sets") / "small", questions()))


def test_report(package: str, small_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", package, "--set", small_set, *SHORT]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("small: tiny on onnx, tiling relaxed\n")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["all"][1:3] == ["0", "6"] and "kind" in rows and rows["size"][-2:] == ["tiles", "tokens"]


def test_json_out_and_against(package: str, small_set: str, tmp_path: Path, as_json: AsJson) -> None:
    first = as_json("eval", package, "--set", small_set, "--out", tmp_path / "r.json", "--limit", 4, *SHORT)
    assert set(first) == set(JSON_FIELDS) and first["flips"] is None and len(first["answers"]) == 4
    assert json.loads((tmp_path / "r.json").read_text()) == first
    second = as_json("eval", package, "--set", small_set, "--against", tmp_path / "r.json", *SHORT)
    assert second["flips"]["n_compared"] == second["flips"]["n_same_text"] == 4


def test_against_a_package_and_a_backend(
    package: str, small_set: str, tmp_path: Path, as_json: AsJson, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_package(tmp_path / "other", seed=5)
    flips = as_json("eval", package, "--set", small_set, "--against", other, *SHORT)["flips"]
    assert flips["n_compared"] == 6 and flips["n_same_text"] < 6 and flips["against"] == "tiny on onnx"
    assert main(["eval", package, "--set", small_set, "--against-backend", "onnx", *SHORT]) == 0
    assert "against tiny on onnx: 6 of 6 answers equal (100.0%), 0 gained, 0 lost" in capsys.readouterr().out


def test_tiling(package: str, small_set: str, as_json: AsJson) -> None:
    words = ("eval", package, "--set", small_set, *SHORT)
    fixed = as_json(*words, "--tiling", "fixed:2x2", "--no-thumbnail")
    assert fixed["tiling"]["scheme"] == "fixed" and [p["n_tiles"] for p in fixed["pictures"]] == [4, 4]
    assert as_json(*words, "--alpha", "0.3")["tiling"]["relaxed_alpha"] == 0.3
    assert as_json(*words, "--max-tiles", "2")["cost"]["n_tiles"] <= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "scenes"), "assets/demo/sets.py scenes"),
        (("--tiling", "mosaic"), "the tiling is 'mosaic'"),
        (("--limit", "0"), "at least 1"),
        (("--against", "none.json"), "cannot read these results"),
        (("--against", "none.json", "--against-backend", "onnx"), "is not a directory"),
        (("--out", "no/such/folder/r.json"), "cannot write the results"),
        (("--backend", "abacus"), "backend is 'abacus'"),
    ],
)
def test_refused(
    words: tuple[str, ...], message: str, package: str, small_set: str, as_json: AsJson,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = words if "--set" in words else ("--set", small_set, *words)
    assert message in as_json("eval", package, *given, code=2)["error"]["message"]
