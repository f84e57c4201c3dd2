"""RoPE's frequencies and tables, interpolated and bucketed patch positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.archspec import RopeSpec

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

CUBIC_A = -0.75
"""torch's cubic convolution coefficient (aten/src/ATen/native/UpSample.h, 2.13)."""


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Float32:
    """(head_dim / 2,) float32. Source: transformers 5.24, modeling_rope_utils.py."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = (1.0 / rope.theta**exponents).astype(np.float32)
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def _llama3(frequencies: Float32, rope: RopeSpec) -> Float32:
    """Long wavelengths slowed by `factor`, short ones kept, a linear blend between."""
    original = float(rope.original_max_position_embeddings or 0)
    wavelengths = 2 * np.pi / frequencies
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    slowed = frequencies / rope.factor
    blended = (1 - smooth) * slowed + smooth * frequencies
    is_long = wavelengths > original / rope.low_freq_factor
    is_short = wavelengths < original / rope.high_freq_factor
    mixed: Float32 = np.where(is_long, slowed, np.where(is_short, frequencies, blended)).astype(np.float32)
    return mixed


def rope_tables(frequencies: Float32, n_positions: int) -> tuple[Float32, Float32]:
    """Cosines and sines (n_positions, head_dim / 2); angles are rounded to float32 as transformers computes them.

    For graphs of a fixed length. Others compute the rows that a call needs: a table for a context of 1,010,000 tokens
    takes 517 MB with heads of 128 channels.
    """
    positions = np.arange(n_positions, dtype=np.float32)
    angles = (positions[:, None] * frequencies[None, :]).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def bicubic_table(table: Float32, out: int) -> Float32:
    """A position table (n, n, W) resampled to (out, out, W).

    The same numbers as torch.nn.functional.interpolate(mode='bicubic', align_corners=False), without antialiasing.
    """
    weights = _bicubic_matrix(table.shape[0], out)
    rows = np.einsum("on,nmw->omw", weights, table)
    resampled: Float32 = np.einsum("on,mnw->mow", weights, rows).astype(np.float32)
    return resampled


def _bicubic_matrix(size: int, out: int) -> Float32:
    """(out, size): each row has the four cubic weights of its source, border indices clamped."""
    matrix = np.zeros((out, size), np.float32)
    scale = np.float32(size) / np.float32(out)
    for i in range(out):
        source = scale * (np.float32(i) + np.float32(0.5)) - np.float32(0.5)
        first = int(np.floor(source))
        t = np.float32(source - np.float32(first))
        for k, weight in enumerate(_cubic_weights(t)):
            matrix[i, min(max(first - 1 + k, 0), size - 1)] += weight
    return matrix


def _cubic_weights(t: np.float32) -> tuple[np.float32, ...]:
    a = np.float32(CUBIC_A)

    def near(x: np.float32) -> np.float32:
        return ((a + np.float32(2)) * x - (a + np.float32(3))) * x * x + np.float32(1)

    def far(x: np.float32) -> np.float32:
        return ((a * x - np.float32(5) * a) * x + np.float32(8) * a) * x - np.float32(4) * a

    one = np.float32(1)
    return far(t + one), near(t), near(one - t), far(np.float32(2) - t)


def bucket_positions(n_patches: int, grid: int) -> Int64:
    """Row (or column) of a `grid`-sided table for each of `n_patches` patches of a full tile.

    Idefics3 buckets the fractions i / n in float32. The roundings decide: at the sides of published towers (14, 24, 26,
    27, 32) the result is 0, 1, 2..., at others (19, 25, 29...) a patch falls into its neighbour's bucket.
    Source: transformers 5.24, Idefics3VisionEmbeddings.forward.
    """
    step = np.float32(1.0) / np.float32(n_patches)
    fractions = np.minimum(np.arange(n_patches, dtype=np.float32) * step, np.float32(1.0 - 1e-6))
    index: Int64 = np.searchsorted(_torch_arange(1.0 / grid), fractions, side="right").astype(np.int64)
    return index


TORCH_VECTOR = 8
"""torch fills 2 x 8 floats a turn, each eight from a base that is rounded to float32, and the rest one by one
(aten/src/ATen/native/cpu/Loops.h; the same on AVX2 and AVX-512 with 2.13)."""


def _torch_arange(step: float) -> Float32:
    """torch.arange(step, 1.0, step) in float32, with torch's roundings."""
    size = int(np.ceil((1.0 - step) / step))
    values = (step + step * np.arange(size)).astype(np.float32)
    for start in range(0, size - size % (2 * TORCH_VECTOR), TORCH_VECTOR):
        values[start : start + TORCH_VECTOR] = np.float64(values[start]) + step * np.arange(TORCH_VECTOR)
    return values
