"""Weight layouts of the kernels, and their exact inverses.

x86-64 keeps one layout for all its variants: blocks of 16 output columns, and inside a block runs of 64 bytes that
hold 4 consecutive k of each column, so that a 512-bit register is one run and a 256-bit register is half of one.

arm64 keeps one too: blocks of 16 columns, and inside a block runs of 128 bytes that hold 8 consecutive k of each
column, so that a 128-bit register is the 2 columns x 8 k that `smmla` takes; `sdot` sums 4 of the 8.

Hexagon's is x86-64's with blocks of 32 columns: its vectors have 128 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

COLUMNS = 16
"""Output columns of one block on a CPU."""
BLOCK_COLUMNS = {"x86_64": COLUMNS, "arm64": COLUMNS, "hexagon": 32}
QUAD = 4
"""Consecutive k that one lane of a dot-product instruction takes."""

EIGHT = 8
"""Consecutive k of one row or column in half a 128-bit register."""

UInt8 = NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class RowLayout:
    """How quantised activations lie: codes (T/rows, K/run, rows, run), scales and sums (T/rows, K/group, rows, copies).

    `sums` holds sum_base + sum_factor * (sum of the codes). A row that is not there has scale 0 and sum `sum_base`.
    """

    run: int
    copies: int
    sum_base: int
    sum_factor: int


MAGIC = 0x4B400000
"""Bits of the float 1.5 * 2^23: MAGIC + i is the float 1.5 * 2^23 + i for |i| < 2^22, without a conversion."""
ROW_LAYOUTS = {
    "x86_64": RowLayout(QUAD, 1, 0, 1),
    # An accumulator of 2 rows x 2 columns begins with {s0, s0, s1, s1}, where s removes the 4-bit codes' middle of 8.
    "arm64": RowLayout(EIGHT, 2, MAGIC, -8),
    "hexagon": RowLayout(QUAD, 1, 0, 1),
}


def _runs(codes: UInt8, run: int, columns: int) -> UInt8:
    """(N, K) → (N/16, K/run, 16, run): `run` consecutive k of 16 columns side by side. N is padded with zeros to 16.

    Here and below 16 stands for the block's columns.
    """
    n, k = codes.shape
    if k % 32:
        raise ValueError(f"K must be a multiple of 32, found {k}")
    padded = np.zeros((-(-n // columns) * columns, k), np.uint8)
    padded[:n] = codes
    return padded.reshape(-1, columns, k // run, run).transpose(0, 2, 1, 3)


def _columns(runs: UInt8, n: int) -> UInt8:
    """Inverse of `_runs`: the first n columns."""
    blocks, _, columns, _ = runs.shape
    return np.ascontiguousarray(runs.transpose(0, 2, 1, 3).reshape(blocks * columns, -1)[:n])


def pack(codes: UInt8, bits: int, arch: str) -> UInt8:
    """Packs codes (N, K) in 0..2^bits - 1 in the layout of `arch`, K a multiple of 32.

    4 bits: (N/16, K/(2 run), 16 run), the low nibble holding the even run of k, the high nibble the odd one. 8 bits:
    (N/16, K/run, 16 run), on arm64 as signed codes (the middle code 128 becomes 0).
    """
    runs = _runs(codes, ROW_LAYOUTS[arch].run, BLOCK_COLUMNS[arch])
    if bits == 4:
        runs = runs[:, 0::2] | (runs[:, 1::2] << np.uint8(4))
    elif arch == "arm64":
        runs = runs ^ np.uint8(128)
    return np.ascontiguousarray(runs.reshape(*runs.shape[:2], -1))


def unpack(packed: UInt8, n: int, bits: int, arch: str) -> UInt8:
    """Exact inverse of `pack`: codes (n, K)."""
    runs = packed.reshape(*packed.shape[:2], BLOCK_COLUMNS[arch], -1)
    if bits == 4:
        both = np.empty((runs.shape[0], runs.shape[1] * 2, *runs.shape[2:]), np.uint8)
        both[:, 0::2], both[:, 1::2] = runs & 15, runs >> 4
        runs = both
    elif arch == "arm64":
        runs = runs ^ np.uint8(128)
    return _columns(runs, n)


def pack_per_group(values: NDArray[np.generic], columns: int = COLUMNS) -> NDArray[np.generic]:
    """Reorders one value per (column, group), (N, G), as (N/16, G, 16): scales and zero points. Pads N with zeros."""
    n, groups = values.shape
    padded = np.zeros((-(-n // columns) * columns, groups), values.dtype)
    padded[:n] = values
    return np.ascontiguousarray(padded.reshape(-1, columns, groups).transpose(0, 2, 1))


def pack_rows(codes: NDArray[np.int8], rows: int, arch: str) -> NDArray[np.int8]:
    """Activation codes (T, K) as (T/rows, K/run, rows, run), T padded with zeros: the order a GEMM tile reads them."""
    t, k = codes.shape
    run = ROW_LAYOUTS[arch].run
    padded = np.zeros((-(-t // rows) * rows, k), np.int8)
    padded[:t] = codes
    return np.ascontiguousarray(padded.reshape(-1, rows, k // run, run).transpose(0, 2, 1, 3))


def pack_row_scales(scales: NDArray[np.float32], rows: int, arch: str) -> NDArray[np.float32]:
    """Activation scales (T, G) as (T/rows, G, rows, copies). T is a multiple of rows."""
    return _per_row(scales, rows, arch)


def pack_row_sums(sums: NDArray[np.int32], rows: int, arch: str) -> NDArray[np.int32]:
    """Sums of activation codes (T, G) as (T/rows, G, rows, copies) as the kernels of `arch` start from them."""
    layout = ROW_LAYOUTS[arch]
    return _per_row((layout.sum_base + layout.sum_factor * sums).astype(np.int32), rows, arch)


def _per_row(values: NDArray[Number], rows: int, arch: str) -> NDArray[Number]:
    tiles = values.reshape(-1, rows, values.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(np.repeat(tiles[..., None], ROW_LAYOUTS[arch].copies, axis=3))
