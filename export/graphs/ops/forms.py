"""What the builders ask of a target: one method per primitive, each target's own nodes behind it.

`export/graphs/ops/cpu.py` writes symbolic graphs for onnxruntime and the native engine, `npu.py` fixed ones for an NPU.
A builder knows neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.spec import CacheEntry
from export.archspec import Activation
from export.graphs.builder import GraphBuilder
from export.graphs.ops.storage import Table

Float32 = NDArray[np.float32]


class Weights(Protocol):
    """Where a builder's values come from: a checkpoint, or a package that was exported before."""

    part: str

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        """Returns a tensor that stays float32."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape."""

    def row_scale(self, name: str, shape: tuple[int, ...]) -> Float32 | None:
        """Returns the factors to fold into a linear's rows; None where they are folded already."""

    def derived(self, name: str, shape: tuple[int, ...], compute: Callable[[], Float32]) -> Float32:
        """Returns a value that export computes from the checkpoint and stores as `name`."""


class Ops(Protocol):
    """Adds nodes to `builder` at its current scope; values are named by strings."""

    @property
    def builder(self) -> GraphBuilder: ...

    @property
    def storage(self) -> Weights: ...

    def linear(
        self, x: str, stem: str, in_features: int, out_features: int, bias: bool, row_scale: Float32 | None = None
    ) -> str:
        """x (..., K) → (..., N) by `stem`.weight (N, K) and `stem`.bias (N,)."""

    def head(self, x: str, stem: str, vocab: int, hidden: int, table: Table | None) -> str:
        """x (B, K, D) → logits (B, K, vocab) by `table`, or by `stem`.weight when that is None."""

    def rms_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        """x normed by its root mean square, times `stem`.weight."""

    def add_rms_norm(
        self, residual: str, x: str, stem: str, width: int, epsilon: float, keep_sum: bool = True
    ) -> tuple[str, str]:
        """(norm(residual + x), residual + x); without `keep_sum` the sum is ''."""

    def layer_norm(self, x: str, stem: str, width: int, epsilon: float) -> str:
        """LayerNorm with `stem`.weight and `stem`.bias."""

    def activation(self, x: str, act: Activation) -> str:
        """The activation of x, elementwise."""

    def decoder_inputs(self, hidden: int, cache: tuple[CacheEntry, ...], frequencies: Float32) -> str:
        """Declares the decoder's inputs and what its layers share; returns inputs_embeds.

        `frequencies` (E / 2,) are the angles by which RoPE turns from one position to the next.
        """

    def cached_attention(
        self, qkv: tuple[str, str, str], layer: int, heads: int, kv_heads: int, head_dim: int, scale: float | None
    ) -> str:
        """RoPE and causal attention over the cache and this call's tokens: → (B, T, H * E); the cache's output too."""

    def kept_rows(self, residual: str, x: str) -> tuple[str, str]:
        """The rows of both values that logits are wanted of."""

    def decoder_outputs(self, logits: str, vocab: int, cache: tuple[CacheEntry, ...]) -> None:
        """Declares logits and cache as outputs."""

    def full_attention(self, qkv: tuple[str, str, str], heads: int, head_dim: int, scale: float | None) -> str:
        """Attention without a mask: (C, V, width) each → (C, V, width)."""

    def patch_embedding(self, pixels: str, stem: str, width: int, patch: int, grid: int, bias: bool) -> str:
        """pixels (C, 3, S, S) → (C, grid * grid, width), patches row-major."""

    def prepend_row(self, x: str, name: str, row: Float32) -> str:
        """x (C, V, W) → (C, 1 + V, W) with `row` (1, 1, W) first in each tile."""

    def drop_first_row(self, x: str, n_rows: int) -> str:
        """x (C, 1 + n_rows, W) → (C, n_rows, W)."""

    def space_to_depth(self, x: str, grid: int, width: int, factor: int, pad_to: int) -> str:
        """x (C, grid * grid, W) → (C, (pad_to / f)^2, f * f * W), channels in (dy, dx, channel) order."""
