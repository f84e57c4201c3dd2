"""The CPU's primitive forms: the only place that knows MatMulNBits, GroupQueryAttention and their like.

Everything here adds nodes at the builder's current scope. Quantised weights are streamed to the data file; the plan
decides each tensor's scheme and is told what was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgevlm.spec import CacheEntry
from export.archspec import Activation
from export.graphs.builder import INT64_MAX, GraphBuilder
from export.graphs.ops import norms
from export.graphs.ops.storage import Storage, Table

MICROSOFT = "com.microsoft"
ACCURACY_LEVEL_INT8 = 4
"""MatMulNBits may round activations to int8: the fast kernels need it (design.md section 5)."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class CacheLengths:
    """Scalars that every attention of a decoder shares."""

    seqlens_k: str
    """(B,) int32: last valid index of each sequence, this call's tokens included."""
    total_length: str
    """() int32."""


@dataclass(frozen=True)
class _Positions:
    """What every attention of a decoder shares."""

    rows: str
    """(B, T) int64: the row of `tables` of each token."""
    tables: tuple[str, str]
    """Cosines and sines (B * T, E / 2) of this call's positions."""
    lengths: CacheLengths


class CpuOps:
    """Adds nodes to `builder`; `storage` reads, quantises and writes the weights."""

    def __init__(self, builder: GraphBuilder, storage: Storage) -> None:
        self.builder = builder
        self.storage = storage
        self._positions: _Positions | None = None
        self._n_rows = ""

    def linear(
        self, x: str, stem: str, in_features: int, out_features: int, bias: bool, row_scale: Float32 | None = None
    ) -> str:
        """x (..., K) → (..., N) by the tensors `stem`.weight (N, K) and `stem`.bias (N,).

        `row_scale` (N,) multiplies weight rows and bias before they are stored.
        """
        builder, storage = self.builder, self.storage
        name = f"{stem}.weight"
        bias_value = self._bias(stem, out_features, row_scale) if bias else ""
        scheme = storage.scheme_for(name)
        if scheme.kind in ("fp16", "fp32"):
            weight = storage.transposed(builder, name, (out_features, in_features), scheme, row_scale)
            if scheme.kind == "fp16":
                weight = builder.node("Cast", [weight], name="Cast", to=1)
            y = builder.node("MatMul", [x, weight], name="MatMul")
            return builder.node("Add", [y, bias_value], name="Add") if bias else y
        table = storage.rows(builder, name, (out_features, in_features), scheme, row_scale)
        return self._matmul_nbits(x, table, bias_value)

    def head(self, x: str, stem: str, vocab: int, hidden: int, table: Table | None) -> str:
        """x (B, K, D) → logits (B, K, vocab) by a table (vocab, D), which may be another graph's.

        Without `table`, `stem`.weight is written into this graph's own data file.
        Float tables are used as they lie, by a Gemm that transposes while it packs: neither disk nor graph holds a
        transposed copy.
        """
        builder = self.builder
        if table is None:
            self.storage.part = "head"
            name = f"{stem}.weight"
            table = self.storage.rows(builder, name, (vocab, hidden), self.storage.scheme_for(name))
        if table.scheme.kind in ("int4", "int8"):
            return self._matmul_nbits(x, table, "")
        values = builder.shared_weight(table.name, table.values)
        if table.scheme.kind == "fp16":
            values = builder.node("Cast", [values], name="Cast", to=1)
        flat = builder.node("Reshape", [x, builder.constant([-1, table.width])], name="Flatten")
        logits = builder.node("Gemm", [flat, values], name="MatMul", transB=1)
        batch = builder.node("Shape", [x], name="Shape", end=2)
        shape = builder.node("Concat", [batch, builder.constant([table.rows])], name="Concat", axis=0)
        return builder.node("Reshape", [logits, shape], name="Reshape")

    def embedding(self, ids: str, table: Table) -> str:
        """ids (B, T) int64 → (B, T, D) float32."""
        builder = self.builder
        if table.scheme.kind in ("int4", "int8"):
            width_bytes = table.width * table.scheme.bits // 8
            codes = builder.shared_weight(f"{table.name}.codes", table.values, (table.rows, width_bytes))
            inputs = [codes, ids, builder.shared_weight(f"{table.name}.scales", table.scales_stored())]
            if table.zero_points is not None:
                inputs.append(builder.shared_weight(f"{table.name}.zero_points", table.zero_points))
            return builder.node(
                "GatherBlockQuantized",
                inputs,
                name="Gather",
                domain=MICROSOFT,
                bits=table.scheme.bits,
                block_size=table.scheme.block,
                gather_axis=0,
                quantize_axis=1,
            )
        rows = builder.node("Gather", [builder.shared_weight(table.name, table.values), ids], name="Gather", axis=0)
        return builder.node("Cast", [rows], name="Cast", to=1) if table.scheme.kind == "fp16" else rows

    def rms_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        return norms.rms_norm(self.builder, x, self._vector(f"{stem}.weight", width), epsilon)

    def add_rms_norm(
        self, residual: str, x: str, stem: str, width: int, epsilon: float, keep_sum: bool = True
    ) -> tuple[str, str]:
        """(norm(residual + x), residual + x); without `keep_sum` the sum is not produced ('')."""
        normed, _, _, total = self.builder.nodes(
            "SkipSimplifiedLayerNormalization",
            [residual, x, self._vector(f"{stem}.weight", width)],
            4 if keep_sum else 1,
            name="SkipRMSNorm",
            domain=MICROSOFT,
            unused=(1, 2),
            epsilon=epsilon,
        ) + ([] if keep_sum else ["", "", ""])
        return normed, total

    def layer_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        weight, bias = (self._vector(f"{stem}.{part}", width) for part in ("weight", "bias"))
        return norms.layer_norm(self.builder, x, weight, bias, epsilon)

    def activation(self, x: str, act: Activation) -> str:
        builder = self.builder
        if act == "silu":
            return builder.node("QuickGelu", [x], name="SiLU", domain=MICROSOFT, alpha=1.0)
        if act == "quick_gelu":
            return builder.node("QuickGelu", [x], name="QuickGelu", domain=MICROSOFT, alpha=1.702)
        if act == "relu":
            return builder.node("Relu", [x], name="Relu")
        return builder.node("Gelu", [x], name="Gelu", approximate="tanh" if act == "gelu_tanh" else "none")

    def decoder_inputs(self, hidden: int, cache: tuple[CacheEntry, ...], frequencies: Float32) -> str:
        """Declares symbolic inputs. Returns inputs_embeds."""
        builder = self.builder
        embeds = builder.input("inputs_embeds", "float32", ("batch", "tokens", hidden))
        mask = builder.input("attention_mask", "int64", ("batch", "total_tokens"))
        positions = builder.input("position_ids", "int64", ("batch", "tokens"))
        self._n_rows = builder.input("num_logits_to_keep", "int64", ())
        for entry in cache:
            kv_heads, _, dim = entry.shape
            builder.input(entry.past_name, "float32", ("batch", kv_heads, "past_tokens", dim))
        with builder.scope("model", "lengths"):
            lengths = self._cache_lengths(mask)
        with builder.scope("model", "rope"):
            tables = self._turns(positions, builder.weight("rope.full.frequencies", frequencies))
            rows = self._row_numbers(positions)
        self._positions = _Positions(rows, tables, lengths)
        return embeds

    def _turns(self, positions: str, frequencies: str) -> tuple[str, str]:
        """Cosines and sines of this call's positions: no table grows with the context that a model is made for.

        The angle is rounded to float32, as transformers rounds it; its cosine is exact to the last bit.
        """
        builder = self.builder
        column = builder.node("Reshape", [positions, builder.constant([-1, 1])], name="Column")
        column = builder.node("Cast", [column], name="Positions", to=TensorProto.FLOAT)
        angles = builder.node("Mul", [column, frequencies], name="Angles")
        angles = builder.node("Cast", [angles], name="Wide", to=TensorProto.DOUBLE)
        cosines, sines = (builder.node(op, [angles], name=op) for op in ("Cos", "Sin"))
        return (
            builder.node("Cast", [cosines], name="Cosines", to=TensorProto.FLOAT),
            builder.node("Cast", [sines], name="Sines", to=TensorProto.FLOAT),
        )

    def _row_numbers(self, positions: str) -> str:
        """(B, T): 0, 1, 2..."""
        builder = self.builder
        count = builder.node("Size", [positions], name="Count")
        numbers = builder.node("Range", [builder.constant(0), count, builder.constant(1)], name="Numbers")
        shape = builder.node("Shape", [positions], name="Shape")
        return builder.node("Reshape", [numbers, shape], name="Rows")

    def _cache_lengths(self, attention_mask: str) -> CacheLengths:
        """Sums and length of attention_mask (B, P + T), as GroupQueryAttention wants them."""
        builder = self.builder
        n_valid = builder.node("ReduceSum", [attention_mask, builder.constant([1])], name="ReduceSum", keepdims=0)
        last = builder.node("Sub", [n_valid, builder.constant([1])], name="Sub")
        shape = builder.node("Shape", [attention_mask], name="Shape")
        total = builder.node("Gather", [shape, builder.constant(1)], name="Gather", axis=0)
        return CacheLengths(
            seqlens_k=builder.node("Cast", [last], name="seqlens_k", to=6),
            total_length=builder.node("Cast", [total], name="total_sequence_length", to=6),
        )

    def cached_attention(
        self, qkv: tuple[str, str, str], layer: int, heads: int, kv_heads: int, head_dim: int, scale: float | None
    ) -> str:
        """Causal attention over past and present, rotated by halves; present takes the place of past."""
        builder = self.builder
        query, key, value = qkv
        query, key = self._rope(query, "q_rotary"), self._rope(key, "k_rotary")
        lengths = self._shared().lengths
        past = (f"past_key_values.{layer}.key", f"past_key_values.{layer}.value")
        output, present_key, present_value = builder.nodes(
            "GroupQueryAttention",
            [query, key, value, *past, lengths.seqlens_k, lengths.total_length],
            3,
            name="GroupQueryAttention",
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=0,
        )
        builder.rename(present_key, f"present.{layer}.key")
        builder.rename(present_value, f"present.{layer}.value")
        return output

    def _rope(self, x: str, name: str) -> str:
        """x (B, T, heads * E) rotated by halves; the head count follows from the tables' width."""
        shared = self._shared()
        return self.builder.node(
            "RotaryEmbedding", [x, shared.rows, *shared.tables], name=name, domain=MICROSOFT, interleaved=0
        )

    def _shared(self) -> _Positions:
        if self._positions is None:
            raise ValueError(f"{self.builder.name}: attention was built before decoder_inputs")
        return self._positions

    def kept_rows(self, residual: str, x: str) -> tuple[str, str]:
        """The last num_logits_to_keep rows."""
        return self._last_rows(residual), self._last_rows(x)

    def decoder_outputs(self, logits: str, vocab: int, cache: tuple[CacheEntry, ...]) -> None:
        """Declares logits and the whole cache, old rows included."""
        self.builder.output("logits", logits, "float32", ("batch", "kept_tokens", vocab))
        for entry in cache:
            kv_heads, _, dim = entry.shape
            name = entry.present_name
            self.builder.output(name, name, "float32", ("batch", kv_heads, "total_tokens", dim))

    def full_attention(self, qkv: tuple[str, str, str], heads: int, head_dim: int, scale: float | None) -> str:
        """Attention without a mask: (C, V, width) each → (C, V, width)."""
        return self.builder.node(
            "MultiHeadAttention",
            list(qkv),
            name="MultiHeadAttention",
            domain=MICROSOFT,
            num_heads=heads,
            scale=scale,
        )

    def _last_rows(self, x: str) -> str:
        """x (B, T, D) → its last num_logits_to_keep (int64 scalar) rows; 0 keeps all of them."""
        builder = self.builder
        start = builder.node("Neg", [self._n_rows], name="Neg")
        start = builder.node("Unsqueeze", [start, builder.constant([0])], name="Unsqueeze")
        return builder.node("Slice", [x, start, builder.constant([INT64_MAX]), builder.constant([1])], name="LastRows")

    def patch_embedding(self, pixels: str, stem: str, width: int, patch: int, grid: int, bias: bool) -> str:
        """pixels (C, 3, S, S) → (C, grid * grid, width), patches row-major; weights stay float32."""
        builder = self.builder
        inputs = [pixels, self._float(f"{stem}.weight", (width, 3, patch, patch))]
        if bias:
            inputs.append(self._vector(f"{stem}.bias", width))
        patches = builder.node("Conv", inputs, name="Conv", kernel_shape=[patch, patch], strides=[patch, patch])
        flat = builder.node("Reshape", [patches, builder.constant([0, width, grid * grid])], name="Reshape")
        return builder.node("Transpose", [flat], name="Transpose", perm=[0, 2, 1])

    def prepend_row(self, x: str, name: str, row: Float32) -> str:
        """x (C, V, W) → (C, 1 + V, W) with `row` (1, 1, W) first in each tile."""
        builder = self.builder
        n_tiles = builder.node("Shape", [x], name="Shape", end=1)
        shape = builder.node("Concat", [n_tiles, builder.constant([1, row.shape[-1]])], name="ClsShape", axis=0)
        rows = builder.node("Expand", [builder.weight(name, row), shape], name="Expand")
        return builder.node("Concat", [rows, x], name="Concat", axis=1)

    def drop_first_row(self, x: str, n_rows: int) -> str:
        """x (C, 1 + n_rows, W) → (C, n_rows, W)."""
        start, end, axis = (self.builder.constant([value]) for value in (1, 1 + n_rows, 1))
        return self.builder.node("Slice", [x, start, end, axis], name="DropCLS")

    def space_to_depth(self, x: str, grid: int, width: int, factor: int, pad_to: int) -> str:
        """x (C, grid * grid, W) → (C, (pad_to / f)^2, f * f * W), channels in (dy, dx, channel) order.

        The grid is padded with zeros at its right and bottom to `pad_to`.
        """
        builder = self.builder
        x = builder.node("Reshape", [x, builder.constant([0, grid, grid, width])], name="Grid")
        if pad_to != grid:
            extra = pad_to - grid
            x = builder.node("Pad", [x, builder.constant([0, 0, 0, 0, 0, extra, extra, 0])], name="Pad")
        side = pad_to // factor
        x = builder.node("Reshape", [x, builder.constant([0, side, factor, side, factor, width])], name="Blocks")
        x = builder.node("Transpose", [x], name="Transpose", perm=[0, 1, 3, 2, 4, 5])
        shape = builder.constant([0, side * side, factor * factor * width])
        return builder.node("Reshape", [x, shape], name="Merge")

    def _matmul_nbits(self, x: str, table: Table, bias: str) -> str:
        builder, scheme = self.builder, table.scheme
        blocks = (table.rows, table.n_blocks, scheme.block * scheme.bits // 8)
        inputs: Sequence[str] = [
            x,
            builder.shared_weight(f"{table.name}.codes", table.values, blocks),
            builder.shared_weight(f"{table.name}.scales", table.scales_stored()),
            "" if table.zero_points is None else builder.shared_weight(f"{table.name}.zero_points", table.zero_points),
            "",
            bias,
        ]
        while not inputs[-1]:
            inputs = inputs[:-1]
        return builder.node(
            "MatMulNBits",
            inputs,
            name="MatMul",
            domain=MICROSOFT,
            N=table.rows,
            K=table.width,
            bits=scheme.bits,
            block_size=scheme.block,
            accuracy_level=ACCURACY_LEVEL_INT8,
        )

    def _bias(self, stem: str, size: int, row_scale: Float32 | None) -> str:
        values = self.storage.read(f"{stem}.bias", (size,))
        return self.builder.weight(f"{stem}.bias", values if row_scale is None else values * row_scale)

    def _vector(self, name: str, size: int) -> str:
        return self._float(name, (size,))

    def _float(self, name: str, shape: tuple[int, ...]) -> str:
        return self.builder.weight(name, self.storage.read(name, shape))
