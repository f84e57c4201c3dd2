"""Weight layouts of the kernels, and their exact inverses.

x86-64 keeps one layout for all its variants: blocks of 16 output columns, and inside a block runs of 64 bytes that
hold 4 consecutive k of each column, so that a 512-bit register is one run and a 256-bit register is half of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLUMNS = 16
"""Output columns of one block."""
QUAD = 4
"""Consecutive k that one lane of a dot-product instruction takes."""

UInt8 = NDArray[np.uint8]


def _quads(codes: UInt8) -> UInt8:
    """(N, K) → (N/16, K/4, 16, 4): 4 consecutive k of 16 columns side by side. N is padded with zeros to 16."""
    n, k = codes.shape
    if k % 32:
        raise ValueError(f"K must be a multiple of 32, found {k}")
    padded = np.zeros((-(-n // COLUMNS) * COLUMNS, k), np.uint8)
    padded[:n] = codes
    return padded.reshape(-1, COLUMNS, k // QUAD, QUAD).transpose(0, 2, 1, 3)


def pack_int4_x86(codes: UInt8) -> UInt8:
    """Packs int4 codes (N, K) in 0..15 as (N/16, K/8, 64): the low nibble holds the even quad, the high the odd."""
    quads = _quads(codes)
    low, high = quads[:, 0::2], quads[:, 1::2]
    return np.ascontiguousarray((low | (high << 4)).reshape(quads.shape[0], -1, COLUMNS * QUAD))


def unpack_int4_x86(packed: UInt8, n: int) -> UInt8:
    """Exact inverse of `pack_int4_x86`: codes (n, K)."""
    blocks, pairs, _ = packed.shape
    quads = np.empty((blocks, pairs * 2, COLUMNS, QUAD), np.uint8)
    lanes = packed.reshape(blocks, pairs, COLUMNS, QUAD)
    quads[:, 0::2], quads[:, 1::2] = lanes & 15, lanes >> 4
    return np.ascontiguousarray(quads.transpose(0, 2, 1, 3).reshape(blocks * COLUMNS, -1)[:n])


def pack_int8_x86(codes: UInt8) -> UInt8:
    """Packs int8 codes (N, K) in 0..255 (zero at 128) as (N/16, K/4, 64)."""
    quads = _quads(codes)
    return np.ascontiguousarray(quads.reshape(quads.shape[0], -1, COLUMNS * QUAD))


def unpack_int8_x86(packed: UInt8, n: int) -> UInt8:
    """Exact inverse of `pack_int8_x86`: codes (n, K)."""
    blocks, quads, _ = packed.shape
    lanes = packed.reshape(blocks, quads, COLUMNS, QUAD)
    return np.ascontiguousarray(lanes.transpose(0, 2, 1, 3).reshape(blocks * COLUMNS, -1)[:n])


def pack_per_group(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Reorders one value per (column, group), (N, G), as (N/16, G, 16): scales and zero points. Pads N with zeros."""
    n, groups = values.shape
    padded = np.zeros((-(-n // COLUMNS) * COLUMNS, groups), values.dtype)
    padded[:n] = values
    return np.ascontiguousarray(padded.reshape(-1, COLUMNS, groups).transpose(0, 2, 1))


def pack_rows(codes: NDArray[np.int8], rows: int) -> NDArray[np.int8]:
    """Activation codes (T, K) as (T/rows, K/4, rows, 4), T padded with zeros: the order a GEMM tile reads them in."""
    t, k = codes.shape
    padded = np.zeros((-(-t // rows) * rows, k), np.int8)
    padded[:t] = codes
    return np.ascontiguousarray(padded.reshape(-1, rows, k // QUAD, QUAD).transpose(0, 2, 1, 3))
