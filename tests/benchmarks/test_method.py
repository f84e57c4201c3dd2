"""The measurements behind docs/method.md run on tiny packages, continue where they stopped, and judge rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import library_path
from edgevlm.backends.native_tower import NativeTower
from edgevlm.evaluation.question_set import Question
from edgevlm.evaluation.run import evaluate
from edgevlm.evaluation.scores import Flips
from edgevlm.package import open_package
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.benchmarks import downsampler, method_page, picture_fidelity, plan_sizes, tiling_ablation
from tests.benchmarks.kv_bits import rounded
from tests.edgevlm.question_sets import SIZES, write_set
from tests.edgevlm.tiny_package import write_package
from tvm_schedules.key_ranges import KeyRange


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets under the names that are measured, of two pictures each."""
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    groups = {"aspect ratio": "up to 2:1", "text height in one tile": "under 10 px", "reading": "yes", "kind": "words"}
    asked = [Question(name, "What?", ("x",), "word", groups) for name in SIZES]
    for name in tiling_ablation.SETS:
        write_set(tmp_path / "cache" / "sets" / name, asked)
    return tmp_path


def test_ablation_continues_and_runs_equal_plans_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = write_package(cache / "package")
    arguments = {"backend": "onnx", "threads": 1}
    results = tiling_ablation.measure(package, cache / "out", None, arguments)
    assert {name: list(cells) for name, cells in results.items()} == {
        name: list(cells) for name, cells in tiling_ablation.CELLS.items()
    }
    first = capsys.readouterr().err
    assert first.count("0 of 2 pictures run") > 5, "alpha 0.1 is relaxed itself, at most 16 too"

    files = sorted((cache / "out").rglob("*.json"))
    written = {file: file.stat().st_mtime_ns for file in files}
    (removed,) = (file for file in files if file.name == "internvl.json" and "scenes" in file.parent.name)
    before = json.loads(removed.read_text())
    removed.unlink()
    assert tiling_ablation.measure(package, cache / "out", None, arguments) != {}
    after = json.loads(removed.read_text())
    assert [a["text"] for a in after["answers"]] == [a["text"] for a in before["answers"]]
    assert all(file.stat().st_mtime_ns == at for file, at in written.items() if file != removed)

    alone = evaluate(str(package), tiling_ablation.open_set("scenes"), tiling={"name": "internvl"})
    shared = results["scenes"]["internvl"]
    assert [(a.question, a.text) for a in shared.answers] == [(a.question, a.text) for a in alone.answers]
    assert shared.cost.n_tiles == alone.cost.n_tiles

    page = cache / "method.md"
    page.write_text("before\n<!-- ablation:begin -->\nold\n<!-- ablation:end -->\nafter\n")
    asked = {name: tiling_ablation.open_set(name).questions for name in results}
    text = method_page.ablation_tables(results, asked, tiling_ablation.ALPHAS, tiling_ablation.BUDGETS)
    assert "- scenes, llava-next: holds" in text and "  - aspect ratio up to 2:1: holds" in text
    assert "- scenes, internvl: holds" in text and "- easy-vqa, internvl: holds" in text
    method_page.write_section("ablation", text, page)
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    assert "\nold\n" not in page.read_text() and "| fixed:2x2 |" in page.read_text()
    with pytest.raises(SystemExit):
        method_page.write_section("absent", text, page)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    method_page.plot_ablation(results, tiling_ablation.ALPHAS, tiling_ablation.BUDGETS, cache / "plots")
    method_page.plot_sizes({32: [2.0, 3.0, 2.5], 64: [1.0, 1.5, 2.0]}, {1: [1.0], 4: [0.5]}, cache / "plots")
    sizes = {path.name: path.stat().st_size for path in (cache / "plots").iterdir()}
    assert sorted(sizes) == ["groups.png", "sizes.png", "tilings.png"] and min(sizes.values()) > 5_000


def test_merged_and_unmerged_tokens_stand_side_by_side(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = []
    for factor in (2, 1):
        checkpoint = tiny.make_bluelm_v(cache / f"checkpoint-{factor}", scale_factor=factor)
        options = ExportOptions(scheme="fp32", verify=False)
        packages.append(str(export_package(checkpoint, cache / f"package-{factor}", options)))
    monkeypatch.setattr(sys, "argv", ["", *packages, "--backend", "onnx", "--out", str(cache / "out")])
    downsampler.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| 9 |", "| 25 |"))]
    merged, unmerged = rows[2:]  # of scenes, whose pictures need several tiles
    assert float(unmerged[3]) == float(merged[3]) > 1
    assert float(unmerged[4]) == pytest.approx(float(merged[4]) * 25 / 9, abs=1)
    assert "| category | questions | 9 tokens | 25 tokens |" in lines


@pytest.mark.parametrize(
    ("tiles", "gained", "lost", "p_value", "expected"),
    [
        (3.0, 5, 5, 1.0, "holds, with about the same number"),
        (3.0, 30, 5, 0.001, "holds, with more"),
        (3.0, 5, 30, 0.001, "does not hold, fewer right answers"),
        (4.5, 30, 5, 0.001, "does not hold, no fewer tiles"),
        (4.5, 5, 30, 0.001, "does not hold, no fewer tiles and fewer right answers"),
    ],
)
def test_verdict(tiles: float, gained: int, lost: int, p_value: float, expected: str) -> None:
    flips = Flips("other", 400, 300, gained, lost, (gained - lost) / 400, p_value)
    assert method_page.verdict(tiles, 4.0, flips).startswith(expected)


@pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")
def test_native_measurements(cache: Path) -> None:
    """One checkpoint: every fidelity cell, then plans with other fixed sizes give the same logits."""
    wide = {"vision": {"hidden_size": 128}, "text": {"hidden_size": 128, "intermediate_size": 192, "head_dim": 64}}
    checkpoint = tiny.make_bluelm_v(cache / "checkpoint", **wide)
    questions = tiling_ablation.open_set("scenes")
    fidelity = picture_fidelity.Fidelity(checkpoint, cache / "fidelity", questions, None, 2, 1)
    results = {cell: fidelity.run(cell) for cell in picture_fidelity.CELLS}
    exact = results[picture_fidelity.CELLS[0]][1]
    assert exact.mean_kl < 1e-9 and exact.top1 == 1 and exact.least_cosine > 0.999999
    far = {(cell.language, cell.vision, cell.cache): distance for cell, (_, distance) in results.items()}
    assert far["w4g32", "fp32", "float"].mean_kl > far["w8", "fp32", "float"].mean_kl > 0
    assert far["fp32", "fp32", "int8"].mean_kl > 0 and far["fp32", "w8", "float"].mean_cosine < 1
    assert {found.backend for found, _ in results.values()} == {"onnx", "native"}
    assert "w4g32-mix" in picture_fidelity.report(results)
    assert {(vision, tower.__name__) for vision, tower in fidelity._features} == {
        ("fp32", "OnnxTower"), ("w8", "OnnxTower"), ("w8", "NativeTower"),
    }  # fmt: skip
    cell = picture_fidelity.Cell("w8", "w8", "float")
    alone = picture_fidelity.Fidelity(checkpoint, cache / "fidelity", questions, None, 2, 1)
    next(fidelity.out.glob("w8-vision-w8-float-*-distance.json")).unlink()
    assert alone.run(cell)[1] == results[cell][1], "features of another cell are this cell's own"
    package = fidelity.out / "w8-vision-w8"
    (checkpoint / "model.safetensors").touch()
    changed = picture_fidelity.Fidelity(checkpoint, cache / "fidelity", questions, None, 2, 1)
    assert alone.out == fidelity.out != changed.out, "packages of other weights are not taken for these"

    ids = np.arange(200) % 300
    logits = []
    for chunk, batch in ((32, 1), (128, 4), (256, 6)):
        path = plan_sizes.compiled_with(package, cache / f"chunk-{chunk}", chunk, batch)
        session = NativeSession(open_package(path), context=256, threads=1)
        logits.append(session.prefill([ids], np.arange(200)))
        assert isinstance(session.tower, NativeTower) and session.tower.info.max_batch == batch
    for other in logits[1:]:
        assert np.linalg.norm(other - logits[0]) / np.linalg.norm(logits[0]) < 2e-2
    assert open_package(package).compiled("x86_64") is not None


def test_rounded_cache_is_what_the_sessions_hold(cache: Path) -> None:
    session = picture_fidelity.OnnxSession(open_package(write_package(cache / "package")), context=64)
    plain = KeyRange(np.zeros((2, 16), np.float32), np.zeros((2, 8), np.int32))
    picture_fidelity.round_cache(session, [plain] * 2)
    session.prefill([np.arange(10)], np.arange(10))
    session.step(3, 10)
    held = session.snapshot().arrays
    for array in held:
        np.testing.assert_allclose(rounded(array, 8), array, atol=1e-6)
        assert len(np.unique(array[0, 0, 4])) > 4
    exact = picture_fidelity.OnnxSession(open_package(cache / "package"), context=64)
    exact.prefill([np.arange(10)], np.arange(10))
    exact.step(3, 10)
    assert any((a != b).any() for a, b in zip(held, exact.snapshot().arrays, strict=True))
