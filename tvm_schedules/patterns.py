"""Reading a graph's nodes in order against a table of patterns: what the decoder and the vision encoder share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError
from tvm_schedules.onnx_graph import Node, OnnxGraph
from tvm_schedules.plan import Buffer, Op, WeightsFile

T = TypeVar("T")


class PatternReader:
    """Values by name, calls and buffers so far, tables written once; `handlers` is the subclass's table of patterns."""

    handlers: Mapping[str, Callable[[Node], None]]

    def __init__(self, graph: OnnxGraph, weights: WeightsFile) -> None:
        self.graph = graph
        self.weights = weights
        self.ops: list[Op] = []
        self.buffers: dict[str, Buffer] = {}
        self.values: dict[str, Any] = {}
        self._tables: dict[str, int] = {}

    def read_nodes(self) -> None:
        """Hands each node to the pattern of its op. Raises UnsupportedModelError naming the first without one."""
        for node in self.graph.nodes:
            handler = self.handlers.get(node.op_type)
            if handler is None:
                raise self.unmatched(node)
            handler(node)

    def get(self, node: Node, index: int, kind: type[T]) -> T:
        """The value of an input. Raises UnsupportedModelError naming the node when it is of another kind."""
        value = self.values.get(node.input(index))
        if not isinstance(value, kind):
            raise self.unmatched(node)
        return value

    def unmatched(self, node: Node) -> UnsupportedModelError:
        """The error for a node that no pattern takes."""
        inputs = [name for name in node.inputs if name and not self.graph.has(name)]
        kinds = ", ".join(type(self.values.get(name)).__name__ for name in inputs)
        return UnsupportedModelError(
            f"{self.graph.path}: no pattern for node {node.name} ({node.op_type} of {kinds}); "
            "use the onnxruntime backend"
        )

    def table(self, name: str) -> int:
        """Offset of a float initialiser that several operations may share."""
        if name not in self._tables:
            values: NDArray[Any] = self.graph.array(name)
            self._tables[name] = self.weights.add(values.astype(np.float32))
        return self._tables[name]

    def stacked_bias(self, nodes: Sequence[Node], n: int) -> NDArray[np.float32]:
        """The biases of linears that become one product of `n` columns; zeros where one has none."""
        bias = np.zeros(n, np.float32)
        at = 0
        for node in nodes:
            size = int(node.attributes["N"])
            if node.input(5):
                bias[at : at + size] = self.graph.array(node.inputs[5])
            at += size
        return bias
