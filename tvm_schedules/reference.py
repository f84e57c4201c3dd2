"""numpy oracles: what each kernel must compute, written for clearness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def quantise_rows(x: Float32, group: int) -> tuple[NDArray[np.int8], Float32]:
    """Symmetric int8 codes (T, K) and scales (T, K/group) of activations: max|x| / 127, zero for zero groups."""
    t, k = x.shape
    blocks = x.reshape(t, k // group, group)
    scales = (np.abs(blocks).max(axis=2) / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(blocks * inverse[:, :, None]).astype(np.int8)
    return codes.reshape(t, k), scales


def gemm_codes(
    x_codes: NDArray[np.int8],
    x_scales: Float32,
    w_codes: NDArray[np.uint8],
    w_scales: NDArray[np.float16],
    zero_points: NDArray[np.uint8],
) -> Float32:
    """(T, N) = sum over groups of the integer dot product times both scales, in float64, rounded once."""
    t, k = x_codes.shape
    n, groups = w_scales.shape
    group = k // groups
    x = x_codes.astype(np.float64).reshape(t, groups, group)
    w = (w_codes.astype(np.float64).reshape(n, groups, group) - zero_points.astype(np.float64)[:, :, None])
    dots = np.einsum("tgk,ngk->tng", x, w)
    scaled = dots * w_scales.astype(np.float64)[None] * x_scales.astype(np.float64)[:, None, :]
    summed: Float32 = scaled.sum(axis=2).astype(np.float32)
    return summed


def attend_codes(
    q: Float32,
    keys: NDArray[np.int8],
    key_scales: Float32,
    values: NDArray[np.int8],
    value_scales: Float32,
    n_past: int,
) -> NDArray[np.float64]:
    """Causal attention (T, H, E) of one KV head's scaled queries (T, H, E) over codes (P, E) with a scale per token.

    Token t sees keys 0 .. n_past + t.
    """
    wide_keys = keys.astype(np.float64) * key_scales.astype(np.float64)[:, None]
    wide_values = values.astype(np.float64) * value_scales.astype(np.float64)[:, None]
    out = np.zeros(q.shape)
    for token in range(len(q)):
        seen = n_past + token + 1
        scores = q[token].astype(np.float64) @ wide_keys[:seen].T
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[token] = weights / weights.sum(axis=1, keepdims=True) @ wide_values[:seen]
    return out
