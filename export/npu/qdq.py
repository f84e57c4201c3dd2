"""quantise_graph: a fixed float graph → the same graph with every activation rounded to uint16 by a static range.

Codes of MatMulNBits stay as they are. Float weights of Gemm and Conv become int8 per output channel with int32 biases,
LayerNorm's gamma uint8 (HTP refuses uint16 there), every other constant uint16. Values that an operator only moves
share one scale with their source, and so do new keys, old keys and their concatenation: HTP drops the requantisation
between them. Keys and values are uint8 around 128 on both sides of the graph, so that the host only stores bytes.

The result runs on onnxruntime's CPU as it stands: that is the simulation which a device is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.npu.ranges import Range

KV_ZERO_POINT = 128
KV_LEVELS = 127
BETA_LEVELS = 1_000_000
"""Codes of the largest LayerNorm beta: far inside int32, far finer than the uint16 result."""
INLINE_BELOW_BYTES = 256
PAGE_BYTES = 4096
MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Pad", "ReduceMin")
"""Operators whose output holds only values of input 0 (Pad's zero is in every range)."""
UNIT = Range(0.0, 1.0)
FIXED = {"Softmax": UNIT, "Sigmoid": UNIT}


@dataclass(frozen=True)
class Codes:
    """How one value is rounded: real = (code - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: str

    @staticmethod
    def wide(found: Range) -> Codes:
        """uint16 over a range."""
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        scale = float(np.float32((high - low) / 65535)) if high > low else 1.0
        return Codes(scale, round(-low / scale), "uint16")

    @staticmethod
    def cache(found: Range) -> Codes:
        """uint8, symmetric."""
        largest = max(-found.low, found.high)
        return Codes(float(np.float32(largest / KV_LEVELS)) if largest > 0 else 1.0, KV_ZERO_POINT, "uint8")

    def quantise(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns codes, clipped to the type."""
        top = np.iinfo(self.dtype).max
        codes: NDArray[Any] = np.rint(values / np.float64(self.scale)) + self.zero_point
        return codes.clip(0, top).astype(self.dtype)


class WeightPool:
    """The data file that all graphs of one directory share; a tensor is written once under its name."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._name = path.name
        self._written: dict[str, Any] = {}

    def add(self, name: str, tensor: Any) -> Any:
        """Returns the TensorProto that reads `tensor` from the file; small ones stay in the graph."""
        import onnx

        if len(tensor.raw_data) < INLINE_BELOW_BYTES:
            return tensor
        if name not in self._written:
            self._file.write(b"\0" * (-self._file.tell() % PAGE_BYTES))
            stored = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            stored.data_location = onnx.TensorProto.EXTERNAL
            where = (("location", self._name), ("offset", self._file.tell()), ("length", len(tensor.raw_data)))
            for key, value in where:
                stored.external_data.add(key=key, value=str(value))
            self._file.write(tensor.raw_data)
            self._written[name] = stored
        return self._written[name]

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def quantise_graph(source: Path, target: Path, ranges: dict[str, Range], pool: WeightPool) -> dict[str, Codes]:
    """Writes `target`; returns the codes of each activation. Raises ValueError for a value without a range."""
    import onnx

    model = onnx.load(source)
    work = _Rewrite(model, ranges, pool)
    work.run()
    model = work.model()
    onnx.save_model(model, target)
    return work.codes


class _Rewrite:
    def __init__(self, model: Any, ranges: dict[str, Range], pool: WeightPool) -> None:
        import onnx

        self.source = model
        self.pool = pool
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.float_constants = {name for name, value in self.constants.items() if value.dtype == np.float32}
        self.cached = [item.name for item in model.graph.input if item.name.startswith("past_key_values.")]
        self.new = {item.name for item in model.graph.output if item.name.startswith("present.")}
        self._split_new_rows()
        self.groups = _groups(model.graph.node, self.float_constants)
        self.codes = self._choose(ranges)
        self.dequantised: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """Copies node by node, with its inputs dequantised and its output quantised."""
        graph = self.source.graph
        for item in graph.input:
            if item.name in self.codes:
                self._enter(item)
        for node in graph.node:
            if node.op_type == "Narrow":
                self._narrow(node)
                continue
            for i, name in enumerate(node.input):
                if name:
                    node.input[i] = self._input(node, i, name)
            self.nodes.append(node)
            self._round(node.output[0], node.name)

    def model(self) -> Any:
        """The rewritten model."""
        import onnx

        graph = self.source.graph
        elements = {"uint8": onnx.TensorProto.UINT8}
        for item in (*graph.input, *graph.output):
            if item.name in self.cached or item.name in self.new:
                item.type.tensor_type.elem_type = elements["uint8"]
        rewritten = onnx.helper.make_graph(
            self.nodes, graph.name, graph.input, graph.output, initializer=list(self.initializers.values())
        )
        return onnx.helper.make_model(
            rewritten,
            opset_imports=self.source.opset_import,
            ir_version=self.source.ir_version,
            producer_name="edgevlm",
        )

    # ---- which values share their codes

    def _split_new_rows(self) -> None:
        """Between the wide value that a node makes and the narrow one that the cache holds stands a 'Narrow' node."""
        import onnx

        nodes: list[Any] = []
        for node in self.source.graph.node:
            nodes.append(node)
            name = node.output[0]
            if name in self.new:
                node.output[0] = f"{name}/wide"
                nodes.append(onnx.helper.make_node("Narrow", [f"{name}/wide"], [name], name=f"{node.name}/Narrow"))
        del self.source.graph.node[:]
        self.source.graph.node.extend(nodes)

    def _choose(self, ranges: dict[str, Range]) -> dict[str, Codes]:
        nodes = self.source.graph.node
        fixed = {self.groups[node.output[0]]: FIXED[node.op_type] for node in nodes if node.op_type in FIXED}
        found: dict[str, Range] = {}
        members: dict[str, list[str]] = {}
        narrow = {root for name, root in self.groups.items() if name in self.cached or name in self.new}
        for name, root in self.groups.items():
            members.setdefault(root, []).append(name)
            if root in narrow and name not in self.new:
                continue  # rows of the cache are the new ones
            if name in self.float_constants:
                values = self.constants[name]
                one = Range(float(values.min()), float(values.max()))
            elif root in fixed:
                one = fixed[root]
            elif name.removesuffix("/wide") in ranges:
                one = ranges[name.removesuffix("/wide")]
            else:
                continue  # the row that logits are taken of: a move, whose source has a range
            found[root] = found[root].union(one) if root in found else one
        codes: dict[str, Codes] = {}
        for root, names in members.items():
            if root not in found:
                raise ValueError(f"{self.source.graph.name}: calibration saw no value {names[0]!r}")
            made = Codes.cache(found[root]) if root in narrow else Codes.wide(found[root])
            codes |= dict.fromkeys(names, made)
        return codes

    # ---- nodes

    def _enter(self, item: Any) -> None:
        """A graph input: bytes of the cache are only dequantised, floats are rounded first."""
        if item.name in self.cached:
            self._dequantise(item.name, self.codes[item.name], item.name)
        else:
            self._round(item.name, f"/{item.name}")

    def _narrow(self, node: Any) -> None:
        wide, name = node.input[0], node.output[0]
        self._quantise(self.dequantised[wide, ""], name, self.codes[name], node.name)
        self._dequantise(name, self.codes[name], name)

    def _round(self, name: str, path: str) -> None:
        """Rounds a float value; a graph output keeps its name behind the rounding."""
        codes, is_output = self.codes[name], any(item.name == name for item in self.source.graph.output)
        made = name
        if is_output:
            made = f"{name}/float"
            self.nodes[-1].output[0] = made
        self._quantise(made, f"{name}/codes", codes, path)
        self._dequantise(f"{name}/codes", codes, name, name if is_output else "")

    def _quantise(self, value: str, out: str, codes: Codes, path: str) -> None:
        import onnx

        inputs = [value, *self._parameters(codes)]
        self.nodes.append(onnx.helper.make_node("QuantizeLinear", inputs, [out], name=f"{path}/Quantize"))

    def _dequantise(self, value: str, codes: Codes, name: str, out: str = "") -> None:
        import onnx

        out = out or f"{name}/rounded"
        inputs = [value, *self._parameters(codes)]
        self.nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [out], name=f"{name}/Dequantize"))
        self.dequantised[name, ""] = out

    def _parameters(self, codes: Codes) -> list[str]:
        scale = self._constant(f"scale.{codes.scale!r}", np.array(codes.scale, np.float32))
        return [
            scale,
            self._constant(f"zero.{codes.dtype}.{codes.zero_point}", np.array(codes.zero_point, codes.dtype)),
        ]

    # ---- constants

    def _input(self, node: Any, i: int, name: str) -> str:
        if name not in self.float_constants:
            if name in self.constants:
                self._constant(name, self.constants[name])
                return name
            return self.dequantised.get((name, ""), name)
        if node.op_type == "MatMulNBits":
            return self._constant(name, self.constants[name])
        if node.op_type in ("Gemm", "Conv"):
            return self._channels(name) if i == 1 else self._bias(node, name)
        if node.op_type == "LayerNormalization":
            return self._gamma(name) if i == 1 else self._beta(name)
        values = self.constants[name]
        codes = self.codes.get(name) or Codes.wide(Range(float(values.min()), float(values.max())))
        return self._stored(name, "u16", codes.quantise(values), codes.scale, codes.zero_point)

    def _channels(self, name: str) -> str:
        """int8 per output channel."""
        values = self.constants[name]
        scales = self._channel_scales(name)
        codes = np.clip(np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))), -127, 127).astype(np.int8)
        return self._stored(name, "i8", codes, scales, 0, axis=0)

    def _channel_scales(self, name: str) -> NDArray[np.float32]:
        values = self.constants[name]
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        scales: NDArray[np.float32] = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        return scales

    def _bias(self, node: Any, name: str) -> str:
        """int32 in steps of the product of input and weight steps."""
        weight = node.input[1].split("/i8")[0]
        source = node.input[0].removesuffix("/rounded")
        scales = (self.codes[source].scale * self._channel_scales(weight)).astype(np.float32)
        codes = np.rint(self.constants[name] / scales.astype(np.float64))
        limit = np.iinfo(np.int32)
        return self._stored(name, "i32", np.clip(codes, limit.min, limit.max).astype(np.int32), scales, 0, axis=0)

    def _gamma(self, name: str) -> str:
        values = self.constants[name]
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = float(np.float32((high - low) / 255)) if high > low else 1.0
        codes = Codes(scale, round(-low / scale), "uint8")
        return self._stored(name, "u8", codes.quantise(values), scale, codes.zero_point)

    def _beta(self, name: str) -> str:
        values = self.constants[name]
        scale = float(np.float32(max(float(np.abs(values).max()), 1e-6) / BETA_LEVELS))
        return self._stored(name, "i32", np.rint(values / scale).astype(np.int32), scale, 0)

    def _stored(
        self,
        name: str,
        kind: str,
        codes: NDArray[Any],
        scale: NDArray[np.float32] | float,
        zero_point: int,
        **axis: int,
    ) -> str:
        """Adds codes and their DequantizeLinear; returns the value."""
        import onnx

        key = (name, kind)
        if key not in self.dequantised:
            scales = np.asarray(scale, np.float32)
            path = f"{name}/{kind}"
            inputs = [
                self._constant(path, codes),
                self._constant(f"{path}.scale", scales),
                self._constant(f"{path}.zero", np.full(scales.shape, zero_point, codes.dtype)),
            ]
            out = f"{path}/rounded"
            self.nodes.append(
                onnx.helper.make_node("DequantizeLinear", inputs, [out], name=f"{path}/Dequantize", **axis)
            )
            self.dequantised[key] = out
        return self.dequantised[key]

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        import onnx

        if name not in self.initializers:
            self.initializers[name] = self.pool.add(
                name, onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
            )
        return name


def _groups(nodes: Any, float_constants: set[str]) -> dict[str, str]:
    """Each value → the representative of those that share its codes."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    for node in nodes:
        floats = [node.input[0]]
        if node.op_type == "Concat":
            floats = list(node.input)
        elif node.op_type == "Where":
            floats = list(node.input[1:])
        elif node.op_type not in MOVES:
            floats = [name for name in node.input if name and name not in float_constants]
        root(node.output[0])
        for name in floats:
            if node.op_type in MOVES or node.op_type == "Concat":
                parent[root(name)] = root(node.output[0])
            elif node.op_type != "MatMulNBits" or name == node.input[0]:
                root(name)
    return {name: root(name) for name in parent}
