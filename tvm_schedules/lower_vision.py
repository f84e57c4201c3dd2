"""A package's vision encoder to the engine's call list: a table of node patterns; what matches none is an error.

As in `lower`, a linear is called where its result is used: three that feed one attention become one product, one that
feeds GELU and another linear leaves codes for it, one that feeds a residual sum adds to it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevlm.errors import UnsupportedModelError
from tvm_schedules.layouts import COLUMNS
from tvm_schedules.matrices import merge, padded_matrix, store
from tvm_schedules.onnx_graph import Node, OnnxGraph
from tvm_schedules.patterns import PatternReader
from tvm_schedules.plan import NONE, Buffer, Graph, Op, WeightsFile
from tvm_schedules.tower_kernels import TOWER_HEAD_DIMS

MAX_BATCH = 4
"""Tiles that one call of the engine's tower takes together."""
MAX_ROW_TILE = 16
"""Buffers have whole register tiles of rows, whichever variant runs."""
WIDTH_MULTIPLE = 64
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Rows:
    """Values that lie in a buffer: `rows` a tile, of which `first` leading ones are not meant.

    `version` counts the sums that were added in place; a value of an older version is gone.
    """

    buffer: str
    width: int
    rows: int
    first: int = 0
    version: int = 0


@dataclass(frozen=True)
class Normed:
    """LayerNorm of rows, not yet computed."""

    rows: Rows
    gamma: str
    beta: str
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """A product that is not yet called."""

    node: Node
    source: Rows | Normed | Activated


@dataclass(frozen=True)
class Activated:
    """GELU of a linear's result; `flag` names its form."""

    linear: Linear
    flag: str


@dataclass(frozen=True)
class Convolved:
    """The patch convolution, (tiles, width, grid, grid) or its transposed rows; `stage` counts the nodes seen."""

    node: Node
    stage: int = 0


@dataclass(frozen=True)
class Patches:
    """Patches with their positions, not yet computed: a CLS row may still come before them."""

    node: Node
    positions: str


@dataclass(frozen=True)
class ClsRow:
    """A constant row for each tile."""

    name: str


@dataclass(frozen=True)
class Blocks:
    """Rows on their way through Reshape, Pad and Transpose to merged blocks."""

    rows: Rows | Normed
    grid: int
    padded: int
    factor: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Control:
    """Numbers of tiles: the engine counts them itself."""


@dataclass(frozen=True)
class LoweredTower:
    """The call list of a vision encoder."""

    graph: Graph
    tile_px: int
    tokens_per_tile: int
    width: int


def lower_vision(graph: OnnxGraph, weights: WeightsFile, max_batch: int = MAX_BATCH) -> LoweredTower:
    """Lowers `vision_encoder` and writes its weights to `weights`.

    Raises UnsupportedModelError naming the first node without a pattern.
    """
    return _Lowering(graph, weights, max_batch).run()


class _Lowering(PatternReader):
    def __init__(self, graph: OnnxGraph, weights: WeightsFile, max_batch: int) -> None:
        super().__init__(graph, weights)
        self.max_batch = max_batch
        self.versions: dict[str, int] = {}
        self.tile_px = 0
        self.handlers = {
            "Conv": self._convolution,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Pad": self._pad,
            "Add": self._add,
            "Shape": self._shape,
            "Concat": self._concat,
            "Expand": self._expand,
            "Slice": self._slice,
            "LayerNormalization": self._norm,
            "MatMulNBits": self._linear,
            "MultiHeadAttention": self._attention,
            "Gelu": self._gelu,
        }

    def run(self) -> LoweredTower:
        self.read_nodes()
        features = self.values.get("image_features")
        last = self.graph.nodes[-1]
        if isinstance(features, Linear):
            result = self._called(features, "features")
        elif isinstance(features, Normed):
            result = self._normalised(features, "features", last)
        else:
            raise UnsupportedModelError(
                f"{self.graph.path}: image_features is not the result of a linear or a norm but of {last.name} "
                f"({last.op_type}); use the onnxruntime backend"
            )
        call_list = Graph(1, self.ops, tuple(self.buffers.values()), "", result.buffer, self.max_batch)
        return LoweredTower(call_list, self.tile_px, result.rows, result.width)

    # ---- patches and positions

    def _convolution(self, node: Node) -> None:
        if node.inputs[0] != "pixel_values" or "pixel_values" not in self.graph.inputs:
            raise self.unmatched(node)
        kernel, strides = list(node.attributes["kernel_shape"]), list(node.attributes.get("strides", []))
        if kernel != strides or kernel[0] != kernel[1] or any(node.attributes.get("pads", [])):
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Convolved(node)

    def _add(self, node: Node) -> None:
        first = self.values.get(node.inputs[0])
        if isinstance(first, Convolved) and first.stage == 2 and self.graph.has(node.inputs[1]):
            self.values[node.outputs[0]] = Patches(first.node, node.inputs[1])
            return
        residual = self._rows(node, node.inputs[0])
        linear = self.get(node, 1, Linear)
        if residual.width != int(linear.node.attributes["N"]) or residual.first:
            raise self.unmatched(node)
        self._called(linear, residual.buffer, accumulate=True)
        self.versions[residual.buffer] = residual.version + 1
        self.values[node.outputs[0]] = replace(residual, version=residual.version + 1)

    def _shape(self, node: Node) -> None:
        if node.attributes.get("start", 0) or node.attributes.get("end") != 1:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Control()

    def _expand(self, node: Node) -> None:
        if not self.graph.has(node.inputs[0]) or self.graph.array(node.inputs[0]).shape[:2] != (1, 1):
            raise self.unmatched(node)
        self.get(node, 1, Control)
        self.values[node.outputs[0]] = ClsRow(node.inputs[0])

    def _concat(self, node: Node) -> None:
        first = self.values.get(node.inputs[0])
        if isinstance(first, Control):
            self.values[node.outputs[0]] = first
            return
        if not isinstance(first, ClsRow) or len(node.inputs) != 2 or node.attributes["axis"] != 1:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = self._embedded(self.get(node, 1, Patches), first)

    def _embedded(self, patches: Patches, cls: ClsRow | None) -> Rows:
        """Calls the patch embedding into the residual stream."""
        node = patches.node
        filters = self.graph.array(node.inputs[1]).astype(np.float32)
        width, channels, side, _ = filters.shape
        self._check_width(node, width)
        table = self.graph.array(patches.positions).astype(np.float32).reshape(-1, width)
        tile_px = self.graph.input_shapes["pixel_values"][-1]
        # A last patch that the tile does not fill is left out, as the convolution does.
        grid = int(tile_px) // side if isinstance(tile_px, int) else 0
        if channels != 3 or grid * grid != len(table):
            raise self.unmatched(node)
        bias = self.graph.array(node.inputs[2]) if node.input(2) else np.zeros(width, np.float32)
        # (N/16, K, 16): a vector of columns for each pixel of a patch.
        packed = filters.reshape(width // COLUMNS, COLUMNS, -1).transpose(0, 2, 1)
        first = 0 if cls is None else 1
        rows = self._new(f"x{len(self.versions)}", width, grid * grid + first)
        self.tile_px = int(tile_px)
        self.ops.append(
            Op(
                "patches", n=width, k=3 * side * side, group=side, window=self.tile_px, rows=rows.rows, layer=first,
                target=rows.buffer, weight=self.weights.add(packed), cos=self.weights.add(table + bias),
                sin=NONE if cls is None else self.weights.add(self.graph.array(cls.name).astype(np.float32)),
            )
        )
        return rows

    # ---- norms, linears, attention

    def _slice(self, node: Node) -> None:
        rows = self._rows(node, node.inputs[0])
        start, end, axis = (self.graph.array(name).reshape(-1).tolist() for name in node.inputs[1:4])
        step = self.graph.array(node.inputs[4]).reshape(-1).tolist() if node.input(4) else [1]
        if axis != [1] or step != [1] or rows.first or not 0 < start[0] < rows.rows or end[0] not in (
            rows.rows, _INT64_MAX,
        ):
            raise self.unmatched(node)
        self.values[node.outputs[0]] = replace(rows, first=start[0])

    def _norm(self, node: Node) -> None:
        if node.attributes.get("axis", -1) != -1 or not node.input(2):
            raise self.unmatched(node)
        rows = self._rows(node, node.inputs[0])
        self.values[node.outputs[0]] = Normed(rows, node.inputs[1], node.inputs[2], float(node.attributes["epsilon"]))

    def _linear(self, node: Node) -> None:
        source = self.values.get(node.inputs[0])
        if isinstance(source, Linear):
            source = self._called(source, f"linear{len(self.versions)}")
        if not isinstance(source, (Rows, Normed, Activated)):
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Linear(node, source)

    def _gelu(self, node: Node) -> None:
        form = node.attributes.get("approximate", b"none")
        flags = {b"none": "gelu", b"tanh": "gelu_tanh"}
        if form not in flags:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Activated(self.get(node, 0, Linear), flags[form])

    def _attention(self, node: Node) -> None:
        linears = [self.get(node, index, Linear) for index in range(3)]
        width = int(linears[0].node.attributes["N"])
        heads = int(node.attributes["num_heads"])
        same = all(linear.source == linears[0].source and linear.node.attributes["N"] == width for linear in linears)
        if not same or any(node.inputs[3:]):
            raise self.unmatched(node)
        head_dim = width // heads
        if head_dim not in TOWER_HEAD_DIMS or head_dim * heads != width:
            raise UnsupportedModelError(
                f"{self.graph.path}: node {node.name}: {heads} heads of {width / heads:g} channels; the engine's "
                f"tower has attention for {TOWER_HEAD_DIMS}; use the onnxruntime backend"
            )
        qkv = self._product([linear.node for linear in linears], linears[0].source, f"qkv{len(self.versions)}")
        attended = self._new(f"attended{len(self.versions)}", width, qkv.rows)
        scale = float(node.attributes.get("scale") or head_dim**-0.5)
        self.ops.append(
            Op(
                "attend_all", n=qkv.width, heads=heads, kv_heads=heads, head_dim=head_dim, value=scale, rows=qkv.rows,
                source=qkv.buffer, target=attended.buffer,
            )
        )
        self.values[node.outputs[0]] = attended

    # ---- merging of tokens

    def _reshape(self, node: Node) -> None:
        source = self.values.get(node.inputs[0])
        shape = self.graph.array(node.inputs[1]).tolist() if self.graph.has(node.inputs[1]) else []
        if isinstance(source, Convolved) and source.stage == 0 and len(shape) == 3:
            self.values[node.outputs[0]] = replace(source, stage=1)
        elif isinstance(source, (Rows, Normed)) and len(shape) == 4 and shape[1] == shape[2]:
            rows = source.rows if isinstance(source, Normed) else source
            if shape != [0, shape[1], shape[1], rows.width] or shape[1] ** 2 != rows.rows - rows.first:
                raise self.unmatched(node)
            self.values[node.outputs[0]] = Blocks(source, shape[1], shape[1])
        elif isinstance(source, Blocks) and not source.factor and len(shape) == 6:
            factor, width = shape[2], _rows_of(source.rows).width
            if shape != [0, source.padded // factor, factor, source.padded // factor, factor, width]:
                raise self.unmatched(node)
            self.values[node.outputs[0]] = replace(source, factor=factor)
        elif isinstance(source, Blocks) and source.transposed and len(shape) == 3:
            self.values[node.outputs[0]] = self._merged(node, source, shape)
        else:
            raise self.unmatched(node)

    def _transpose(self, node: Node) -> None:
        source, order = self.values.get(node.inputs[0]), list(node.attributes["perm"])
        if isinstance(source, Convolved) and source.stage == 1 and order == [0, 2, 1]:
            self.values[node.outputs[0]] = replace(source, stage=2)
        elif isinstance(source, Blocks) and source.factor and order == [0, 1, 3, 2, 4, 5]:
            self.values[node.outputs[0]] = replace(source, transposed=True)
        else:
            raise self.unmatched(node)

    def _pad(self, node: Node) -> None:
        blocks = self.get(node, 0, Blocks)
        pads = self.graph.array(node.inputs[1]).tolist()
        extra = pads[5] if len(pads) == 8 else -1
        if pads != [0, 0, 0, 0, 0, extra, extra, 0] or extra < 0 or any(node.inputs[2:]) or blocks.factor:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = replace(blocks, padded=blocks.grid + extra)

    def _merged(self, node: Node, blocks: Blocks, shape: Sequence[int]) -> Rows:
        source = blocks.rows
        rows = self._normalised(source, f"normed{len(self.versions)}", node) if isinstance(source, Normed) else source
        side, width = blocks.padded // blocks.factor, rows.width * blocks.factor**2
        if list(shape) != [0, side * side, width] or rows.first:
            raise self.unmatched(node)
        merged = self._new(f"merged{len(self.versions)}", width, side * side)
        self.ops.append(
            Op("merge", k=rows.width, group=blocks.factor, window=blocks.grid, head_dim=blocks.padded, rows=merged.rows,
               source=rows.buffer, target=merged.buffer)
        )
        return merged

    # ---- calls

    def _called(self, linear: Linear, target: str, accumulate: bool = False) -> Rows:
        return self._product([linear.node], linear.source, target, accumulate)

    def _product(
        self, nodes: Sequence[Node], source: Rows | Normed | Activated, target: str, accumulate: bool = False
    ) -> Rows:
        """Calls the product of `source` with the stacked weights of `nodes`."""
        matrix = merge([padded_matrix(self.graph, node) for node in nodes])
        if isinstance(source, Activated):
            rows = self._codes_of_gelu(source, matrix.shape[1], matrix.group)
        else:
            rows = self._quantise(nodes[0], source, matrix.shape[1], matrix.group)
        fields = store(self.weights, matrix)
        fields["bias"] = self.weights.add(self.stacked_bias(nodes, fields["n"]))
        result = Rows(target, matrix.shape[0], rows)
        if not accumulate:
            result = self._new(target, matrix.shape[0], rows, fields["n"])
        flags = frozenset({"accumulate"}) if accumulate else frozenset[str]()
        self.ops.append(Op("linear", flags, target=target, rows=rows, **fields))
        return result

    def _codes_of_gelu(self, source: Activated, k: int, group: int) -> int:
        """Calls a linear whose activated result becomes the codes that the next product takes; returns its rows."""
        node = source.linear.node
        matrix = merge([padded_matrix(self.graph, node)])
        if not isinstance(source.linear.source, (Rows, Normed)):
            raise self.unmatched(node)
        rows = self._quantise(node, source.linear.source, matrix.shape[1], matrix.group)
        fields = store(self.weights, matrix, columns=max(WIDTH_MULTIPLE, group))
        if fields["n"] < k:
            raise self.unmatched(node)
        fields["bias"] = self.weights.add(self.stacked_bias([node], fields["n"]))
        # Columns beyond K are zero, and so is their GELU.
        self.ops.append(Op("linear", frozenset({source.flag}), rows=rows, head_dim=group, window=k, **fields))
        return rows

    def _quantise(self, node: Node, source: Rows | Normed, k: int, group: int) -> int:
        """Makes codes of `source`, groups of `group`; returns the rows a tile."""
        if isinstance(source, Normed) and source.rows.first:
            source = self._normalised(source, f"normed{len(self.versions)}", node)
        rows = _rows_of(source)
        self._current(node, rows)
        self._check_width(node, rows.width)
        if rows.width != k or rows.first:
            raise self.unmatched(node)
        op = Op("quantise", k=k, group=group, rows=rows.rows, source=rows.buffer)
        if isinstance(source, Normed):
            op = replace(op, flags=frozenset({"norm_layer"}), value=source.epsilon,
                         weight=self.table(source.gamma), bias=self.table(source.beta))
        self.ops.append(op)
        return rows.rows

    def _normalised(self, source: Normed, target: str, node: Node) -> Rows:
        """Calls the norm into a buffer of its own, without leading rows that are not meant."""
        rows = source.rows
        self._current(node, rows)
        result = self._new(target, rows.width, rows.rows - rows.first)
        self.ops.append(
            Op("norm", k=rows.width, rows=result.rows, window=rows.rows, layer=rows.first, value=source.epsilon,
               source=rows.buffer, target=target, weight=self.table(source.gamma), bias=self.table(source.beta))
        )
        return result

    # ---- values

    def _new(self, name: str, width: int, rows: int, stride: int | None = None) -> Rows:
        padded = -(-self.max_batch * rows // MAX_ROW_TILE) * MAX_ROW_TILE
        self.buffers[name] = Buffer(name, width if stride is None else stride, padded)
        self.versions[name] = 0
        return Rows(name, width, rows)

    def _rows(self, node: Node, name: str) -> Rows:
        """The value `name` as rows that lie somewhere: pending patches are computed now."""
        value = self.values.get(name)
        if isinstance(value, Patches):
            value = self.values[name] = self._embedded(value, None)
        if not isinstance(value, Rows):
            raise self.unmatched(node)
        self._current(node, value)
        return value

    def _current(self, node: Node, rows: Rows) -> None:
        if self.versions[rows.buffer] != rows.version:
            raise UnsupportedModelError(
                f"{self.graph.path}: node {node.name} reads a sum that a later residual has overwritten; use the "
                "onnxruntime backend"
            )

    def _check_width(self, node: Node, width: int) -> None:
        if width % WIDTH_MULTIPLE:
            raise UnsupportedModelError(
                f"{self.graph.path}: node {node.name}: {width} features; the engine's tower takes multiples of "
                f"{WIDTH_MULTIPLE}; use the onnxruntime backend"
            )


def _rows_of(source: Rows | Normed) -> Rows:
    return source.rows if isinstance(source, Normed) else source
