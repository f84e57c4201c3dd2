"""The byte layout of onnxruntime's MatMulNBits, and its exact inverse.

`B` is uint8 (N, n_blocks, block * bits / 8). At 4 bits the even k of a pair is the low nibble. Zero points are packed
the same way along n_blocks, each row padded to a whole byte. GatherBlockQuantized reads the same bytes as a table
(N, K * bits / 8) when the block divides K.
Source: onnxruntime 1.32, docs/ContribOperators.md, `MatMulNBits` and `GatherBlockQuantized`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UsageError
from export.quant.scheme import Quantised

Bytes = NDArray[np.uint8]


def pack_nibbles(codes: Bytes) -> Bytes:
    """Returns (rows, n) codes 0..15 as (rows, ceil(n / 2)) bytes; the even index is the low nibble, a gap is 0."""
    rows, n = codes.shape
    if n % 2:
        codes = np.concatenate([codes, np.zeros((rows, 1), np.uint8)], axis=1)
    return codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))


def unpack_nibbles(packed: Bytes, n: int) -> Bytes:
    """Returns the (rows, n) codes of (rows, ceil(n / 2)) bytes."""
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return np.ascontiguousarray(codes[:, :n])


def pack_codes(codes: Bytes, bits: int, block: int) -> Bytes:
    """Returns MatMulNBits' `B` (N, n_blocks, block * bits / 8) of codes (N, n_blocks * block)."""
    rows, padded = codes.shape
    if padded % block:
        raise UsageError(f"codes of width {padded} are no whole number of blocks of {block}")
    flat = pack_nibbles(codes) if bits == 4 else codes
    return np.ascontiguousarray(flat.reshape(rows, padded // block, block * bits // 8))


def unpack_codes(packed: Bytes, bits: int, block: int) -> Bytes:
    """Returns the codes (N, n_blocks * block) of MatMulNBits' `B`."""
    rows, n_blocks, _ = packed.shape
    flat = packed.reshape(rows, -1)
    return unpack_nibbles(flat, n_blocks * block) if bits == 4 else flat.copy()


def pack_zero_points(zero_points: Bytes, bits: int) -> Bytes:
    """Returns zero points (N, n_blocks) as MatMulNBits wants them: (N, ceil(n_blocks * bits / 8))."""
    return pack_nibbles(zero_points) if bits == 4 else zero_points


def unpack_zero_points(packed: Bytes, bits: int, n_blocks: int) -> Bytes:
    """Returns the zero points (N, n_blocks)."""
    return unpack_nibbles(packed, n_blocks) if bits == 4 else packed.copy()


def matmul_nbits_inputs(quantised: Quantised) -> tuple[Bytes, NDArray[np.float32], Bytes | None]:
    """Returns `B`, `scales` (N, n_blocks) and packed `zero_points` (None when they are the default)."""
    bits = quantised.scheme.bits
    zero_points = None if quantised.zero_points is None else pack_zero_points(quantised.zero_points, bits)
    return pack_codes(quantised.codes, bits, quantised.scheme.block), quantised.scales, zero_points


def gather_table(quantised: Quantised) -> Bytes:
    """Returns the same bytes as GatherBlockQuantized's `data` (N, K * bits / 8).

    Raises UsageError when the rows are padded, since the op would return the padding.
    """
    rows, padded = quantised.codes.shape
    if padded != quantised.in_features:
        raise UsageError(
            f"a table of width {quantised.in_features} cannot be gathered in blocks of {quantised.scheme.block}; "
            "choose a block that divides the width"
        )
    return matmul_nbits_inputs(quantised)[0].reshape(rows, -1)
