"""Symmetric int8: codes 0..255 around 128, one scale per block (128 by default).

The scale maps the largest magnitude to 127. At 8 bits a search gains nothing that is worth its time: see the int8 rows
of docs/quantisation.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quant.blocks import BlockFit, Floats, fp16_values, inverse, quantise_blocks
from export.quant.scheme import Quantised, Scheme


def quantise(weight: NDArray[np.float32], scheme: Scheme) -> Quantised:
    """Returns `weight` (N, K) in int8 blocks of `scheme.block`."""
    return quantise_blocks(weight, scheme, fit)


def fit(columns: Floats) -> BlockFit:
    """Returns codes (block, n) 0..255 and scales (n,) of the blocks (block, n)."""
    largest = np.maximum(columns.max(axis=0), -columns.min(axis=0))
    scale = fp16_values(largest / np.float32(127.0))
    codes = columns * inverse(scale)
    np.rint(codes, out=codes)
    np.clip(codes, -128.0, 127.0, out=codes)
    codes += 128.0
    return codes, scale, None
