"""Symmetric int4: codes 0..15 for -8..7, one scale per block, no zero point.

The signed element of the largest magnitude m is given the code -8 (so a scale may be negative); inverse scales around
that are tried, each is refitted in closed form, and the one with the smallest squared error wins. Scales are rounded
to fp16 first, and the codes are chosen for the rounded scale. Source: the search of llama.cpp's `make_qx_quants`,
unweighted. Why this rule: docs/quantisation.md, measured by tests/benchmarks/scale_rules.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quant.blocks import BlockFit, Floats, fp16_values, inverse, quantise_blocks
from export.quant.scheme import Quantised, Scheme

LOW, HIGH = -8.0, 7.0
SEARCH: tuple[float, ...] = tuple(8.0 + 0.1 * step for step in range(-9, 10))
"""Magnitudes that m is tried at: 7.1 (m clipped by none) to 8.9 (m clipped to 8)."""


def quantise(weight: NDArray[np.float32], scheme: Scheme) -> Quantised:
    """Returns `weight` (N, K) in symmetric int4 blocks of `scheme.block`."""
    return quantise_blocks(weight, scheme, fit)


def fit(columns: Floats) -> BlockFit:
    """Returns codes (block, n) 0..15 and scales (n,) of the blocks (block, n)."""
    scale = fp16_values(search(columns, signed_extreme(columns)))
    codes = columns * inverse(scale)
    np.rint(codes, out=codes)
    np.clip(codes, LOW, HIGH, out=codes)
    codes += 8.0
    return codes, scale, None


def signed_extreme(columns: Floats) -> Floats:
    """Returns per block (n,) the element of the largest magnitude, with its sign."""
    high, low = columns.max(axis=0), columns.min(axis=0)
    extreme: Floats = np.where(high > -low, high, low)
    return extreme


def search(columns: Floats, extreme: Floats) -> Floats:
    """Returns per block (n,) the refitted scale whose codes leave the smallest squared error.

    With codes q the best scale is sum(w q) / sum(q q), and it lowers the error by sum(w q)^2 / sum(q q).
    """
    base = inverse(extreme)
    best_gain = np.zeros_like(extreme)
    best_scale = np.zeros_like(extreme)
    codes, product = np.empty_like(columns), np.empty_like(columns)
    for magnitude in SEARCH:
        np.multiply(columns, base * -magnitude, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, LOW, HIGH, out=codes)
        np.multiply(columns, codes, out=product)
        dot = product.sum(axis=0)
        np.square(codes, out=codes)
        square = codes.sum(axis=0)
        scale = dot * inverse(square)
        gain = dot * scale
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)
    return best_scale
