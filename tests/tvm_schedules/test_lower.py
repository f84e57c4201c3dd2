"""Lowering a decoder: what matches no pattern is an error that names the node and its op."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.errors import UnsupportedModelError
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.key_ranges import KeyRange, measure_keys
from tvm_schedules.lower import Lowered, lower_decoder
from tvm_schedules.onnx_graph import OnnxGraph
from tvm_schedules.plan import WeightsFile


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    directory = tmp_path_factory.mktemp("lower")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_llama(directory / "checkpoint", **sizes)
    return open_package(export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False)))


@pytest.fixture(scope="module")
def ranges(package: Package) -> list[KeyRange]:
    return measure_keys(package, probes.text()[:1000])


def lower(
    package: Package, ranges: list[KeyRange], scratch: Path, changed: str, change: dict[str, object] | None = None
) -> Lowered:
    """Lowers the decoder with its first node of type `changed` changed."""
    decoder, embed = (OnnxGraph(package.graph(name)) for name in ("decoder_model_merged", "embed_tokens"))
    place = next(i for i, node in enumerate(decoder.nodes) if node.op_type == changed)
    decoder.nodes[place] = replace(decoder.nodes[place], **(change or {}))  # type: ignore[arg-type]
    with WeightsFile(scratch / "weights.bin", "x86_64") as weights:
        return lower_decoder(decoder, embed, weights, ranges)


def test_the_graph_as_it_is(package: Package, ranges: list[KeyRange], tmp_path: Path) -> None:
    lowered = lower(package, ranges, tmp_path, "QuickGelu")
    layer = ["quantise", "gemm", "append", "attend", "quantise", "gemm", "quantise", "gemm", "quantise", "gemm"]
    assert [op.code for op in lowered.ops] == ["embed", *layer * lowered.n_layers, "quantise", "gemm"]


@pytest.mark.parametrize(
    ("op_type", "change", "sentence"),
    [
        ("QuickGelu", {"op_type": "Elu"}, r"no pattern for node /model/layers\.0/mlp/\S+ \(Elu of Linear\)"),
        ("RotaryEmbedding", {"op_type": "Identity"}, r"no pattern for node /model/layers\.0/attn/\S+ \(Identity of"),
        ("RotaryEmbedding", {"attributes": {"interleaved": 1}}, r"no pattern for node \S+ \(RotaryEmbedding of Linear"),
        ("QuickGelu", {"attributes": {"alpha": 1.702}}, r"no pattern for node \S+ \(QuickGelu of Linear\)"),
        ("Cos", {"op_type": "Sin"}, r"no pattern for node \S+ \(RotaryEmbedding of Linear, RowNumbers, Turn, Turn\)"),
        ("Cos", {"op_type": "Neg"}, r"no pattern for node /model/rope/Cos \(Neg of Turn\)"),
        ("Range", {"op_type": "Neg"}, r"no pattern for node \S+ \(RotaryEmbedding of Linear, Control, Turn, Turn\)"),
    ],
    ids=["activation", "rope", "interleaved rope", "alpha", "two sines", "no cosine", "other rows"],
)
def test_what_matches_nothing_is_named(
    op_type: str, change: dict[str, object], sentence: str, package: Package, ranges: list[KeyRange], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        lower(package, ranges, tmp_path, op_type, change)
