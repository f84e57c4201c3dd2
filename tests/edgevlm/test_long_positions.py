"""Models of a million positions: packages and memory do not grow with them, and each position is turned exactly."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import library_path
from edgevlm.backends.onnx import OnnxSession
from edgevlm.errors import BackendError, PackageError, UsageError
from edgevlm.memory import NativeChoice, check_memory, estimate_memory
from edgevlm.package import Package, open_package
from edgevlm.telemetry import import_onnxruntime
from export import probes
from export.archspec import RopeSpec
from export.graphs.positions import inverse_frequencies
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package
from tvm_schedules.onnx_graph import OnnxGraph
from tvm_schedules.plan import GRAPH, HEADER, NONE, OP, OP_CODES

POSITIONS = 1_010_000
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDE = {**SIZES, "head_dim": 128, "rope_theta": 5e6}
FAR = 1_000_000
LENGTH = 40
FLOAT_CACHE = [(16, 16)] * 2
needs_library = pytest.mark.skipif(
    not library_path().exists(), reason="no native library here; `make native` builds it"
)


def export(directory: Path, positions: int) -> Package:
    source = tiny.make_llama(directory / "checkpoint", max_position_embeddings=positions, **WIDE)
    return open_package(export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False)))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    package = export(tmp_path_factory.mktemp("long"), POSITIONS)
    compile_package(package.path, "x86_64", probes.text()[:2000])
    return open_package(package.path)


def tokens() -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, tiny.VOCAB, LENGTH)


def test_package_and_memory_do_not_grow_with_the_positions(package: Package, tmp_path: Path) -> None:
    short = export(tmp_path, 4096)
    graphs = [sum(f.size_bytes for f in p.manifest.files if f.path.startswith("onnx/")) for p in (short, package)]
    assert graphs[0] == graphs[1] < 1 << 20
    assert package.manifest.decoder.max_position_embeddings == POSITIONS
    assert package.manifest.decoder.default_context == 4096
    found = [replace(estimate_memory(p, 4096), process_bytes=0) for p in (short, package)]
    assert found[0] == found[1] and found[0].new_bytes < 100 << 20
    compiled = package.compiled("x86_64")
    assert compiled is not None
    native = check_memory(package, 4096, 4 << 30, NativeChoice(compiled, None))
    assert native.packed_bytes < 1 << 20
    with pytest.raises(BackendError, match="are needed at a context of 1010000 tokens"):
        check_memory(package, POSITIONS, 200 << 20)


def test_tables_of_older_packages_are_counted_as_they_are_read(package: Package, tmp_path: Path) -> None:
    """Two tables of 259 MB, of which a context of 4,096 tokens touches 2 MB each."""
    old = Package(tmp_path / "old", package.manifest)
    shutil.copytree(package.path, old.path)
    graph, data = (old.path / "onnx" / f"decoder_model_merged_q4.onnx{end}" for end in ("", "_data"))
    model, start = onnx.load(graph, load_external_data=False), data.stat().st_size
    size = POSITIONS * 64 * 4
    for i, name in enumerate(("rope.full.cos", "rope.full.sin")):
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=(POSITIONS, 64))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", start + i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    onnx.save_model(model, graph)
    grown = {f"onnx/{data.name}": 2 * size, "lib/x86_64/weights.bin": 2 * size}
    files = tuple(replace(f, size_bytes=f.size_bytes + grown.get(f.path, 0)) for f in old.manifest.files)
    compiled = replace(old.manifest.compiled[0], plan_version=2)
    old = Package(old.path, replace(old.manifest, files=files, compiled=(compiled,)))
    rows = 2 * 4096 * 64 * 4
    found, now = (replace(estimate_memory(p, 4096), process_bytes=0) for p in (old, package))
    assert found == replace(now, table_bytes=now.table_bytes + rows)
    native, native_now = (
        check_memory(p, 4096, 4 << 30, NativeChoice(p.manifest.compiled[0], None)) for p in (old, package)
    )
    assert native.packed_bytes == native_now.packed_bytes + rows


def test_a_context_above_the_default_one_is_served(package: Package) -> None:
    session = OnnxSession(package, context=9000, threads=1)
    assert np.isfinite(session.prefill([tokens()], np.arange(8900, 8900 + LENGTH))).all()


@pytest.mark.parametrize(
    "rope", [RopeSpec(1e4), RopeSpec(5e6), RopeSpec(5e5, "llama3", factor=32.0, original_max_position_embeddings=8192)]
)
def test_the_graph_turns_as_exactly_as_a_table(rope: RopeSpec, tmp_path: Path) -> None:
    """Oracle: cosines of Python's own libm, in double precision, of the angle in float32."""
    frequencies = inverse_frequencies(rope, 128)
    config: dict[str, Any] = {**WIDE, "rope_theta": rope.theta, "num_hidden_layers": 1}
    if rope.kind == "llama3":
        config["rope_scaling"] = {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
    source = tiny.make_llama(tmp_path / "checkpoint", max_position_embeddings=POSITIONS, **config)
    path = export_package(source, tmp_path / "package", ExportOptions(scheme="fp32", verify=False))
    model = onnx.load(path / "onnx" / "decoder_model_merged.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "RotaryEmbedding")
    for name in node.input[2:4]:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    changed = path / "onnx" / "changed.onnx"
    onnx.save_model(model, changed)
    session = import_onnxruntime().InferenceSession(changed)
    positions = np.array([0, 1, 2, 4095, 131_071, 606_001, 999_999, POSITIONS - 1])
    feed: dict[str, NDArray[Any]] = {
        "inputs_embeds": np.zeros((1, len(positions), 128), np.float32),
        "attention_mask": np.ones((1, len(positions)), np.int64),
        "position_ids": positions[None],
        "num_logits_to_keep": np.array(1, np.int64),
        "past_key_values.0.key": np.zeros((1, 1, 0, 128), np.float32),
        "past_key_values.0.value": np.zeros((1, 1, 0, 128), np.float32),
    }
    cosines, sines = session.run(list(node.input[2:4]), feed)
    angles = positions.astype(np.float32)[:, None] * frequencies
    for found, function in ((cosines, math.cos), (sines, math.sin)):
        exact = np.vectorize(function)(angles.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_max_ulp(found, exact, maxulp=1)


@needs_library
def test_far_positions_equal_onnxruntime(package: Package) -> None:
    ids, places = tokens(), np.arange(FAR, FAR + LENGTH)
    native = NativeSession(package, context=64, kv_bits=FLOAT_CACHE)
    expected = OnnxSession(package, context=64).prefill([ids], places)
    found = native.prefill([ids], places)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-2
    spread = NativeSession(package, context=64, kv_bits=FLOAT_CACHE).prefill([ids], places[::-1].copy())
    assert np.linalg.norm(spread - expected) / np.linalg.norm(expected) > 2e-2  # negative control


@needs_library
@pytest.mark.parametrize("n_tokens", [1, 5, LENGTH])
def test_steps_scores_and_chunks_turn_alike(package: Package, n_tokens: int) -> None:
    ids, places = tokens(), np.arange(FAR, FAR + LENGTH)
    whole = NativeSession(package, context=64, kv_bits=FLOAT_CACHE)
    expected = whole.prefill([ids], places)
    parts = NativeSession(package, context=64, kv_bits=FLOAT_CACHE)
    for start in range(0, LENGTH, n_tokens):
        found = parts.prefill([ids[start : start + n_tokens]], places[start : start + n_tokens])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-2


def appends(plan: bytes | bytearray) -> list[int]:
    """Where the operations lie that turn a layer's keys."""
    header = HEADER.unpack_from(plan)
    first = HEADER.size + header[3] * GRAPH.size
    places = [first + i * OP.size for i in range(header[4])]
    return [at for at in places if OP.unpack_from(plan, at)[0] == OP_CODES["append"]]


def with_tables(package: Package, directory: Path, n_positions: int, version: int) -> Package:
    """The package as it was compiled before: tables of all positions in weights.bin, version 2 in plan.bin."""
    shutil.copytree(package.path, directory)
    lib = directory / "lib" / "x86_64"
    plan, weights = bytearray((lib / "plan.bin").read_bytes()), bytearray((lib / "weights.bin").read_bytes())
    header = list(HEADER.unpack_from(plan))
    header[1], header[8] = version, n_positions
    offsets: tuple[int, int] | None = None
    for at in appends(plan):
        fields = list(OP.unpack_from(plan, at))
        assert fields[-4] == NONE
        if offsets is None:
            frequencies = np.frombuffer(weights, np.float32, fields[7] // 2, fields[-5]).copy()
            angles = (np.arange(n_positions, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
            offsets = tuple(  # type: ignore[assignment]
                _added(weights, np.vectorize(function)(angles)) for function in (math.cos, math.sin)
            )
        fields[-5:-3] = offsets
        OP.pack_into(plan, at, *fields)
    header[10] = len(weights)
    HEADER.pack_into(plan, 0, *header)
    (lib / "plan.bin").write_bytes(plan)
    (lib / "weights.bin").write_bytes(weights)
    return Package(directory, package.manifest)


def _added(weights: bytearray, table: NDArray[np.float64]) -> int:
    weights += b"\0" * (-len(weights) % 64)
    offset = len(weights)
    weights += table.astype(np.float32).tobytes()
    return offset


@needs_library
def test_plans_with_tables_are_still_read_and_answer_the_same(package: Package, tmp_path: Path) -> None:
    ids, places = tokens(), np.arange(1, 1 + LENGTH)
    expected = NativeSession(package, context=64).prefill([ids], places)
    old = NativeSession(with_tables(package, tmp_path / "old", 512, 2), context=64)
    np.testing.assert_array_equal(old.prefill([ids], places), expected)
    others = NativeSession(with_tables(package, tmp_path / "tables", 512, 3), context=64)
    np.testing.assert_array_equal(others.prefill([ids], places), expected)


def exported_before(package: Package, directory: Path, n_positions: int) -> Package:
    """The package with a decoder graph as it was written before: two tables of all positions, and no plan."""
    shutil.copytree(package.path, directory, ignore=shutil.ignore_patterns("lib"))
    path = directory / "onnx" / "decoder_model_merged_q4.onnx"
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    (frequencies,) = OnnxGraph(path).array("rope.full.frequencies")[None]
    angles = (np.arange(n_positions, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    for name, function in (("rope.full.cos", math.cos), ("rope.full.sin", math.sin)):
        table = np.vectorize(function)(angles).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
    model.graph.initializer.remove(stored["rope.full.frequencies"])
    for node in [node for node in model.graph.node if node.name.startswith("/model/rope/")]:
        model.graph.node.remove(node)
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding":
            node.input[1:] = ["position_ids", "rope.full.cos", "rope.full.sin"]
    onnx.save_model(model, path)
    manifest = json.loads((directory / "edgevlm.json").read_text())
    manifest["compiled"] = []
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].startswith("lib/")]
    manifest["decoder"]["max_position_embeddings"] = manifest["decoder"]["default_context"] = n_positions
    for entry in manifest["files"]:
        if entry["path"] == f"onnx/{path.name}":
            data = path.read_bytes()
            entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "edgevlm.json").write_text(json.dumps(manifest))
    return open_package(directory)


def test_graphs_with_tables_still_run_and_compile(package: Package, tmp_path: Path) -> None:
    ids, places = tokens(), np.arange(1, 1 + LENGTH)
    old = exported_before(package, tmp_path / "old", 512)
    expected = OnnxSession(package, context=64).prefill([ids], places)
    found = OnnxSession(old, context=64).prefill([ids], places)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-2
    compile_package(old.path, "x86_64", probes.text()[:2000])
    plan = (old.path / "lib" / "x86_64" / "plan.bin").read_bytes()
    assert HEADER.unpack_from(plan)[8] == 512
    assert all(NONE not in OP.unpack_from(plan, at)[-5:-3] for at in appends(plan))
    if library_path().exists():
        native = NativeSession(open_package(old.path), context=64, kv_bits=FLOAT_CACHE).prefill([ids], places)
        wanted = NativeSession(package, context=64, kv_bits=FLOAT_CACHE).prefill([ids], places)
        assert np.linalg.norm(native - wanted) / np.linalg.norm(wanted) < 2e-2
        with pytest.raises(UsageError, match=r"a context of 600 tokens is outside 1\.\.512"):
            NativeSession(open_package(old.path), context=600)


@needs_library
def test_plans_of_two_rotations_are_refused(package: Package, tmp_path: Path) -> None:
    """And an old plan without tables: its version never had frequencies."""
    changed = with_tables(package, tmp_path / "mixed", 512, 3)
    plan = changed.path / "lib" / "x86_64" / "plan.bin"
    whole = (package.path / "lib" / "x86_64" / "plan.bin").read_bytes()
    mixed = bytearray(plan.read_bytes())
    last = appends(mixed)[-1]
    mixed[last : last + OP.size] = whole[last : last + OP.size]
    plan.write_bytes(mixed)
    with pytest.raises(PackageError, match="turns by other frequencies"):
        NativeSession(changed, context=64)
    old = bytearray(whole)
    struct.pack_into("<I", old, 4, 2)
    shutil.rmtree(changed.path)
    shutil.copytree(package.path, changed.path)
    plan.write_bytes(old)
    with pytest.raises(PackageError, match="tables outside"):
        NativeSession(changed, context=64)
