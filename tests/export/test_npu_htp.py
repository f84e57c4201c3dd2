"""Context binaries for Qualcomm's HTP, compiled and executed by the emulator in onnxruntime-qnn (x86-64 Linux)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import BackendError, UnsupportedModelError, UsageError
from edgevlm.model import load
from edgevlm.package import Package, open_package
from export.graphs.ops import npu
from export.npu.compile import NpuOptions, compile_npu
from export.npu.distance import measured_ids, session_logits
from export.pipeline import ExportOptions, export_package
from tests import tiny

pytest.importorskip("onnxruntime_qnn", reason="needs pip install 'edgevlm[qnn]'")

from edgevlm.backends.npu import simulated_session
from edgevlm.backends.qnn import qnn_session

pytestmark = pytest.mark.emulated

OPTIONS = NpuOptions(socs=("SM8650",), context=160, chunk_tokens=32, ranges="minmax")
INT4 = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
QUESTION = "What is on the picture?"
N_TOKENS = 8
MAX_NOISE = 0.03
"""RMS over standard deviation of logits, emulator against simulation; measured 0.003 to 0.011: HTP computes MatMulNBits
in half precision, and a key or value at the edge of an 8-bit code falls to the other side."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    directory = tmp_path_factory.mktemp("htp")
    path = export_package(tiny.make_smolvlm(directory / "checkpoint"), directory / "package", INT4)
    compile_npu(path, OPTIONS)
    return open_package(path)


def picture() -> Any:
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def test_every_node_runs_on_the_npu(package: Package) -> None:
    package.check_hashes()
    assert package.manifest.npu is not None
    (target,) = package.manifest.npu.targets
    assert (target.arch, target.soc, target.on_cpu) == ("v75", "SM8650", ())
    assert re.fullmatch(r"onnxruntime-qnn [\d.]+, QNN SDK v\d+\.\d+\.[\d.]+", target.sdk)
    report = json.loads(package.file("lib/qnn-htp-v75/partition.json").read_text())
    assert [item["graph"] for item in report] == ["prefill", "decode", "vision_4", "vision_1"]
    for item in report:
        assert item["on_cpu"] == [] and len(item["on_npu"]) > 200
        assert any("MatMulNBits" in node for node in item["on_npu"])


def test_tokens_equal_the_simulations(package: Package) -> None:
    answers = {}
    for backend in ("qnn-sim", "qnn"):
        with load(package.path, backend=backend, threads=1) as model:
            answers[backend] = model.generate(QUESTION, [picture()], max_new_tokens=N_TOKENS).token_ids
    assert answers["qnn"] == answers["qnn-sim"]
    assert len(answers["qnn"]) == N_TOKENS


def test_logits_and_features_are_near_the_simulations(package: Package) -> None:
    ids = measured_ids(package, 12)
    ours, theirs = session_logits(simulated_session(package), ids), session_logits(qnn_session(package), ids)
    noise = np.sqrt(np.square(ours - theirs).mean(axis=1)) / ours.std(axis=1)
    assert 0 < noise.max() < MAX_NOISE
    # a control: another token's logits are far away
    assert np.sqrt(np.square(ours[0] - theirs[1]).mean()) / ours.std() > 10 * MAX_NOISE
    processor = package.manifest.processor
    assert processor is not None
    side = processor.tile_px
    tiles = np.random.default_rng(1).standard_normal((5, 3, side, side)).astype(np.float32)
    first, second = simulated_session(package).encode(tiles), qnn_session(package).encode(tiles)
    cosines = (first * second).sum(-1) / np.sqrt(np.square(first).sum(-1) * np.square(second).sum(-1))
    assert cosines.min() > 0.9995


def test_the_command_line_answers_through_the_emulator(package: Package) -> None:
    command = [sys.executable, "-m", "edgevlm", "run", str(package.path), QUESTION, "--backend", "qnn", "--json"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "2"], capture_output=True, text=True, check=True, env=os.environ
    )
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == 2


def plant_erf(monkeypatch: pytest.MonkeyPatch) -> None:
    def activation(self: Any, x: str, act: str) -> str:
        return str(self.builder.node("Erf", [x], name="Planted"))

    monkeypatch.setattr(npu.NpuOps, "activation", activation)
    monkeypatch.setattr("export.npu.compile.MAX_KL_UNVERIFIED", 1e9)


def test_a_planted_operator_fails_the_compile_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_erf(monkeypatch)
    path = export_package(tiny.make_llama(tmp_path / "checkpoint"), tmp_path / "package", INT4)
    with pytest.raises(UnsupportedModelError) as error:
        compile_npu(path, OPTIONS)
    message = str(error.value)
    assert "/model/layers.0/mlp/Planted (Erf) of graph 'prefill'" in message
    assert "inputs (1, 32, 96), outputs (1, 32, 96)" in message
    assert "--allow-cpu Erf" in message
    assert open_package(path).manifest.npu is None


def test_a_node_that_is_allowed_on_the_cpu_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_erf(monkeypatch)
    path = export_package(tiny.make_llama(tmp_path / "checkpoint"), tmp_path / "package", INT4)
    entry = compile_npu(path, NpuOptions(**{**OPTIONS.__dict__, "allow_cpu": ("Erf",)}))
    assert entry.allow_cpu == ("Erf",)
    assert sum("Planted (Erf)" in node for node in entry.targets[0].on_cpu) == 4
    package = open_package(path)
    assert qnn_session(package).step(5, 0).shape == (384,)


def test_parts_run_in_turn_on_the_npu(tmp_path: Path) -> None:
    path = export_package(tiny.make_smolvlm(tmp_path / "checkpoint"), tmp_path / "package", INT4)
    compile_npu(path, dataclasses.replace(OPTIONS, part_bytes=40_000))
    package = open_package(path)
    package.check_hashes()
    names = ["prefill_part0", "decode_part0", "prefill_part1", "decode_part1"]
    report = json.loads(package.file("lib/qnn-htp-v75/partition.json").read_text())
    assert [item["graph"] for item in report][:4] == names
    assert all(item["on_cpu"] == [] for item in report)
    assert package.manifest.npu is not None
    binaries = package.manifest.npu.targets[0].binaries
    assert {f"lib/qnn-htp-v75/{name}_qnn.bin" for name in names} < set(binaries)
    ids = measured_ids(package, 8)
    ours, theirs = session_logits(simulated_session(package), ids), session_logits(qnn_session(package), ids)
    noise = np.sqrt(np.square(ours - theirs).mean(axis=1)) / ours.std(axis=1)
    assert 0 < noise.max() < MAX_NOISE
    answers = {}
    for backend in ("qnn-sim", "qnn"):
        with load(package.path, backend=backend, threads=1) as model:
            answers[backend] = model.generate(QUESTION, [picture()], max_new_tokens=N_TOKENS).token_ids
    assert answers["qnn"] == answers["qnn-sim"]


def test_a_binary_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.npu.htp.MAX_BINARY_BYTES", 50_000)
    path = export_package(tiny.make_llama(tmp_path / "checkpoint"), tmp_path / "package", INT4)
    with pytest.raises(
        UnsupportedModelError, match=r"the binary of graph 'prefill' for SM8650 has 0\.00 GB.*--part-mb"
    ):
        compile_npu(path, OPTIONS)
    assert open_package(path).manifest.npu is None


def test_shared_weights_are_smaller_and_refused_by_the_emulator(package: Package, tmp_path: Path) -> None:
    path = export_package(tiny.make_llama(tmp_path / "checkpoint"), tmp_path / "package", INT4)
    entry = compile_npu(path, NpuOptions(**{**OPTIONS.__dict__, "share_weights": True}))
    assert entry.targets[0].binaries == ("lib/qnn-htp-v75/prefill_qnn.bin",)
    with pytest.raises(BackendError, match="compile without --share-weights"):
        qnn_session(open_package(path))


def test_an_unknown_chip_is_refused(package: Package) -> None:
    with pytest.raises(UsageError, match="unknown chip 'SM1'"):
        compile_npu(package.path, NpuOptions(socs=("SM1",)))
    with pytest.raises(BackendError, match="not compiled for SM8850"):
        qnn_session(package, soc="SM8850")
