"""Quantised graphs: onnxruntime computes what the dequantised weights say, and tied tables are stored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgevlm.errors import UsageError
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.graphs.builder import GraphBuilder
from export.graphs.tensors import TensorShape
from export.quant.rules import QuantPlan
from export.quant.scheme import dequantise, for_width, parse_scheme, quantise, stored_weight
from tests.export.graph_session import Graphs, build
from tests.golden.graph_cases import CASES, prompt_ids
from tests.tiny import make_bluelm_v, make_llama

Float32 = NDArray[np.float32]
SCHEMES = ["w4g32", "w4g32z", "w4g64", "w4g64z", "w4g128", "w8", "fp16"]


class Dequantised:
    """A checkpoint whose quantised tensors went through their scheme and back."""

    def __init__(self, source: Path, plan: QuantPlan) -> None:
        self.inner = open_checkpoint(source)
        self.name = self.inner.name
        self.plan = plan

    def tensors(self) -> Mapping[str, TensorShape]:
        return self.inner.tensors()

    def read(self, name: str) -> Float32:
        weight = self.inner.read(name)
        stored = self.plan.stored.get(name)
        if stored is None:
            return weight
        scale = self._layer_scale(name, len(weight))
        return stored_weight(weight * scale, stored.scheme)[0] / scale

    def _layer_scale(self, name: str, size: int) -> Float32:
        """What the export multiplies rows by before it quantises them, (N, 1)."""
        for linear, scale in (("attention.output.dense", "layer_scale1"), ("mlp.fc2", "layer_scale2")):
            if name.endswith(f"{linear}.weight"):
                return self.inner.read(name.replace(f"{linear}.weight", f"{scale}.lambda1"))[:, None]
        return np.ones((size, 1), np.float32)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        return self.read(name)[start:stop]

    def account(self, ignore: tuple[str, ...] = ()) -> None:
        self.inner.account(ignore)


def with_float_activations(model: Graphs) -> Graphs:
    """Takes int8 rounding of activations out, so that only the weights' numbers remain."""

    def change(proto: Any) -> None:
        for node in proto.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1

    for name in model.paths:
        model.edit(name, change)
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [True, False])
def test_graph_computes_with_the_dequantised_weights(scheme: str, tied: bool, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "checkpoint", tie_word_embeddings=tied)
    plan = QuantPlan(scheme)
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    quantised = Graphs(tmp_path / "quantised", build_model(spec, checkpoint, plan, tmp_path / "quantised"))
    with_float_activations(quantised)
    floats = tmp_path / "floats"
    twin = Graphs(floats, build_model(spec, Dequantised(source, plan), QuantPlan("fp32"), floats))
    found, expected = quantised.embed(prompt_ids()), twin.embed(prompt_ids())
    assert np.array_equal(found, expected)
    logits, twin_logits = quantised.decode(found)[0], twin.decode(expected)[0]
    assert np.allclose(logits, twin_logits, atol=1e-4, rtol=1e-4), np.abs(logits - twin_logits).max()


@pytest.mark.parametrize("scheme", ["w8", "w4g32", "w4g32z", "fp16"])
def test_vision_graph_computes_with_the_dequantised_weights(scheme: str, tmp_path: Path) -> None:
    source = make_bluelm_v(tmp_path / "checkpoint")
    plan = QuantPlan("fp32", scheme)
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    quantised = Graphs(tmp_path / "quantised", build_model(spec, checkpoint, plan, tmp_path / "quantised"))
    with_float_activations(quantised)
    floats = tmp_path / "floats"
    twin = Graphs(floats, build_model(spec, Dequantised(source, plan), QuantPlan("fp32", "fp32"), floats))
    pixels = CASES["bluelm_v"].pixels()
    found, expected = quantised.encode(pixels), twin.encode(pixels)
    assert np.allclose(found, expected, atol=1e-4, rtol=1e-4), np.abs(found - expected).max()


@pytest.mark.parametrize("scheme", ["fp32", *SCHEMES])
def test_tied_table_is_stored_once(scheme: str, tmp_path: Path) -> None:
    model = build(make_llama(tmp_path / "checkpoint"), tmp_path / "package", scheme, "w8")
    embed, decoder = model.result.graphs
    assert set(decoder.data) == {f"{decoder.path}_data", f"{embed.path}_data"}
    assert embed.data == (f"{embed.path}_data",)
    in_embed, in_decoder = external(model, "embed_tokens"), external(model, "decoder_model_merged")
    shared = {name for name in in_embed if name in in_decoder}
    assert shared == set(in_embed)
    assert all(in_embed[name] == in_decoder[name] for name in shared)


def external(model: Graphs, name: str) -> dict[str, dict[str, str]]:
    """Where each initialiser of a graph lies."""
    proto = onnx.load(model.paths[name], load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.external_data
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [576, 160])
def test_one_table_serves_gather_and_matmul(scheme: str, width: int, tmp_path: Path) -> None:
    """SmolLM2's width 576 is a multiple of 64, not of 128."""
    rows = 96
    chosen = for_width(parse_scheme(scheme), width)
    source = Path(make_llama(tmp_path / "checkpoint", hidden_size=width, vocab_size=rows, num_attention_heads=8))
    model = with_float_activations(build(source, tmp_path / "package", scheme, "w8"))
    weight = open_checkpoint(source).read("model.embed_tokens.weight")
    expected, _ = stored_weight(weight, chosen)
    ids = np.arange(rows)
    assert np.array_equal(model.embed(ids)[0], expected)
    head = onnx.load(model.paths["decoder_model_merged"], load_external_data=False)
    keep_only_head(head)
    onnx.save_model(head, model.paths["decoder_model_merged"])
    x = np.random.RandomState(4).standard_normal((1, 3, width)).astype(np.float32)
    logits = model.session("decoder_model_merged").run(None, {"x": x})[0]
    assert np.allclose(logits[0], x[0] @ expected.T, atol=2e-4, rtol=1e-4)
    if chosen.kind in ("int4", "int8"):
        assert not np.allclose(logits[0], x[0] @ broken_scales(weight, chosen.name).T, atol=1e-2)
        assert not np.allclose(logits[0], x[0] @ off_by_one(weight, chosen.name).T, atol=1e-2)


def keep_only_head(proto: Any) -> None:
    """Cuts the decoder down to what follows the final norm."""
    nodes = [node for node in proto.graph.node if node.name.startswith("/lm_head/")]
    names = {name for node in nodes for name in node.input}
    first = next(node for node in proto.graph.node if node.name == "/model/norm/SkipRMSNorm").output[0]
    for node in nodes:
        node.input[:] = ["x" if name == first else name for name in node.input]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in names]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, None, None])
    del proto.graph.node[:], proto.graph.initializer[:], proto.graph.input[:], proto.graph.output[1:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(x)


def broken_scales(weight: Float32, scheme: str) -> Float32:
    """The weight with its scales read in the other order."""
    quantised = quantise(weight, parse_scheme(scheme))
    scales = np.ascontiguousarray(quantised.scales.T).reshape(quantised.scales.shape)
    return dequantise(dataclasses.replace(quantised, scales=scales))


def off_by_one(weight: Float32, scheme: str) -> Float32:
    """The weight with every code one too high."""
    quantised = quantise(weight, parse_scheme(scheme))
    return dequantise(dataclasses.replace(quantised, codes=quantised.codes + 1))


def test_overrides_reach_the_graph_and_change_its_size(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "checkpoint")
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    plan = QuantPlan("w4g32", overrides=((r"model\.embed_tokens\.weight", "fp16"), (r".*down_proj\.weight", "w8")))
    model = Graphs(tmp_path / "package", build_model(spec, checkpoint, plan, tmp_path / "package"))
    plan.check_used()
    ops = [node.op_type for node in onnx.load(model.paths["decoder_model_merged"], load_external_data=False).graph.node]
    assert ops.count("MatMulNBits") == 14 and ops.count("Gemm") == 1
    assert {error.name: error.scheme for error in model.result.errors}["model.layers.0.mlp.down_proj.weight"] == "w8g32"
    assert model.decode(model.embed(prompt_ids()))[0].shape == (20, 384)


def test_overridable_weights_can_be_replaced_in_a_session(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    source = make_llama(tmp_path / "checkpoint")
    model = build(source, tmp_path / "package", overridable=lambda weight: weight == name)
    embeds = model.embed(prompt_ids())
    plain, _ = model.decode(embeds)
    weight = open_checkpoint(source).read(name)
    same, _ = model.decode(embeds, **{name: np.ascontiguousarray(weight.T)})
    other, _ = model.decode(embeds, **{name: np.zeros_like(weight.T)})
    assert np.allclose(same, plain, atol=1e-5)
    assert not np.allclose(other, plain, atol=1e-2)


def test_table_width_that_no_block_divides_is_refused(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "checkpoint", hidden_size=40, num_attention_heads=4)
    with pytest.raises(UsageError, match="width 40"):
        build(source, tmp_path / "package", "w4g32", "w8")


def test_builder_refuses_pieces_that_do_not_add_up(tmp_path: Path) -> None:
    with GraphBuilder("g", tmp_path / "g.onnx_data") as builder:
        with pytest.raises(ValueError, match="bytes written"):
            builder.store("float32", (4, 4), [np.zeros((3, 4), np.float32)])
        with pytest.raises(ValueError, match="expected float32"):
            builder.store("float32", (3, 4), [np.zeros((3, 4))])
