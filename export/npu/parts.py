"""split_graph: a quantised graph with more weights than one context binary holds → parts that run in turn.

A part is a range of consecutive layers; what comes before the first layer is in the first part, the head or connector
in the last. Between two parts goes the hidden state, as the uint16 codes that the whole graph rounds it to: the first
output of one part and an input of the next, under one name. So splitting changes no number. Each part looks up the rows
of RoPE's tables for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import UnsupportedModelError
from export.npu.graphs import BuiltGraph

MAX_BINARY_BYTES = 1 << 31
"""What one context may hold on a phone. Source: Qualcomm's guides, by way of PowerServe and ExecuTorch."""


@dataclass(frozen=True)
class _Part:
    nodes: frozenset[int]
    outputs: tuple[str, ...]
    """The hidden state or the graph's first output, then the rows that the part adds to the cache."""
    entry: str
    """The hidden state that it takes; '' for the first part."""


def split_graph(built: BuiltGraph, path: Path, limit_bytes: int = MAX_BINARY_BYTES) -> list[Path]:
    """Returns the files of the parts of `path`, which is the quantised form of `built`; `path` alone where it fits.

    Each part's weights are below `limit_bytes`; they stay in the data file. Raises UnsupportedModelError naming a layer
    that is larger.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = _Graph(model.graph, tuple(f"{value}/codes" for value in built.boundaries))
    ranges = _fitting(built.name, graph, limit_bytes)
    if len(ranges) == 1:
        return [path]
    written = []
    for number, layers in enumerate(ranges):
        part = graph.part(layers)
        made = onnx.helper.make_model(
            graph.as_onnx(f"{built.name}_part{number}", part, built.hidden_shape),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
            producer_name=model.producer_name,
        )
        written.append(path.with_name(f"{path.stem}_part{number}{path.suffix}"))
        onnx.save_model(made, written[-1])
    path.unlink()
    return written


def _fitting(name: str, graph: _Graph, limit_bytes: int) -> list[range]:
    """Ranges of layers, as long as they fit."""
    ranges: list[range] = []
    for layer in range(graph.n_layers):
        alone = range(layer, layer + 1)
        size_bytes = graph.weight_bytes(alone)
        if size_bytes >= limit_bytes:
            raise UnsupportedModelError(
                f"layer {layer} of graph {name!r}{_with(layer, graph.n_layers)} has {size_bytes / 1e6:.2f} MB of "
                f"weights, one part holds less than {limit_bytes / 1e6:.2f} MB; export the model with fewer bits"
            )
        if ranges and graph.weight_bytes(longer := range(ranges[-1].start, layer + 1)) < limit_bytes:
            ranges[-1] = longer
        else:
            ranges.append(alone)
    return ranges


def _with(layer: int, n_layers: int) -> str:
    """What a layer's part holds besides it."""
    return " with what follows the last layer" if layer == n_layers - 1 else ""


class _Graph:
    """An ONNX graph and the values, one between two layers, at which it may be cut."""

    def __init__(self, graph: Any, cuts: tuple[str, ...]) -> None:
        self._graph = graph
        self._cuts = cuts
        self._maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.n_layers = len(cuts) + 1
        done: set[int] = set()
        self._produced: list[tuple[str, ...]] = []
        first, *others = (item.name for item in graph.output)
        for layer in range(self.n_layers):
            last = layer == self.n_layers - 1
            until = self._nodes([first, *others] if last else [cuts[layer]], set()) - done
            rows = tuple(name for name in others if self._maker[name] in until)
            self._produced.append(((first if last else cuts[layer]), *rows))
            done |= until

    def part(self, layers: range) -> _Part:
        """Returns what a range of layers computes."""
        entry = self._cuts[layers.start - 1] if layers.start else ""
        rows = tuple(name for layer in layers for name in self._produced[layer][1:])
        outputs = (self._produced[layers.stop - 1][0], *rows)
        return _Part(frozenset(self._nodes(outputs, {entry})), outputs, entry)

    def weight_bytes(self, layers: range) -> int:
        """Returns the bytes of the weights in the data file that a range of layers reads."""
        tensors = (self._initializers[name] for name in self._read(self.part(layers)) if name in self._initializers)
        return sum(int(e.value) for tensor in tensors for e in tensor.external_data if e.key == "length")

    def as_onnx(self, name: str, part: _Part, hidden_shape: tuple[int, ...]) -> Any:
        """Returns a part as an ONNX graph."""
        from onnx import TensorProto, helper

        read = self._read(part)
        declared = {item.name: item for item in (*self._graph.input, *self._graph.output)}
        for cut in self._cuts:
            declared[cut] = helper.make_tensor_value_info(cut, TensorProto.UINT16, hidden_shape)
        inputs = [declared[part.entry]] if part.entry else []
        return helper.make_graph(
            [node for i, node in enumerate(self._graph.node) if i in part.nodes],
            name,
            [*inputs, *(item for item in self._graph.input if item.name in read)],
            [declared[output] for output in part.outputs],
            initializer=[tensor for tensor in self._graph.initializer if tensor.name in read],
        )

    def _read(self, part: _Part) -> set[str]:
        return {name for i in part.nodes for name in self._graph.node[i].input}

    def _nodes(self, wanted: Iterable[str], given: set[str]) -> set[int]:
        """Nodes behind the wanted values, as far as the given ones."""
        found: set[int] = set()
        open_values = list(wanted)
        while open_values:
            value = open_values.pop()
            maker = self._maker.get(value)
            if value not in given and maker is not None and maker not in found:
                found.add(maker)
                open_values.extend(self._graph.node[maker].input)
        return found
