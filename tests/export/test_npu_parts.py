"""Graphs that are split into parts by layers: the numbers of the whole, bit for bit, and no part above the limit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevlm.backends.npu import NpuSession, simulated_session
from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.package import Package, open_package
from export.npu.compile import NpuOptions, compile_npu
from export.npu.distance import measured_ids
from export.pipeline import ExportOptions, export_package
from tests import tiny

OPTIONS = NpuOptions(socs=(), context=160, chunk_tokens=16, tile_batches=(2, 1), ranges="minmax")
INT4 = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
N_LAYERS = 4
TEXT: dict[str, Any] = {"num_hidden_layers": N_LAYERS}
VISION: dict[str, Any] = {"num_hidden_layers": N_LAYERS, "hidden_size": 48, "intermediate_size": 96}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parts")
    checkpoint = tiny.make_smolvlm(directory / "checkpoint", text=TEXT, vision=VISION)
    return export_package(checkpoint, directory / "package", INT4)


@pytest.fixture(scope="module")
def whole(exported: Path) -> Package:
    compile_npu(exported, OPTIONS)
    return open_package(exported)


def compiled(exported: Path, directory: Path, part_bytes: int) -> Package:
    shutil.copytree(exported, directory / "package")
    compile_npu(directory / "package", dataclasses.replace(OPTIONS, part_bytes=part_bytes))
    return open_package(directory / "package")


def stems(package: Package) -> list[str]:
    assert package.manifest.npu is not None
    return [Path(graph.path).stem for graph in package.manifest.npu.graphs]


def weight_bytes(package: Package, stem: str) -> int:
    """Bytes of the data file that a graph reads."""
    model = onnx.load(package.file(f"lib/qnn-htp/{stem}.onnx"), load_external_data=False)
    return sum(int(e.value) for t in model.graph.initializer for e in t.external_data if e.key == "length")


def answers(session: NpuSession, package: Package) -> list[np.ndarray]:
    """Logits behind a prefill of two chunks and two steps, and picture tokens of three tiles."""
    ids = measured_ids(package, 20)
    rows = [session.prefill([ids], np.arange(20)), session.step(5, 20), session.step(9, 21)]
    assert package.manifest.processor is not None
    side = package.manifest.processor.tile_px
    tiles = np.random.default_rng(1).standard_normal((3, 3, side, side)).astype(np.float32)
    return [*rows, session.encode(tiles)]


@pytest.mark.parametrize("n_parts", [2, 3])
def test_parts_give_the_same_bits(n_parts: int, whole: Package, tmp_path: Path) -> None:
    limit = weight_bytes(whole, "prefill") // n_parts + 20_000
    package = compiled(whole.path, tmp_path, limit)
    package.check_hashes()
    names = stems(package)
    for name in ("prefill", "decode"):
        assert [stem for stem in names if stem.startswith(name)] == [f"{name}_part{i}" for i in range(n_parts)]
    assert "vision_2_part1" in names and "vision_1_part1" in names
    assert all(weight_bytes(package, stem) < limit for stem in names)
    expected = answers(simulated_session(whole, threads=1), whole)
    found = answers(simulated_session(package, threads=1), package)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one == other).all()
    # controls: other codes of the hidden state are noticed, and parts in another order are refused
    other_codes(package)
    assert (answers(simulated_session(package, threads=1), package)[0] != expected[0]).any()
    npu = package.manifest.npu
    assert npu is not None
    turned = dataclasses.replace(package.manifest, npu=dataclasses.replace(npu, graphs=npu.graphs[::-1]))
    with pytest.raises(
        PackageError, match=r"a part of the NPU graph 'decode' takes .*, which no part before it returns"
    ):
        simulated_session(Package(package.path, turned)).step(5, 0)


def other_codes(package: Package) -> None:
    """Rounds the hidden state twice as coarsely where the second part of prefill reads it."""
    path = package.file("lib/qnn-htp/prefill_part1.onnx")
    model = onnx.load(path, load_external_data=False)
    entry = next(node for node in model.graph.node if model.graph.input[0].name in node.input)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == entry.input[1])
    doubled = onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), "doubled")
    model.graph.initializer.append(doubled)
    entry.input[1] = "doubled"
    onnx.save_model(model, path)


def test_what_fits_stays_whole(whole: Package) -> None:
    assert stems(whole) == ["prefill", "decode", "vision_2", "vision_1"]


def test_a_layer_above_the_limit_is_refused_by_name(whole: Package, tmp_path: Path) -> None:
    message = (
        r"layer 3 of graph 'prefill' with what follows the last layer has 0\.04 MB of weights, "
        r"one part holds less than 0\.03 MB"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        compiled(whole.path, tmp_path, 30_000)
    with pytest.raises(UnsupportedModelError, match="layer 0 of graph 'prefill' has"):
        compiled(whole.path, tmp_path / "smaller", 1_000)
    # what the package was compiled to before is still there
    assert stems(open_package(tmp_path / "package")) == stems(whole)
