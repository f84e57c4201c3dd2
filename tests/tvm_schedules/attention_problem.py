"""One layer's cache on the kernels' side, and the float keys and values on the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from tvm_schedules.attention.cache import form_name

HEADS, KV_HEADS, CAPACITY = 6, 2, 256
GROUP = HEADS // KV_HEADS
FORMS = ((32, 32), (8, 8), (8, 4), (4, 8), (4, 4))
"""Bits of keys and values; 32 is float."""
# Largest error over the largest output, measured 2026-11-25 with 64 and 128 channels: float 6.2e-7 and 1.07e-6,
# 8 bits 0.016, 4-bit values 0.1198, 4-bit keys 0.31 and 0.33.
BOUNDS = {(32, 32): 1e-6, (8, 8): 2e-2, (8, 4): 0.12, (4, 8): 0.4, (4, 4): 0.4}
FLOAT_BOUND_128 = 2e-6


def bound(bits: tuple[int, int], head_dim: int) -> float:
    """Largest error over the largest output that a cache form may show."""
    return FLOAT_BOUND_128 if bits == (32, 32) and head_dim == 128 else BOUNDS[bits]


Call = Callable[..., Any]
"""(kernel name, its C arguments with arrays for pointers)."""


class Cache:
    """One layer's cache on the kernels' side, and the float keys and values on the oracle's."""

    def __init__(self, call: Call, bits: tuple[int, int], head_dim: int = 64) -> None:
        self.call, self.bits, self.head_dim = call, bits, head_dim
        self.name = f"e{head_dim}_{form_name(*bits)}"  # type: ignore[arg-type]
        self.width = (HEADS + 2 * KV_HEADS) * head_dim
        slots = KV_HEADS * CAPACITY
        self.keys, self.values = (np.zeros(slots * head_dim * b // 8, np.uint8) for b in bits)
        self.key_scales, self.value_scales = np.zeros(slots, np.float32), np.zeros(slots, np.float32)
        half = head_dim // 2
        angles = np.arange(CAPACITY)[:, None] / 10000 ** (np.arange(half) / half)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.centre = np.random.default_rng(7).standard_normal((KV_HEADS, head_dim)).astype(np.float32)
        self.true_keys = np.zeros((0, KV_HEADS, head_dim))
        self.true_values = np.zeros((0, KV_HEADS, head_dim))
        self.n_past = 0

    def append(self, qkv: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Appends the keys and values of `qkv` (T, width), which the kernel changes; returns the true queries."""
        rows, half = len(qkv), self.head_dim // 2
        if positions is None:
            positions = np.arange(self.n_past, self.n_past + rows)
        positions = positions.astype(np.int32)
        split = qkv.reshape(rows, -1, self.head_dim).astype(np.float64)
        cos, sin = (table[positions][:, None].astype(np.float64) for table in (self.cos, self.sin))
        low, high = split[..., :half], split[..., half:]
        rotated = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)
        self.true_keys = np.concatenate([self.true_keys, rotated[:, HEADS : HEADS + KV_HEADS]])
        self.true_values = np.concatenate([self.true_values, split[:, HEADS + KV_HEADS :]])
        tables = (self.cos, self.sin, self.centre, positions, *self.arrays)
        self.call(
            f"append_{self.name}", qkv, *tables, HEADS, KV_HEADS, CAPACITY, self.n_past, self.head_dim**-0.5,
            self.width, 0, rows,
        )
        return rotated[:, :HEADS]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.keys, self.key_scales, self.values, self.value_scales

    def attend(
        self, qkv: np.ndarray, bounds: list[int], window: int, tile: str = "prefill", tree: np.ndarray | None = None
    ) -> np.ndarray:
        """Attention of the appended rows with the keys cut at `bounds`, merged: (T, HEADS, head_dim)."""
        rows, masks = len(qkv) * GROUP, np.zeros(64, np.int32)
        if tree is not None:
            masks[: len(tree)] = tree
        out = np.zeros((len(qkv), HEADS * self.head_dim), np.float32)
        for head in range(KV_HEADS):
            partials = np.zeros((len(bounds) - 1, rows, self.head_dim + 2), np.float32)
            for part, (begin, end) in enumerate(pairwise(bounds)):
                self.call(
                    f"attend_{self.name}_{tile}", qkv, *self.arrays, masks, partials[part], HEADS, KV_HEADS, self.width,
                    CAPACITY, self.n_past, 0 if tree is None else len(tree), window, head, 0, rows, begin, end,
                )
            self.call(
                f"merge_e{self.head_dim}", partials, out, len(partials), rows, HEADS, KV_HEADS, HEADS * self.head_dim,
                head, 0, rows,
            )
        return out.reshape(len(qkv), HEADS, self.head_dim)

    def expected(self, queries: np.ndarray, window: int, tree: np.ndarray | None = None) -> np.ndarray:
        out = np.zeros(queries.shape)
        for row in range(len(queries)):
            position = self.n_past + (row if tree is None else int(tree[row]).bit_count() - 1)
            seen = list(range(self.n_past + row + 1))
            if tree is not None:
                drafted = [self.n_past + i for i in range(len(tree)) if tree[row] >> i & 1]
                seen = list(range(self.n_past)) + drafted
            seen = [key for key in seen if not window or key > position - window]
            for head in range(HEADS):
                scores = self.true_keys[seen, head // GROUP] @ queries[row, head] * self.head_dim**-0.5
                weights = np.exp(scores - scores.max())
                out[row, head] = weights / weights.sum() @ self.true_values[seen, head // GROUP]
        return out
