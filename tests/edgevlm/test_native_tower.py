"""The engine's vision encoder against onnxruntime: every tower, threads, variants, cancelling, damage, the session."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import library_path
from edgevlm.backends.native_tower import NativeTower
from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.onnx_tower import OnnxTower
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.cli.main import main
from edgevlm.errors import UnsupportedModelError, UsageError
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.edgevlm import towers
from tvm_schedules.compile import compile_package

pytestmark = pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")

WIDE = {"hidden_size": 128}
# MLP features that are a multiple of 16 only, as so400m's 4304; heads of 72 channels.
SO400M = {"hidden_size": 576, "num_attention_heads": 8, "intermediate_size": 176}
CASES: dict[str, tuple[Callable[..., Path], dict[str, Any], str]] = {
    "dinov2": (tiny.make_dinov2, WIDE, "w8g64"),
    "siglip": (tiny.make_siglip, {**WIDE, "intermediate_size": 176, "image_size": 52}, "w8"),
    "so400m": (tiny.make_siglip, SO400M, "w8g64"),
    "so400m-w4": (tiny.make_siglip, SO400M, "w4g32z"),
    "idefics3": (tiny.make_idefics3, {"vision": WIDE}, "w8"),
    "smolvlm": (tiny.make_smolvlm, {"vision": WIDE}, "w8g64"),
    "bluelm_v": (tiny.make_bluelm_v, {"vision": WIDE}, "w8g64"),
    "bluelm_v, a token each patch": (tiny.make_bluelm_v, {"vision": WIDE, "scale_factor": 1}, "w8g64"),
}


class Case:
    """One tower: its graphs with stored codes and in fp32, and pictures of five tiles."""

    def __init__(self, name: str, directory: Path) -> None:
        make, sizes, scheme = CASES[name]
        checkpoint = make(directory / "checkpoint", **sizes)
        self.graph = towers.export_graph(checkpoint, directory / "stored", scheme)
        self.exact = towers.export_graph(checkpoint, directory / "fp32", "fp32")
        self.plan = directory / "plan"
        with self.engine() as engine:
            side = engine.tower.info.tile_px
        self.pixels = np.random.default_rng(0).standard_normal((5, 3, side, side)).astype(np.float32)

    def engine(self, **options: Any) -> towers.EngineTower:
        return towers.EngineTower(self.graph, self.plan, **options)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("bluelm_v", tmp_path_factory.mktemp("small"))


def test_features_equal_onnxruntime(case: Case) -> None:
    """Five tiles: a batch of four and one. As near to fp32 as onnxruntime is with the same codes."""
    with case.engine() as engine:
        found = engine.tower.encode(case.pixels)
    stored, exact = towers.run_onnx(case.graph, case.pixels), towers.run_onnx(case.exact, case.pixels)
    assert found.shape == stored.shape
    # Measured 2026-11-25: distances 1.0e-2 to 2.1e-2, 1 - cosine at most 1.25 times onnxruntime's.
    assert np.linalg.norm(found - stored) / np.linalg.norm(stored) < 4e-2
    assert 1 - towers.cosines(found, exact).mean() < 1.6 * (1 - towers.cosines(stored, exact).mean())
    mirrored = towers.run_onnx(case.graph, np.ascontiguousarray(case.pixels[..., ::-1]))  # negative control
    assert np.linalg.norm(found - mirrored) / np.linalg.norm(stored) > 4e-2


def test_threads_and_batches_do_not_change_a_bit(case: Case) -> None:
    results = []
    for threads in (1, 2, 3):
        with case.engine(threads=threads) as engine:
            results.append(engine.tower.encode(case.pixels))
    with case.engine() as engine:
        results.append(np.concatenate([engine.tower.encode(case.pixels[i : i + 1]) for i in range(5)]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_variants_agree(case: Case) -> None:
    found = []
    with case.engine() as engine:
        names = engine.library.variants()
    for name in names:
        with case.engine(variant=name) as engine:
            found.append(engine.tower.encode(case.pixels))
    for other in found[1:]:
        assert np.linalg.norm(other - found[0]) / np.linalg.norm(found[0]) < 2.5e-2


def test_release_gives_the_memory_back(small: Case) -> None:
    def mapped() -> bool:
        return str(small.plan / "vision.bin") in Path("/proc/self/maps").read_text()

    with small.engine() as engine:
        first = engine.tower.encode(small.pixels)
        assert engine.tower.loaded and mapped()
        assert engine.tower.weights_bytes == (small.plan / "vision.bin").stat().st_size
        engine.tower.release()
        assert not engine.tower.loaded and not mapped() and engine.tower.weights_bytes == 0
        engine.tower.release()
        np.testing.assert_array_equal(engine.tower.encode(small.pixels), first)


def test_wrong_tiles_are_refused(small: Case) -> None:
    with small.engine() as engine:
        with pytest.raises(UsageError, match="the vision tower takes"):
            engine.tower.encode(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(UsageError, match="the vision tower takes"):
            engine.tower.encode(small.pixels[:0])


def test_cancel_ends_the_running_call_only(small: Case) -> None:
    with small.engine() as engine:
        expected, token = engine.tower.encode(small.pixels), CancelToken()
        many = np.concatenate([small.pixels] * 400)
        timer = threading.Timer(0.05, token.set)
        timer.start()
        with pytest.raises(Cancelled):
            engine.tower.encode(many, token)
        timer.join()
        np.testing.assert_array_equal(engine.tower.encode(small.pixels), expected)


def test_what_matches_no_pattern_is_named(tmp_path: Path) -> None:
    narrow = tiny.make_siglip(tmp_path / "narrow", hidden_size=96, num_attention_heads=2)
    graph = towers.export_graph(narrow, tmp_path / "a", "w8g32")
    with pytest.raises(UnsupportedModelError, match=r"Conv: 96 features; .* multiples of 64"):
        towers.EngineTower(graph, tmp_path / "plan-a")
    heads = tiny.make_siglip(tmp_path / "heads", hidden_size=128, num_attention_heads=4)
    graph = towers.export_graph(heads, tmp_path / "b", "w8")
    with pytest.raises(UnsupportedModelError, match=r"layers.0/attn/MultiHeadAttention: 4 heads of 32 channels"):
        towers.EngineTower(graph, tmp_path / "plan-b")
    graph = towers.export_graph(tiny.make_siglip(tmp_path / "c", **WIDE), tmp_path / "d", "fp32")
    with pytest.raises(UnsupportedModelError, match=r"no pattern for node .*q_proj/MatMul \(MatMul of Normed"):
        towers.EngineTower(graph, tmp_path / "plan-c")


# ---- whole packages


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    directory = tmp_path_factory.mktemp("package")
    text = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_bluelm_v(directory / "checkpoint", vision=WIDE, text=text)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    return open_package(path)


def test_session_encodes_in_the_engine(package: Package) -> None:
    compiled = package.compiled("x86_64")
    assert compiled is not None and compiled.vision == "lib/x86_64/vision.bin"
    side = package.manifest.processor.tile_px  # type: ignore[union-attr]
    pixels = np.random.default_rng(1).standard_normal((6, 3, side, side)).astype(np.float32)
    session = NativeSession(package, context=64)
    assert isinstance(session.tower, NativeTower)
    found, expected = session.encode(pixels), OnnxSession(package, context=64).encode(pixels)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 4e-2
    assert session.timings.n_tiles == 6 and session.memory().vision_loaded
    names = [name for name, _, _ in session.timings.events]
    assert names.count("encode 4 tiles") == 1 and names.count("encode 1 tile") == 2 and "load vision" in names
    before = session.memory().weights_bytes
    session.release("vision")
    assert not session.memory().vision_loaded and session.memory().weights_bytes < before


def test_tower_and_language_model_at_the_same_time(package: Package) -> None:
    """Two threads, one model: neither changes the other's numbers."""
    side = package.manifest.processor.tile_px  # type: ignore[union-attr]
    pixels = np.random.default_rng(2).standard_normal((8, 3, side, side)).astype(np.float32)
    session = NativeSession(package, context=256)
    features = session.encode(pixels)
    logits = session.prefill([np.arange(200)], np.arange(200))
    session.truncate(0)
    found: list[np.ndarray] = []
    worker = threading.Thread(target=lambda: found.extend(session.encode(pixels) for _ in range(20)))
    worker.start()
    for _ in range(10):
        np.testing.assert_array_equal(session.prefill([np.arange(200)], np.arange(200)), logits)
        session.truncate(0)
    worker.join()
    assert len(found) == 20
    for other in found:
        np.testing.assert_array_equal(other, features)


def test_language_only(package: Package, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(package.path, copy)
    assert main(["compile", str(copy), "--language-only", "--json"]) == 0
    assert '"vision": null' in capsys.readouterr().out
    assert not (copy / "lib/x86_64/vision.bin").exists()
    assert isinstance(NativeSession(open_package(copy), context=64).tower, OnnxTower)


FUZZ = """
import sys, numpy as np
from pathlib import Path
from edgevlm.errors import EdgeVLMError
from tests.edgevlm.towers import EngineTower
directory, side = Path(sys.argv[1]), int(sys.argv[2])
plan = directory / "plan.bin"
whole, rng, refused = plan.read_bytes(), np.random.default_rng(0), 0
pixels = np.zeros((2, 3, side, side), np.float32)
for trial in range(400):
    damaged = bytearray(whole)
    for place in rng.integers(0, len(whole), rng.integers(1, 4)):
        damaged[place] = rng.integers(0, 256)
    plan.write_bytes(damaged[: rng.integers(1, len(whole) + 1)] if trial % 5 == 0 else damaged)
    try:
        with EngineTower(Path(), directory, threads=1) as engine:
            engine.tower.encode(pixels)
    except EdgeVLMError:
        refused += 1
plan.write_bytes(whole)
print(refused)
"""


def test_damaged_plans_never_crash(small: Case) -> None:
    """400 plans with bytes changed or cut off, in a process of their own: refused or run, never a signal."""
    command = [sys.executable, "-c", FUZZ, str(small.plan), str(small.pixels.shape[-1])]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 200
