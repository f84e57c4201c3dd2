"""A package's decoder graph to the engine's call list: a table of node patterns; what matches none is an error.

Nodes are read in order. A linear is not called where it stands but where its result is used: three that feed one
attention become one product, a gated pair becomes one product with SwiGLU in its epilogue, one that feeds a residual
sum adds to it in place, and a norm is folded into the quantisation of the rows that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import UnsupportedModelError
from tvm_schedules.key_ranges import Float32, KeyRange, level, row_factors
from tvm_schedules.matrices import Matrix, interleave, matrix_from_blocks, merge, read_matrix, store
from tvm_schedules.onnx_graph import Node, OnnxGraph
from tvm_schedules.patterns import PatternReader
from tvm_schedules.plan import MAX_LOGIT_ROWS, NONE, Buffer, Op, WeightsFile

HEAD_DIMS = (64, 128)
CHUNK_TOKENS = 128


@dataclass(frozen=True)
class Rows:
    """Values that lie in a buffer, `width` floats a row; `last` when only the rows of the logits are meant."""

    buffer: str
    width: int
    last: bool = False


@dataclass(frozen=True)
class Normed:
    """RMSNorm of a buffer, not yet computed."""

    rows: Rows
    gamma: str
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """A product that is not yet called."""

    node: Node
    source: Rows | Normed
    last: bool = False


@dataclass(frozen=True)
class Turn:
    """This call's positions times an initialiser of frequencies, and then the function of it that is `op`."""

    frequencies: str
    op: str = ""


@dataclass(frozen=True)
class Rotated:
    """RoPE of a linear's result: by frequencies, or by two tables of all positions (packages made before)."""

    linear: Linear
    frequencies: str = ""
    cos: str = ""
    sin: str = ""


@dataclass(frozen=True)
class Silu:
    """silu of a linear's result."""

    linear: Linear


@dataclass(frozen=True)
class Control:
    """Lengths and masks: the engine counts tokens itself."""


@dataclass(frozen=True)
class RowNumbers(Control):
    """0, 1, 2... of this call's tokens."""


@dataclass(frozen=True)
class Lowered:
    """The call list of a decoder."""

    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    graph_input: str
    graph_output: str
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    """Positions that the graph has tables for; None where it computes them."""
    n_layers: int


def lower_decoder(
    decoder: OnnxGraph, embed: OnnxGraph, weights: WeightsFile, key_ranges: Sequence[KeyRange]
) -> Lowered:
    """Lowers the graphs `decoder_model_merged` and `embed_tokens`.

    `key_ranges` has one entry per layer: what is taken from its keys, and what they are divided by.
    Raises UnsupportedModelError naming the first node without a pattern.
    """
    return _Lowering(decoder, weights, key_ranges).run(embed)


class _Lowering(PatternReader):
    def __init__(self, graph: OnnxGraph, weights: WeightsFile, key_ranges: Sequence[KeyRange]) -> None:
        super().__init__(graph, weights)
        self.key_ranges = key_ranges
        self.values |= dict.fromkeys(("attention_mask", "num_logits_to_keep", "position_ids"), Control())
        self.layer = 0
        self.max_positions: int | None = None
        self.handlers = {
            "SimplifiedLayerNormalization": self._norm,
            "SkipSimplifiedLayerNormalization": self._add_norm,
            "MatMulNBits": self._linear,
            "RotaryEmbedding": self._rotary,
            "GroupQueryAttention": self._attention,
            "QuickGelu": self._silu,
            "Mul": self._product,
            "Cast": self._cast,
            "Cos": self._turn,
            "Sin": self._turn,
            "Range": self._range,
            "Slice": self._last_rows,
            **dict.fromkeys(
                ("ReduceSum", "Sub", "Shape", "Gather", "Neg", "Unsqueeze", "Size", "Reshape"), self._control
            ),
        }

    def run(self, embed: OnnxGraph) -> Lowered:
        hidden_size, vocab_size = self._embedding(embed)
        self.values["inputs_embeds"] = Rows("x", hidden_size)
        self.read_nodes()
        logits = self.values.get("logits")
        if not isinstance(logits, Linear):
            raise UnsupportedModelError(f"{self.graph.path}: the logits are not the result of a MatMulNBits")
        head = self._shared_head(logits.node)
        self._quantise(logits.source, head["k"], head["group"])
        self._gemm(head, logits.node, "logits", MAX_LOGIT_ROWS, frozenset({"last_rows"}))
        return Lowered(
            tuple(self.ops), tuple(self.buffers.values()), "x", "logits", hidden_size, vocab_size, self.max_positions,
            self.layer,
        )

    # ---- patterns

    def _norm(self, node: Node) -> None:
        rows = self.get(node, 0, Rows)
        self.values[node.outputs[0]] = Normed(rows, node.inputs[1], float(node.attributes["epsilon"]))

    def _add_norm(self, node: Node) -> None:
        residual, linear = self.get(node, 0, Rows), self.get(node, 1, Linear)
        matrix = self._matrix(linear)
        self._quantise(linear.source, matrix["k"], matrix["group"])
        self._gemm(matrix, linear.node, residual.buffer, CHUNK_TOKENS, frozenset({"accumulate"}))
        total = Rows(residual.buffer, residual.width, linear.last)
        self.values[node.outputs[0]] = Normed(total, node.inputs[2], float(node.attributes["epsilon"]))
        if len(node.outputs) > 3 and node.outputs[3]:
            self.values[node.outputs[3]] = total

    def _linear(self, node: Node) -> None:
        source = self.values.get(node.inputs[0])
        if not isinstance(source, (Rows, Normed)):
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Linear(node, source)

    def _rotary(self, node: Node) -> None:
        linear = self.get(node, 0, Linear)
        if node.attributes.get("interleaved", 0):
            raise self.unmatched(node)
        cos, sin = (self.values.get(name) for name in node.inputs[2:4])
        if isinstance(cos, Turn) and isinstance(sin, Turn):
            self.get(node, 1, RowNumbers)
            if (cos.op, sin.op) != ("Cos", "Sin") or cos.frequencies != sin.frequencies:
                raise self.unmatched(node)
            self.values[node.outputs[0]] = Rotated(linear, cos.frequencies)
        elif self.graph.has(node.inputs[2]) and self.graph.has(node.inputs[3]):
            self.values[node.outputs[0]] = Rotated(linear, "", node.inputs[2], node.inputs[3])
        else:
            raise self.unmatched(node)

    def _attention(self, node: Node) -> None:
        query, key, value = self.get(node, 0, Rotated), self.get(node, 1, Rotated), self.get(node, 2, Linear)
        linears = (query.linear, key.linear, value)
        if len({linear.source for linear in linears}) != 1 or node.attributes.get("softcap", 0.0):
            raise self.unmatched(node)
        heads, kv_heads = int(node.attributes["num_heads"]), int(node.attributes["kv_num_heads"])
        head_dim = int(query.linear.node.attributes["N"]) // heads
        if query.frequencies:
            half = len(self.graph.array(query.frequencies))
            tables: dict[str, Any] = {"cos": self.table(query.frequencies)}
        else:
            self.max_positions, half = self.graph.array(query.cos).shape
            tables = {"cos": self.table(query.cos), "sin": self.table(query.sin)}
        if head_dim not in HEAD_DIMS or 2 * half != head_dim:
            raise UnsupportedModelError(
                f"node {node.name}: heads of {head_dim} channels, {2 * half} of them rotated; the engine has "
                f"attention for {HEAD_DIMS}, all rotated"
            )
        projections = [read_matrix(self.graph, linear.node) for linear in linears]
        keys, *levelled = level(self.key_ranges[self.layer], projections[0], projections[1])
        matrix = store(self.weights, merge([*levelled, projections[2]]))
        factors = row_factors(keys, heads)
        matrix["bias"] = self._bias([linear.node for linear in linears], matrix["n"], factors)
        self._quantise(query.linear.source, matrix["k"], matrix["group"])
        self._gemm(matrix, node, "qkv", CHUNK_TOKENS, frozenset())
        shared: dict[str, Any] = {"n": matrix["n"], "layer": self.layer}
        shared |= {"head_dim": head_dim, "heads": heads, "kv_heads": kv_heads}
        centre = self.weights.add(keys.centre / keys.factors)
        scale = float(node.attributes.get("scale") or head_dim**-0.5)
        self.ops.append(Op("append", value=scale, source="qkv", centre=centre, **tables, **shared))
        window = max(0, int(node.attributes.get("local_window_size", -1)))
        self._buffer("attended", heads * head_dim, CHUNK_TOKENS)
        self.ops.append(Op("attend", window=window, source="qkv", target="attended", **shared))
        self.values[node.outputs[0]] = Rows("attended", heads * head_dim)
        self.layer += 1

    def _silu(self, node: Node) -> None:
        if abs(float(node.attributes["alpha"]) - 1.0) > 1e-6:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Silu(self.get(node, 0, Linear))

    def _product(self, node: Node) -> None:
        """Positions times frequencies, or a gate times what it gates."""
        if isinstance(self.values.get(node.inputs[0]), Control) and self.graph.has(node.inputs[1]):
            self.values[node.outputs[0]] = Turn(node.inputs[1])
        else:
            self._gated(node)

    def _turn(self, node: Node) -> None:
        angles = self.get(node, 0, Turn)
        if angles.op:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = Turn(angles.frequencies, node.op_type)

    def _cast(self, node: Node) -> None:
        value = self.values.get(node.inputs[0])
        if isinstance(value, Turn):
            self.values[node.outputs[0]] = value
        else:
            self._control(node)

    def _range(self, node: Node) -> None:
        self._control(node)
        start, step = node.inputs[0], node.inputs[2]
        if not self.graph.has(start) or self.graph.array(start) != 0 or self.graph.array(step) != 1:
            raise self.unmatched(node)
        self.values[node.outputs[0]] = RowNumbers()

    def _gated(self, node: Node) -> None:
        gate, up = self.get(node, 0, Silu).linear, self.get(node, 1, Linear)
        if gate.source != up.source or gate.node.input(5) or up.node.input(5):
            raise self.unmatched(node)
        matrix = store(self.weights, interleave(read_matrix(self.graph, gate.node), read_matrix(self.graph, up.node)))
        self._quantise(gate.source, matrix["k"], matrix["group"])
        self._gemm(matrix, node, "gated", CHUNK_TOKENS, frozenset({"swiglu"}))
        self.values[node.outputs[0]] = Rows("gated", int(gate.node.attributes["N"]))

    def _last_rows(self, node: Node) -> None:
        value = self.values.get(node.inputs[0])
        if isinstance(value, Rows):
            self.values[node.outputs[0]] = Rows(value.buffer, value.width, last=True)
        elif isinstance(value, Linear):
            self.values[node.outputs[0]] = Linear(value.node, value.source, last=True)
        else:
            raise self.unmatched(node)

    def _control(self, node: Node) -> None:
        for name in node.inputs:
            if name and not self.graph.has(name) and not isinstance(self.values.get(name), Control):
                raise self.unmatched(node)
        numbers = node.op_type == "Reshape" and isinstance(self.values.get(node.inputs[0]), RowNumbers)
        for name in node.outputs:
            self.values[name] = RowNumbers() if numbers else Control()

    # ---- calls

    def _embedding(self, embed: OnnxGraph) -> tuple[int, int]:
        gather = next((node for node in embed.nodes if node.op_type == "GatherBlockQuantized"), None)
        if gather is None or len(embed.nodes) != 1:
            names = ", ".join(node.op_type for node in embed.nodes)
            raise UnsupportedModelError(
                f"{embed.path}: the engine takes a quantised embedding table, found {names}; "
                "export with a w4 or w8 scheme"
            )
        bits, block = int(gather.attributes["bits"]), int(gather.attributes["block_size"])
        packed, scales = embed.array(gather.inputs[0]), embed.array(gather.inputs[2])
        vocab, hidden = packed.shape[0], packed.shape[1] * 8 // bits
        zeros = embed.array(gather.inputs[3]) if gather.input(3) else None
        table = matrix_from_blocks("embed_tokens", packed, scales, zeros, vocab, hidden, bits, block)
        self.embedding = (table, store(self.weights, table))
        flags = frozenset({"zero_point"}) if zeros is not None else frozenset[str]()
        self._buffer("x", hidden, CHUNK_TOKENS)
        self.ops.append(Op("embed", flags, target="x", **self.embedding[1]))
        return hidden, vocab

    def _shared_head(self, node: Node) -> dict[str, Any]:
        """The head's matrix: the embedding's bytes when the codes are the same, its own otherwise."""
        head = read_matrix(self.graph, node)
        table, stored = self.embedding
        if _same(head, table):
            return {**stored, "bias": NONE}
        return {**store(self.weights, head), "bias": self._bias([node], -(-head.shape[0] // 64) * 64)}

    def _matrix(self, linear: Linear) -> dict[str, Any]:
        matrix = store(self.weights, read_matrix(self.graph, linear.node))
        matrix["bias"] = self._bias([linear.node], matrix["n"])
        return matrix

    def _quantise(self, source: Rows | Normed, k: int, group: int) -> None:
        rows = source.rows if isinstance(source, Normed) else source
        if rows.width != k or k % 64:
            raise UnsupportedModelError(
                f"{self.graph.path}: {rows.width} features in {rows.buffer!r}; the engine takes multiples of 64"
            )
        flags = {"last_rows"} if rows.last else set()
        if isinstance(source, Normed):
            gamma = self.table(source.gamma)
            op = Op("quantise", frozenset(flags | {"norm_rms"}), k=k, group=group, value=source.epsilon,
                    source=rows.buffer, weight=gamma)
        else:
            op = Op("quantise", frozenset(flags), k=k, group=group, source=rows.buffer)
        self.ops.append(op)

    def _gemm(self, matrix: dict[str, Any], node: Node, target: str, rows: int, flags: frozenset[str]) -> None:
        width = matrix["n"] // 2 if "swiglu" in flags else matrix["n"]
        self._buffer(target, width, rows)
        if self.buffers[target].width != width:
            raise UnsupportedModelError(
                f"node {node.name}: {width} features are added to {self.buffers[target].width}; the engine takes "
                "multiples of 64"
            )
        if matrix["zeros"] != NONE:
            flags |= {"zero_point"}
        self.ops.append(Op("gemm", flags, target=target, **matrix))

    def _bias(self, nodes: Sequence[Node], n: int, factors: Float32 | None = None) -> int:
        """Stores the biases of stacked linears, the first ones multiplied by `factors`."""
        if not any(node.input(5) for node in nodes):
            return NONE
        bias = self.stacked_bias(nodes, n)
        if factors is not None:
            bias[: len(factors)] *= factors
        return self.weights.add(bias)

    def _buffer(self, name: str, width: int, rows: int) -> None:
        self.buffers.setdefault(name, Buffer(name, width, rows))


def _same(first: Matrix, second: Matrix) -> bool:
    return (
        first.bits == second.bits
        and first.group == second.group
        and np.array_equal(first.scales, second.scales)
        and np.array_equal(first.codes, second.codes)
    )
