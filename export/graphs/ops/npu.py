"""An NPU's primitive forms: fixed shapes, attention in plain operators, new keys and values as the only cache output.

Every form here is one that Qualcomm's HTP runs with uint16 activations (docs/npu.md lists what it refuses): linears as
MatMulNBits on the package's own codes, RoPE by halves, RMSNorm as one operator, no tensor above rank 5. Masked scores
become their row's minimum minus 20 instead of minus infinity, so that a 16-bit range is spent on scores. The host keeps
the cache: keys lie transposed, (G, E, P), so that the product with the queries needs no copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.spec import CacheEntry
from export.archspec import Activation
from export.graphs.builder import INLINE_BELOW_BYTES, GraphBuilder, StoredBytes
from export.graphs.ops import norms
from export.graphs.ops.storage import Table
from export.graphs.positions import rope_tables
from export.npu.weights import PackageWeights, QuantisedWeight

MICROSOFT = "com.microsoft"
Float32 = NDArray[np.float32]

QUICK_GELU_ALPHA = 1.702
MASKED_BELOW_MINIMUM = 20.0
"""exp(-20) = 2e-9 of the smallest visible weight. Source: executorch, static attention mask (lowbit.md section 5)."""


@dataclass(frozen=True)
class DecoderShape:
    """The fixed sizes of one decoder graph."""

    tokens: int
    """T: tokens of one call."""
    past: int
    """P: rows of the cache that the host hands in, used or not."""
    all_logits: bool = False
    """Logits of every row instead of one, for calibration: a range must have seen more than last rows."""


@dataclass(frozen=True)
class _Shared:
    cosines: str
    sines: str
    mask: str


class NpuOps:
    """Adds nodes to `builder`. Values keep the CPU forms' shapes: (1, T, D) in the decoder, (C, V, W) in the tower."""

    def __init__(
        self,
        builder: GraphBuilder,
        storage: PackageWeights,
        *,
        tiles: int = 1,
        decoder: DecoderShape | None = None,
        key_centres: list[Float32] | None = None,
        stored: dict[str, StoredBytes] | None = None,
    ) -> None:
        """`key_centres`, per layer (G, E), are subtracted from the rotated keys: softmax does not see a constant.

        `stored` holds the weights that graphs of one directory have written so far; they are shared by name.
        """
        self.builder = builder
        self.storage = storage
        self.tiles = tiles
        self.decoder = decoder
        self.key_centres = key_centres
        self.stored = {} if stored is None else stored
        self._shared: _Shared | None = None
        self._last_row = ""

    # ---- linears

    def linear(
        self, x: str, stem: str, in_features: int, out_features: int, bias: bool, row_scale: Float32 | None = None
    ) -> str:
        """x (B, T, K) → (B, T, N); codes where the package stores codes, else a Gemm that is quantised later."""
        if row_scale is not None:
            raise ValueError(f"{stem}: a package's weights have their row scale folded in")
        quantised = self.storage.quantised(f"{stem}.weight", (out_features, in_features))
        bias_value = self._vector(f"{stem}.bias", out_features) if bias else ""
        if quantised is None:
            return self._gemm(x, stem, in_features, out_features, bias_value)
        y = self._matmul_nbits(x, quantised)
        return self.builder.node("Add", [y, bias_value], name="Bias") if bias else y

    def head(self, x: str, stem: str, vocab: int, hidden: int, table: Table | None) -> str:
        """x (1, 1, D) → logits (1, 1, vocab) by `stem`.weight, the embedding's own codes where the head is tied."""
        quantised = self.storage.quantised(f"{stem}.weight", (vocab, hidden))
        return self._gemm(x, stem, hidden, vocab, "") if quantised is None else self._matmul_nbits(x, quantised)

    def _matmul_nbits(self, x: str, weight: QuantisedWeight) -> str:
        builder = self.builder
        inputs = [x, self._weight(f"{weight.name}.codes", weight.codes)]
        inputs.append(self._weight(f"{weight.name}.scales", weight.scales))
        if weight.zero_points is not None:
            inputs.append(self._weight(f"{weight.name}.zero_points", weight.zero_points))
        return builder.node(
            "MatMulNBits",
            inputs,
            name="MatMul",
            domain=MICROSOFT,
            N=weight.rows,
            K=weight.width,
            bits=weight.bits,
            block_size=weight.block,
        )

    def _gemm(self, x: str, stem: str, in_features: int, out_features: int, bias: str) -> str:
        builder = self.builder
        name = f"{stem}.weight"
        weight = self._weight(name, self.storage.float_rows(name, (out_features, in_features)))
        flat = builder.node("Reshape", [x, builder.constant([-1, in_features])], name="Flatten")
        y = builder.node("Gemm", [flat, weight, *([bias] if bias else [])], name="MatMul", transB=1)
        return builder.node("Reshape", [y, builder.constant([self.tiles, -1, out_features])], name="Unflatten")

    # ---- norms and activations

    def rms_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        return norms.rms_norm(self.builder, x, self._vector(f"{stem}.weight", width), epsilon)

    def add_rms_norm(
        self, residual: str, x: str, stem: str, width: int, epsilon: float, keep_sum: bool = True
    ) -> tuple[str, str]:
        """(norm(residual + x), residual + x)."""
        total = self.builder.node("Add", [residual, x], name="Add")
        return self.rms_norm(total, stem, width, epsilon), total

    def layer_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        weight, bias = (self._vector(f"{stem}.{part}", width) for part in ("weight", "bias"))
        return norms.layer_norm(self.builder, x, weight, bias, epsilon)

    def activation(self, x: str, act: Activation) -> str:
        builder = self.builder
        if act in ("silu", "quick_gelu"):
            argument = x
            if act == "quick_gelu":
                argument = builder.node("Mul", [x, self._scalar(QUICK_GELU_ALPHA)], name="Alpha")
            return builder.node("Mul", [x, builder.node("Sigmoid", [argument], name="Sigmoid")], name="Gate")
        if act == "relu":
            return builder.node("Relu", [x], name="Relu")
        return builder.node("Gelu", [x], name="Gelu", approximate="tanh" if act == "gelu_tanh" else "none")

    # ---- the decoder

    def decoder_inputs(self, hidden: int, cache: tuple[CacheEntry, ...], frequencies: Float32) -> str:
        """Declares fixed inputs; RoPE's tables have the positions that the cache can hold.

        `attention_mask` (1, 1, T, P + T) is true where a query sees a key: first the cache, then this call's tokens.
        `last_row` (1,), of a graph for more than one token, is the row that logits are wanted of.
        """
        builder, shape = self.builder, self._decoder_shape()
        embeds = builder.input("inputs_embeds", "float32", (1, shape.tokens, hidden))
        mask = builder.input("attention_mask", "bool", (1, 1, shape.tokens, shape.past + shape.tokens))
        positions = builder.input("position_ids", "int32", (shape.tokens,))
        if shape.tokens > 1 and not shape.all_logits:
            self._last_row = builder.input("last_row", "int32", (1,))
        for entry in cache:
            builder.input(entry.past_name, "float32", cache_shape(entry, shape.past))
        rows = []
        with builder.scope("model", "rope"):
            for name, table in zip(("cos", "sin"), rope_tables(frequencies, shape.past), strict=True):
                weight = self._weight(f"rope.full.{name}", table[None, None])
                rows.append(builder.node("Gather", [weight, positions], name=name, axis=2))
        self._shared = _Shared(rows[0], rows[1], mask)
        return embeds

    def cached_attention(
        self, qkv: tuple[str, str, str], layer: int, heads: int, kv_heads: int, head_dim: int, scale: float | None
    ) -> str:
        """Causal attention over the cache and this call's tokens; `present.{layer}.*` hold the new rows only."""
        builder, shared = self.builder, self._shared_inputs()
        query = self._heads_first(qkv[0], heads, head_dim, "q_heads")
        key = self._heads_first(qkv[1], kv_heads, head_dim, "k_heads")
        value = self._heads_first(qkv[2], kv_heads, head_dim, "v_heads")
        with builder.scope("q_rotary"):
            query = self._rope(query, head_dim, shared)
        with builder.scope("k_rotary"):
            key = self._rope(key, head_dim, shared)
        if self.key_centres is not None:
            centre = self._weight(f"centre.{layer}.key", self.key_centres[layer][None, :, None])
            key = builder.node("Sub", [key, centre], name="CentreKey")
        key = builder.node("Transpose", [key], name="present_key", perm=[0, 1, 3, 2])
        builder.rename(key, f"present.{layer}.key")
        builder.rename(value, f"present.{layer}.value")
        keys = builder.node("Concat", [f"past_key_values.{layer}.key", f"present.{layer}.key"], name="keys", axis=3)
        values = builder.node(
            "Concat", [f"past_key_values.{layer}.value", f"present.{layer}.value"], name="values", axis=2
        )
        query = builder.node("Mul", [query, self._scalar(_scale(scale, head_dim))], name="Scale")
        mixed = self.masked_heads(query, keys, values, heads, kv_heads, head_dim)
        return self._heads_last(mixed, heads * head_dim)

    def masked_heads(self, query: str, keys: str, values: str, heads: int, kv_heads: int, head_dim: int) -> str:
        """query (1, H, T, E), keys (1, G, E, S), values (1, G, S, E) → (1, H, T, E), all heads in one product."""
        builder, shape, shared = self.builder, self._decoder_shape(), self._shared_inputs()
        n_tokens, group, total = shape.tokens, heads // kv_heads, shape.past + shape.tokens
        # a group's query heads are rows of one product, so that no key is repeated
        rows = builder.constant([1, kv_heads, group * n_tokens, head_dim])
        query = builder.node("Reshape", [query, rows], name="q_rows")
        scores = builder.node("MatMul", [query, keys], name="Scores")
        scores = builder.node("Reshape", [scores, builder.constant([kv_heads, group, n_tokens, total])], name="s_heads")
        lowest = builder.node("ReduceMin", [scores, builder.constant([-1])], name="RowMinimum", keepdims=1)
        lowest = builder.node("Add", [lowest, self._scalar(-MASKED_BELOW_MINIMUM)], name="Masked")
        scores = builder.node("Where", [shared.mask, scores, lowest], name="Mask")
        weights = builder.node("Softmax", [scores], name="Softmax", axis=-1)
        weights = builder.node("Reshape", [weights, builder.constant([1, kv_heads, -1, total])], name="w_rows")
        mixed = builder.node("MatMul", [weights, values], name="Mix")
        return builder.node("Reshape", [mixed, builder.constant([1, heads, n_tokens, head_dim])], name="o_heads")

    def kept_rows(self, residual: str, x: str) -> tuple[str, str]:
        """The row named by `last_row`; a graph for one token has only that."""
        if not self._last_row:
            return residual, x
        return self._one_row(residual), self._one_row(x)

    def decoder_outputs(self, logits: str, vocab: int, cache: tuple[CacheEntry, ...]) -> None:
        """Declares logits (1, 1, vocab) and each entry's new rows."""
        shape = self._decoder_shape()
        n_rows = shape.tokens if shape.all_logits else 1
        self.builder.output("logits", logits, "float32", (1, n_rows, vocab))
        for entry in cache:
            name, n_tokens = entry.present_name, shape.tokens
            self.builder.output(name, name, "float32", cache_shape(entry, n_tokens))

    # ---- the tower

    def full_attention(self, qkv: tuple[str, str, str], heads: int, head_dim: int, scale: float | None) -> str:
        """Attention without a mask: (C, V, width) each → (C, V, width)."""
        builder = self.builder
        query, key, value = (
            self._heads_first(x, heads, head_dim, f"{name}_heads") for name, x in zip("qkv", qkv, strict=True)
        )
        query = builder.node("Mul", [query, self._scalar(_scale(scale, head_dim))], name="Scale")
        key = builder.node("Transpose", [key], name="keys", perm=[0, 1, 3, 2])
        return self._heads_last(self.plain_heads(query, key, value, heads), heads * head_dim)

    def plain_heads(self, query: str, keys: str, values: str, heads: int) -> str:
        """query (C, H, V, E), keys (C, H, E, V), values (C, H, V, E) → (C, H, V, E), all heads in one product."""
        scores = self.builder.node("MatMul", [query, keys], name="Scores")
        weights = self.builder.node("Softmax", [scores], name="Softmax", axis=-1)
        return self.builder.node("MatMul", [weights, values], name="Mix")

    def patch_embedding(self, pixels: str, stem: str, width: int, patch: int, grid: int, bias: bool) -> str:
        """pixels (C, 3, S, S) → (C, grid * grid, width), patches row-major."""
        builder = self.builder
        weight = self.storage.read(f"{stem}.weight", (width, 3, patch, patch))
        inputs = [pixels, self._weight(f"{stem}.weight", weight)]
        if bias:
            inputs.append(self._vector(f"{stem}.bias", width))
        patches = builder.node("Conv", inputs, name="Conv", kernel_shape=[patch, patch], strides=[patch, patch])
        flat = builder.node("Reshape", [patches, builder.constant([self.tiles, width, grid * grid])], name="Reshape")
        return builder.node("Transpose", [flat], name="Transpose", perm=[0, 2, 1])

    def prepend_row(self, x: str, name: str, row: Float32) -> str:
        """x (C, V, W) → (C, 1 + V, W)."""
        rows = np.repeat(row, self.tiles, axis=0)
        return self.builder.node("Concat", [self._weight(f"{name}.{self.tiles}", rows), x], name="Concat", axis=1)

    def drop_first_row(self, x: str, n_rows: int) -> str:
        """x (C, 1 + n_rows, W) → (C, n_rows, W)."""
        return self._slice(x, 1, 1 + n_rows, 1, "DropCLS")

    def space_to_depth(self, x: str, grid: int, width: int, factor: int, pad_to: int) -> str:
        """x (C, grid * grid, W) → (C, (pad_to / f)^2, f * f * W): (dx, channel) are neighbours, so only dy moves."""
        builder, tiles = self.builder, self.tiles
        x = builder.node("Reshape", [x, builder.constant([tiles, grid, grid, width])], name="Grid")
        if pad_to != grid:
            extra = pad_to - grid
            x = builder.node("Pad", [x, builder.constant([0, 0, 0, 0, 0, extra, extra, 0])], name="Pad")
        side = pad_to // factor
        blocks = builder.constant([tiles * side, factor, side, factor * width])
        x = builder.node("Reshape", [x, blocks], name="Blocks")
        x = builder.node("Transpose", [x], name="Transpose", perm=[0, 2, 1, 3])
        shape = builder.constant([tiles, side * side, factor * factor * width])
        return builder.node("Reshape", [x, shape], name="Merge")

    # ---- parts

    def _heads_first(self, x: str, heads: int, head_dim: int, name: str) -> str:
        """(B, T, H * E) → (B, H, T, E)."""
        builder = self.builder
        split = builder.node("Reshape", [x, builder.constant([self.tiles, -1, heads, head_dim])], name=name)
        return builder.node("Transpose", [split], name=f"{name}_first", perm=[0, 2, 1, 3])

    def _heads_last(self, x: str, width: int) -> str:
        """(B, H, T, E) → (B, T, H * E)."""
        builder = self.builder
        x = builder.node("Transpose", [x], name="heads_last", perm=[0, 2, 1, 3])
        return builder.node("Reshape", [x, builder.constant([self.tiles, -1, width])], name="heads_joined")

    def _rope(self, x: str, head_dim: int, shared: _Shared) -> str:
        """(a, b) → (a cos - b sin, b cos + a sin), a and b the halves of a head."""
        builder, half = self.builder, head_dim // 2
        first = self._slice(x, 0, half, 3, "FirstHalf")
        second = self._slice(x, half, head_dim, 3, "SecondHalf")

        def times(value: str, table: str, name: str) -> str:
            return builder.node("Mul", [value, table], name=name)

        minus = [times(first, shared.cosines, "FirstCos"), times(second, shared.sines, "SecondSin")]
        plus = [times(second, shared.cosines, "SecondCos"), times(first, shared.sines, "FirstSin")]
        turned = [builder.node("Sub", minus, name="Sub"), builder.node("Add", plus, name="Add")]
        return builder.node("Concat", turned, name="Concat", axis=3)

    def _slice(self, x: str, start: int, end: int, axis: int, name: str) -> str:
        bounds = [self.builder.constant([value]) for value in (start, end, axis)]
        return self.builder.node("Slice", [x, *bounds], name=name)

    def _one_row(self, x: str) -> str:
        return self.builder.node("Gather", [x, self._last_row], name="LastRow", axis=1)

    def _weight(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initialiser; its bytes are written by the first graph that needs them."""
        if array.nbytes < INLINE_BELOW_BYTES:
            return self.builder.weight(name, array)
        if name not in self.stored:
            self.stored[name] = self.builder.store(array.dtype.name, array.shape, [array])
        return self.builder.shared_weight(name, self.stored[name])

    def _vector(self, name: str, size: int) -> str:
        return self._weight(name, self.storage.read(name, (size,)))

    def _scalar(self, value: float) -> str:
        return self.builder.constant(np.array(value, np.float32))

    def _decoder_shape(self) -> DecoderShape:
        if self.decoder is None:
            raise ValueError(f"{self.builder.name} is no decoder graph")
        return self.decoder

    def _shared_inputs(self) -> _Shared:
        if self._shared is None:
            raise ValueError(f"{self.builder.name}: attention was built before decoder_inputs")
        return self._shared


def cache_shape(entry: CacheEntry, n_rows: int) -> tuple[int, int, int, int]:
    """Shape of `n_rows` of a cache entry in a graph: values as the CPU keeps them, keys transposed."""
    kv_heads, _, dim = entry.shape
    if entry.kind == "key":
        return (1, int(kv_heads), int(dim), n_rows)
    return (1, int(kv_heads), n_rows, int(dim))


def _scale(scale: float | None, head_dim: int) -> float:
    return 1.0 / math.sqrt(head_dim) if scale is None else scale
