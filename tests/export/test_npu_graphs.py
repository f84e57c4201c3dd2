"""The NPU's fixed float graphs against the CPU's graphs of the same package, and controls that must be noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.graphs.ops import npu
from tests.export.graph_session import Graphs, build
from tests.export.npu_session import NpuGraphs, as_package
from tests.golden.graph_cases import CASES, prompt_ids

TEXT = [name for name, case in CASES.items() if case.reference == "text"]
VISION = [name for name, case in CASES.items() if case.reference != "text"]
ATOL = 1e-4
"""Measured with onnxruntime 1.32: largest difference 2e-5 over all cases."""
N_PREFILLED = 18
"""A whole chunk of 16 and a right-padded one; the last two of the prompt's 20 tokens are decoded."""

Pair = tuple[Graphs, NpuGraphs]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """The CPU's and the NPU's graphs of a case, built once."""
    built: dict[tuple[str, str], Pair] = {}

    def get(name: str, scheme: str = "fp32") -> Pair:
        if (name, scheme) not in built:
            directory = tmp_path_factory.mktemp(name)
            checkpoint = CASES[name].make(directory / "checkpoint")
            graphs = build(checkpoint, directory / "package", scheme)
            built[name, scheme] = (graphs, NpuGraphs(as_package(checkpoint, graphs), directory / "npu"))
        return built[name, scheme]

    return get


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def expected_logits(graphs: Graphs, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
    return graphs.decode(embeds)[0][N_PREFILLED - 1 :]


@pytest.mark.parametrize("name", [*TEXT, "smolvlm", "bluelm_v"])
def test_decoder_equals_the_cpus(name: str, models: Callable[..., Pair]) -> None:
    graphs, fixed = models(name)
    embeds = graphs.embed(prompt_ids())
    assert difference(fixed.logits(embeds, N_PREFILLED), expected_logits(graphs, embeds)) < ATOL


@pytest.mark.parametrize("name", VISION)
def test_tower_equals_the_cpus(name: str, models: Callable[..., Pair]) -> None:
    graphs, fixed = models(name)
    pixels = np.concatenate([CASES[name].pixels(), -CASES[name].pixels()[:1]])
    expected = graphs.encode(pixels)
    assert difference(fixed.encode(pixels), expected) < ATOL
    assert difference(fixed.encode(pixels[1:2]), expected[1:2]) < ATOL


@pytest.mark.parametrize("scheme", ["w4g32", "w4g32z", "w8", "fp16"])
def test_weights_are_the_packages_own(scheme: str, models: Callable[..., Pair]) -> None:
    """The CPU rounds activations to int8 and so differs in logits; the weights behind both are the same bytes."""
    graphs, fixed = models("smolvlm", scheme)
    stored = {}
    for path in graphs.paths.values():
        stored |= {
            t.name: onnx.numpy_helper.to_array(t, str(path.parent))
            for t in onnx.load(path, load_external_data=False).graph.initializer
        }
    n_compared = 0
    for name in ("prefill", "decode", "vision_1"):
        for tensor in onnx.load(fixed.paths[name]).graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if tensor.name.endswith((".codes", ".scales", ".zero_points")):
                assert (values.ravel() == stored[tensor.name].ravel()).all()
                n_compared += 1
            elif tensor.name.endswith("proj.weight"):
                assert (stored[tensor.name] == values.T).all()
                n_compared += 1
    assert n_compared >= 2 * 2 * 7


def test_key_centres_change_nothing(models: Callable[..., Pair], tmp_path: Path) -> None:
    graphs, fixed = models("qwen2")
    embeds = graphs.embed(prompt_ids())
    random = np.random.RandomState(3)
    centres = [random.standard_normal((2, 16)).astype(np.float32) for _ in range(2)]
    centred = NpuGraphs(fixed.package, tmp_path, key_centres=centres)
    assert difference(centred.logits(embeds, N_PREFILLED), expected_logits(graphs, embeds)) < ATOL


def test_prefill_and_decode_share_their_weights(models: Callable[..., Pair]) -> None:
    _, fixed = models("llama", "w4g32")
    decode = fixed.paths["decode"]
    assert not decode.with_suffix(".onnx_data").exists()
    places = {
        entry.value
        for tensor in onnx.load(decode, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"prefill.onnx_data"}


def test_shapes_are_fixed_and_of_rank_five_at_most(models: Callable[..., Pair]) -> None:
    _, fixed = models("bluelm_v")
    for path in fixed.paths.values():
        model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=False)
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        assert len(values) > 20
        for value in values:
            dims = value.type.tensor_type.shape.dim
            assert len(dims) <= 5 and all(dim.HasField("dim_value") for dim in dims), value.name


def wrong_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(npu, "MASKED_BELOW_MINIMUM", 0.0)


def wrong_halves(patch: pytest.MonkeyPatch) -> None:
    rope = npu.NpuOps._rope

    def swapped(self: Any, x: str, head_dim: int, shared: Any) -> str:
        return rope(self, x, head_dim, npu._Shared(shared.sines, shared.cosines, shared.mask))

    patch.setattr(npu.NpuOps, "_rope", swapped)


def unscaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(npu, "_scale", lambda scale, head_dim: 1.0)


@pytest.mark.parametrize("control", [wrong_mask, wrong_halves, unscaled])
def test_control_a_wrong_primitive_is_noticed(
    control: Callable[[pytest.MonkeyPatch], None],
    models: Callable[..., Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, fixed = models("llama")
    control(monkeypatch)
    broken = NpuGraphs(fixed.package, tmp_path)
    embeds = graphs.embed(prompt_ids())
    assert difference(broken.logits(embeds, N_PREFILLED), expected_logits(graphs, embeds)) > 50 * ATOL
