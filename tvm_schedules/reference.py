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
