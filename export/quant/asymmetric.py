"""Asymmetric int4: codes 0..15 with a uint4 zero point per block.

Inverse scales around 15 / (max - min) are tried; each fixes a whole-number zero point, the scale is refitted in closed
form for it, and the smallest squared error wins. The symmetric answer is one more candidate, so that a zero point never
makes a block worse. Scales are rounded to fp16 first, and the codes are chosen for the rounded scale.
Source: llama.cpp's `make_qkx2_quants`, unweighted, with the minimum kept on the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quant import symmetric
from export.quant.blocks import BlockFit, Floats, fp16_values, inverse, quantise_blocks
from export.quant.scheme import Quantised, Scheme

LEVELS = 15.0
SEARCH: tuple[float, ...] = tuple(LEVELS + 0.1 * step for step in range(-9, 10))
"""Numbers of steps that max - min is tried at."""


def quantise(weight: NDArray[np.float32], scheme: Scheme) -> Quantised:
    """Returns `weight` (N, K) in int4 blocks of `scheme.block` with zero points."""
    return quantise_blocks(weight, scheme, fit)


def fit(columns: Floats) -> BlockFit:
    """Returns codes (block, n) 0..15, scales (n,) and zero points (n,) of the blocks (block, n)."""
    scale, zero = _search(columns)
    scale = fp16_values(scale)
    codes = columns * inverse(scale)
    np.rint(codes, out=codes)
    codes += zero
    np.clip(codes, 0.0, LEVELS, out=codes)
    return codes, scale, zero


def _search(columns: Floats) -> tuple[Floats, Floats]:
    low = np.minimum(columns.min(axis=0), 0.0)
    high = np.maximum(columns.max(axis=0), 0.0)
    base = inverse(high - low)
    best_scale = symmetric.search(columns, symmetric.signed_extreme(columns))
    best_zero = np.full_like(best_scale, 8.0)
    best_gain = _gain(columns, best_scale, best_zero)[0]
    for steps in SEARCH:
        inverse_scale = base * steps
        zero = np.clip(np.rint(-low * inverse_scale), 0.0, LEVELS)
        gain, scale = _gain(columns, inverse(inverse_scale), zero)
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_zero, zero, where=better)
    return best_scale, best_zero


def _gain(columns: Floats, scale: Floats, zero: Floats) -> tuple[Floats, Floats]:
    """Returns per block how much the refitted scale lowers the squared error, and that scale."""
    codes = columns * inverse(scale)
    np.rint(codes, out=codes)
    np.clip(codes, -zero, LEVELS - zero, out=codes)
    product = columns * codes
    dot = product.sum(axis=0)
    np.square(codes, out=codes)
    refitted = dot * inverse(codes.sum(axis=0))
    return dot * refitted, refitted
