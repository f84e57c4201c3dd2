"""A vision tower's products and attention for the kernels of any variant, and the oracles beside them."""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any

import numpy as np

from tvm_schedules import layouts, reference

N, K = 192, 320
# int8 queries, keys and values, 7- or 8-bit probabilities: 1.3e-2 to 3.2e-2 of the largest output, measured 2026-11-25
# on white noise, which is the worst case: no structure in the values for the sum over keys to keep.
ATTENTION_BOUND = 4e-2

Call = Callable[..., Any]
"""(kernel name, its C arguments with arrays for pointers)."""


class Product:
    """Codes of one product, in the oracle's order and in the kernel's."""

    def __init__(self, group: int, rows: int, tile_rows: int, arch: str, k: int = K) -> None:
        rng = np.random.default_rng(group)
        self.w_codes = rng.integers(0, 256, (N, k)).astype(np.uint8)
        self.w_scales = (rng.random((N, k // group)) * 0.01).astype(np.float16)
        self.x_codes, self.x_scales = reference.quantise_rows(rng.standard_normal((rows, k)).astype(np.float32), group)
        sums = self.x_codes.astype(np.int32).reshape(rows, k // group, group).sum(axis=2, dtype=np.int32)
        self.bias = rng.standard_normal(N).astype(np.float32)
        self.arguments = (
            layouts.pack(self.w_codes, 8, arch), layouts.pack_per_group(self.w_scales),
            layouts.pack_rows(self.x_codes, tile_rows, arch), layouts.pack_row_scales(self.x_scales, tile_rows, arch),
            layouts.pack_row_sums(sums, tile_rows, arch), self.bias,
        )

    def expected(self) -> np.ndarray:
        """The product with bias, of the codes as they are now."""
        middle = np.full(self.w_scales.shape, 128, np.uint8)
        product = reference.gemm_codes(self.x_codes, self.x_scales, self.w_codes, self.w_scales, middle)
        return product.astype(np.float64) + self.bias


def gelu(x: np.ndarray, form: str) -> np.ndarray:
    """GELU by its name in the kernels."""
    if form == "gelu":
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Attention:
    """Runs the three attention kernels on (tokens, 3 * heads * head_dim) floats, split as threads would."""

    def __init__(self, call: Call, rows: int, head_dim: int) -> None:
        self.call, self.rows, self.head_dim = call, rows, head_dim

    def __call__(self, qkv: np.ndarray, heads: int) -> np.ndarray:
        head_dim, rows, tokens = self.head_dim, self.rows, len(qkv)
        width, padded = heads * head_dim, -(-tokens // 32) * 32
        means, value_means, value_scales = (np.zeros(width, np.float32) for _ in range(3))
        statistics = (means, value_means, value_scales)
        for begin, end in ((0, 16), (16, width)):
            self.call("tower_statistics", qkv, *statistics, 3 * width, width, tokens, begin, end)
        queries, keys = np.zeros((heads, padded * head_dim), np.int8), np.zeros((heads, padded * head_dim), np.uint8)
        values = np.zeros((heads, padded * (-(-head_dim // 16) * 16)), np.int8)
        query_scales, key_scales, key_bias = (np.zeros((heads, padded), np.float32) for _ in range(3))
        query_sums = np.zeros((heads, padded), np.int32)
        codes = (queries, query_scales, query_sums, keys, key_scales, key_bias, values)
        for begin, end in ((0, 32), (32, padded)):
            self.call(
                f"tower_pack_e{head_dim}", qkv, *statistics, *codes, 3 * width, heads, tokens, padded, head_dim**-0.5,
                begin, end,
            )
        out = np.zeros((tokens, width), np.float32)
        tiles = -(-tokens // rows)
        for head in range(heads):
            per_head = [array[head] for array in codes]
            channels = slice(head * head_dim, (head + 1) * head_dim)
            for begin, end in ((0, 1), (1, tiles)):
                self.call(
                    f"tower_attend_e{head_dim}", *per_head, value_scales[channels], value_means[channels],
                    out.reshape(-1)[head * head_dim :], padded, tokens, width, begin, end,
                )
        return out


def attention(qkv: np.ndarray, heads: int, head_dim: int) -> np.ndarray:
    """The same in float64."""
    tokens = len(qkv)
    q, k, v = (part.reshape(tokens, heads, head_dim).transpose(1, 0, 2) for part in np.split(qkv.astype(float), 3, 1))
    scores = q @ k.transpose(0, 2, 1) * head_dim**-0.5
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    out = weights / weights.sum(axis=2, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(tokens, -1)
