"""Static ranges, the quantised graphs and their simulation; none of it needs an NPU or its provider."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevlm.backends.npu import NpuSession, simulated_session
from edgevlm.errors import ContextFullError, UnsupportedModelError, UsageError
from edgevlm.model import load
from edgevlm.package import Package, open_package
from edgevlm.telemetry import import_onnxruntime
from export.npu import ranges as ranges_module
from export.npu.compile import NpuOptions, bits_advice, compile_npu
from export.npu.distance import float_logits, mean_kl, measured_ids, session_logits
from export.npu.qdq import Codes
from export.npu.ranges import METHODS, Observed, Range
from export.pipeline import ExportOptions, export_package
from tests import tiny

onnxruntime = import_onnxruntime()

OPTIONS = NpuOptions(socs=(), context=160, chunk_tokens=16, ranges="minmax")
INT4 = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
MAX_KL = 0.01
"""Tiny models, minmax: 0.0003 (smolvlm) to 0.002 (llama), 48 tokens, 2026-11-25; half of the ranges' width: 0.3."""


def compiled(directory: Path, make: Callable[[Path], Path], options: NpuOptions = OPTIONS) -> Package:
    path = export_package(make(directory / "checkpoint"), directory / "package", INT4)
    compile_npu(path, options)
    return open_package(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return compiled(tmp_path_factory.mktemp("llama"), tiny.make_llama)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return compiled(tmp_path_factory.mktemp("smolvlm"), tiny.make_smolvlm)


@pytest.fixture(scope="module")
def session(llama: Package) -> NpuSession:
    return simulated_session(llama, threads=1)


def test_the_package_holds_what_the_manifest_says(smolvlm: Package) -> None:
    smolvlm.check_hashes()
    entry = smolvlm.manifest.npu
    assert entry is not None and entry.targets == ()
    assert [graph.name for graph in entry.graphs] == ["prefill", "decode", "vision_4", "vision_1"]
    assert {item.metric: item.status for item in entry.parity} == {
        "mean KL, minmax ranges": "pass",
        "mean cosine of picture tokens": "pass",
    }
    assert not list((smolvlm.path / "lib").glob(".*"))


@pytest.mark.parametrize("name", ["llama", "smolvlm"])
def test_the_simulation_is_near_float_activations(name: str, request: pytest.FixtureRequest) -> None:
    package = request.getfixturevalue(name)
    ids = measured_ids(package, 48)
    assert mean_kl(float_logits(package, ids), session_logits(simulated_session(package), ids)) < MAX_KL


def test_the_tower_takes_extremes_whatever_the_method(smolvlm: Package, tmp_path: Path) -> None:
    other = compiled(tmp_path, tiny.make_smolvlm, dataclasses.replace(OPTIONS, ranges="percentile"))
    tables = []
    for package in (smolvlm, other):
        assert package.manifest.npu is not None
        tables.append(json.loads(package.file(package.manifest.npu.ranges).read_text()))
    differing = {name for name in tables[0] if tables[0][name] != tables[1][name]}
    assert any(name.startswith("/model/layers") for name in differing)
    in_tower = {name for name in tables[0] if name.startswith(("/vision", "/connector", "pixel_values"))}
    assert len(in_tower) > 50 and not in_tower & differing


def test_control_narrow_ranges_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "HEADROOM", 0.25)
    with pytest.raises(UnsupportedModelError, match="too far from the model: mean KL, minmax ranges"):
        compiled(tmp_path, tiny.make_llama)
    assert open_package(tmp_path / "package").manifest.npu is None


def test_a_small_model_in_four_bits_is_advised_against(llama: Package) -> None:
    advice = bits_advice(llama)
    assert advice is not None and "M parameters in w4g32: below 600 M, export with --scheme w8" in advice
    manifest = llama.manifest
    for scheme in ("w8", "w4g32-mix"):
        quant = dataclasses.replace(manifest.quant, language_scheme=scheme)
        assert bits_advice(Package(llama.path, dataclasses.replace(manifest, quant=quant))) is None
    grown = tuple(dataclasses.replace(size, parameters=10**9) for size in manifest.sizes)
    assert bits_advice(Package(llama.path, dataclasses.replace(manifest, sizes=grown))) is None


def test_chunks_and_single_tokens_agree(session: NpuSession, llama: Package) -> None:
    ids = measured_ids(llama, 37)
    one_by_one = session_logits(session, ids)
    session.release("kv")
    last = session.prefill([ids[:20], ids[20:]], np.arange(37))
    # the same codes but for sums in another order: a cache code may differ by one
    assert np.abs(last - one_by_one[-1]).max() < 0.1 * one_by_one[-1].std()
    assert session.n_past == 37


def test_scored_trees_equal_steps(session: NpuSession, llama: Package) -> None:
    ids = measured_ids(llama, 20)
    session.release("kv")
    session.prefill([ids[:10]], np.arange(10))
    nodes, parents = np.array([5, 6, 7, 8]), np.array([-1, 0, 0, 2])
    scored = session.score(nodes, parents, np.array([10, 11, 11, 12]))
    session.accept(np.array([0, 2, 3]))
    after = session.step(9, 13)
    session.truncate(10)
    stepped = [session.step(token, 10 + i) for i, token in enumerate([5, 7, 8, 9])]
    assert (scored[[0, 2, 3]] == np.stack(stepped[:3])).all() and (after == stepped[3]).all()
    held = session.snapshot()
    again = session.step(3, 14)
    session.restore(held)
    assert (session.step(3, 14) == again).all()


def test_a_full_context_and_a_longer_one_are_refused(llama: Package) -> None:
    full = simulated_session(llama, context=12)
    full.prefill([measured_ids(llama, 12)], np.arange(12))
    with pytest.raises(ContextFullError, match="the capacity is 12"):
        full.step(1, 12)
    with pytest.raises(UsageError, match="compiled for 1 to 160"):
        simulated_session(llama, context=161)


def test_the_ordinary_loop_answers_about_a_picture(smolvlm: Package) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    with load(smolvlm.path, backend="qnn-sim", threads=1) as model:
        answer = model.generate("What?", [pixels], max_new_tokens=4)
    assert answer.n_image_tokens > 0 and len(answer.token_ids) in (1, 2, 3, 4)


def test_moved_values_and_the_cache_share_codes(llama: Package) -> None:
    assert llama.manifest.npu is not None
    table = json.loads(llama.file(llama.manifest.npu.ranges).read_text())
    layer = "/model/layers.0/attn"
    assert table[f"{layer}/q_heads/output_0"] == table[f"{layer}/q_heads_first/output_0"]
    cache = table["past_key_values.0.key"]
    assert cache == table["present.0.key"] == table[f"{layer}/keys/output_0"]
    assert (cache["dtype"], cache["zero_point"]) == ("uint8", 128)
    narrow = {name for name, row in table.items() if row["dtype"] != "uint16"}
    assert all(
        name.startswith(("past_key", "present.")) or name.endswith(("/keys/output_0", "/values/output_0"))
        for name in narrow
    )
    assert table[f"{layer}/Softmax/output_0"]["zero_point"] == 0
    assert table[f"{layer}/Softmax/output_0"]["scale"] == pytest.approx(1 / 65535)


def test_scores_are_the_integer_product(llama: Package) -> None:
    """One product by numpy integers: (q - zq) (k - zk), rescaled; the graph's own codes come out."""
    assert llama.manifest.npu is not None
    table = json.loads(llama.file(llama.manifest.npu.ranges).read_text())
    path = llama.file(next(graph.path for graph in llama.manifest.npu.graphs if graph.name == "prefill"))
    layer = "/model/layers.0/attn"
    wanted = [f"{layer}/{part}/output_0" for part in ("q_rows", "keys", "Scores")]
    model = onnx.load(path, load_external_data=False)
    for name in wanted:
        kind = onnx.TensorProto.UINT8 if "keys" in name else onnx.TensorProto.UINT16
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/codes", kind, None))
    scratch = path.with_name("scores.onnx")
    onnx.save(model, scratch)
    try:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        run = onnxruntime.InferenceSession(scratch, options, providers=["CPUExecutionProvider"])
    finally:
        scratch.unlink()
    random = np.random.RandomState(0)
    feeds: dict[str, Any] = {}
    for item in run.get_inputs():
        if item.type == "tensor(uint8)":
            feeds[item.name] = random.randint(0, 256, item.shape).astype(np.uint8)
        elif item.type == "tensor(bool)":
            feeds[item.name] = np.ones(item.shape, np.bool_)
        elif item.type == "tensor(int32)":
            feeds[item.name] = np.zeros(item.shape, np.int32)
        else:
            feeds[item.name] = random.standard_normal(item.shape).astype(np.float32)
    query, keys, scores = run.run([f"{name}/codes" for name in wanted], feeds)
    q, k, s = (table[name] for name in wanted)
    product = (query.astype(np.int64) - q["zero_point"]) @ (keys.astype(np.int64) - k["zero_point"])
    expected = np.rint(product * (q["scale"] * k["scale"] / s["scale"])) + s["zero_point"]
    off = np.abs(expected.clip(0, 65535) - scores)
    assert off.max() <= 1 and (off == 0).mean() > 0.99
    assert scores.std() > 100


def test_ranges_by_each_method() -> None:
    random = np.random.RandomState(0)
    values = np.append(random.standard_normal(200_000), [60.0, -50.0]).astype(np.float32)
    observed = Observed()
    observed.widen(values)
    observed.count(values)
    found = {method: observed.range(method) for method in METHODS}
    assert (found["minmax"].low, found["minmax"].high) == (-100.0, 120.0)
    cached = observed.range("minmax", is_cached=True)
    assert (cached.low, cached.high) == (-62.5, 75.0)
    assert -6 < found["percentile"].low < -3 and 3 < found["percentile"].high < 6
    # two outliers among 200,000: rounding at 16 bits is so fine that clipping either costs more
    assert (found["mse"].low, found["mse"].high) == (-50.0, 60.0)


def test_codes_hold_zero_exactly_and_clip() -> None:
    codes = Codes.wide(Range(-1.0, 3.0))
    assert codes.quantise(np.zeros(1))[0] == codes.zero_point == 16384
    assert codes.quantise(np.array([9.0, -9.0])).tolist() == [65535, 0]
    assert Codes.cache(Range(-2.0, 1.0)).quantise(np.array([-2.0, 2.0])).tolist() == [1, 255]
    assert Codes.wide(Range(0.0, 0.0)).quantise(np.zeros(2)).tolist() == [0, 0]
