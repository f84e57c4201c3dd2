"""Walks a weight in chunks of quantisation blocks, on all cores, and collects codes, scales and the error.

A chunk is laid out (block, n) with one quantisation block per COLUMN: sums over a block are then adds of whole rows,
which numpy runs as wide vector instructions, and a chunk stays in the second-level cache (measured 2026: 3x faster than
reducing along a last axis of 32).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UsageError
from export.quant.scheme import Quantised, Scheme

Floats = NDArray[np.float32]
BlockFit = tuple[Floats, Floats, NDArray[np.float32] | None]
"""(codes (block, n) as whole numbers in float32, scales (n,), zero points (n,) or None)."""
FitBlocks = Callable[[Floats], BlockFit]
"""Quantises blocks (block, n)."""

_CHUNK_WEIGHTS = 1 << 16
"""256 KB of float32: a chunk and its temporaries fit a 1 MB second-level cache."""
_FP16_MAX = 65504.0
_SMALLEST_SCALE = 1e-30


def fp16_values(scales: Floats) -> Floats:
    """Returns `scales` rounded to fp16 values, saturating at its largest, as float32."""
    rounded = np.clip(scales, -_FP16_MAX, _FP16_MAX).astype(np.float16).astype(np.float32)
    return rounded


def inverse(scales: Floats) -> Floats:
    """Returns 1 / scales, 0 where a scale is 0 or so small that its inverse would overflow."""
    result = np.zeros_like(scales)
    np.divide(1.0, scales, out=result, where=np.abs(scales) > _SMALLEST_SCALE)
    return result


def quantise_blocks(weight: Floats, scheme: Scheme, fit: FitBlocks) -> Quantised:
    """Returns `weight` (N, K) quantised by `fit`; a last block that K does not fill is padded with zeros.

    Raises UsageError when a value is not finite.
    """
    rows, width = weight.shape
    n_blocks = -(-width // scheme.block)
    padded = n_blocks * scheme.block
    codes = np.empty((rows, padded), np.uint8)
    scales = np.empty((rows, n_blocks), np.float32)
    zero_points = np.empty((rows, n_blocks), np.uint8) if scheme.zero_point else None
    default_zero = float(1 << (scheme.bits - 1))

    def run(start: int, stop: int) -> tuple[float, float]:
        part = np.zeros((stop - start, padded), np.float32)
        part[:, :width] = weight[start:stop]
        columns = np.ascontiguousarray(part.reshape(-1, scheme.block).T)
        norm = float(np.vdot(columns, columns))
        if not np.isfinite(norm):
            raise UsageError("the weight holds values that are not finite (NaN or infinity), or that overflow float32")
        found, scale, zero = fit(columns)
        codes[start:stop] = found.T.astype(np.uint8).reshape(stop - start, padded)
        scales[start:stop] = scale.reshape(stop - start, n_blocks)
        if zero_points is not None and zero is not None:
            zero_points[start:stop] = zero.astype(np.uint8).reshape(stop - start, n_blocks)
        found -= default_zero if zero is None else zero
        found *= scale
        columns -= found
        return float(np.vdot(columns, columns)), norm

    step = max(1, _CHUNK_WEIGHTS // max(1, padded))
    starts = range(0, rows, step)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        sums = list(pool.map(lambda start: run(start, min(start + step, rows)), starts))
    error, norm = sum(part[0] for part in sums), sum(part[1] for part in sums)
    return Quantised(codes, scales, zero_points, scheme, width, (error / norm) ** 0.5 if norm > 0 else 0.0)
