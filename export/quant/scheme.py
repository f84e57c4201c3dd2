"""The quantisation schemes: a table of names that parse both ways, and one function that applies any of them.

`w4g32` is int4 in blocks of 32 input features, a trailing `z` adds a zero point per block; `w8` is int8 in blocks of
128 (`w8g64` and `w8g32` are what a tensor gets whose width 128 does not divide); `w4g32-mix` is an allocation of
`w4g32` and `w8`, found by measurement in `export.quant.mix`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UsageError

Kind = Literal["int4", "int8", "fp16", "fp32"]

BITS: dict[Kind, int] = {"int4": 4, "int8": 8, "fp16": 16, "fp32": 32}
SCALE_BITS = 16
ONNX_SCALE_BITS = 32
"""Scales are fp16 values, whatever type a container stores them in."""
FILE_SUFFIX: dict[Kind, str] = {"int4": "_q4", "int8": "_int8", "fp16": "_fp16", "fp32": ""}
"""What a graph's file name gets: onnx/decoder_model_merged_q4.onnx."""
INT8_BLOCKS = (128, 64, 32)


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored. `block` is 0 for the float kinds."""

    kind: Kind
    block: int = 0
    zero_point: bool = False

    @property
    def name(self) -> str:
        """The name that `parse_scheme` reads back."""
        if self.kind == "int4":
            return f"w4g{self.block}{'z' if self.zero_point else ''}"
        if self.kind == "int8":
            return "w8" if self.block == INT8_BLOCKS[0] else f"w8g{self.block}"
        return self.kind

    @property
    def bits(self) -> int:
        """Bits of one stored weight, without scales."""
        return BITS[self.kind]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight with fp16 scales and packed zero points, for a width that the block divides."""
        return self.stored_bits(SCALE_BITS)

    def stored_bits(self, scale_bits: int) -> float:
        """Bits per weight when a scale takes `scale_bits`, for a width that the block divides."""
        if not self.block:
            return float(self.bits)
        return self.bits + (scale_bits + (self.bits if self.zero_point else 0)) / self.block

    @property
    def suffix(self) -> str:
        """Suffix of the graph's file name."""
        return FILE_SUFFIX[self.kind]


@dataclass(frozen=True)
class MixScheme:
    """An allocation of two schemes to the groups of a language model; embedding and head are stored as `high`."""

    name: str
    low: Scheme
    high: Scheme
    target_bits: float
    """Mean bits per weight of the layers' linears, scales included."""

    @property
    def suffix(self) -> str:
        """Suffix of the graph's file name."""
        return self.low.suffix


_INT8 = Scheme("int8", INT8_BLOCKS[0])
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        *(Scheme("int4", block, zero_point) for block in (32, 64, 128) for zero_point in (False, True)),
        *(Scheme("int8", block) for block in INT8_BLOCKS),
        Scheme("fp16"),
        Scheme("fp32"),
    )
}
MIXES: dict[str, MixScheme] = {"w4g32-mix": MixScheme("w4g32-mix", SCHEMES["w4g32"], _INT8, target_bits=5.5)}


def parse_scheme(name: str) -> Scheme:
    """Returns the scheme called `name`. Raises UsageError that lists the known ones."""
    if name in MIXES:
        raise UsageError(
            f"scheme {name!r} allocates bits to a whole language model, it is no scheme of a single tensor"
        )
    if name not in SCHEMES:
        raise UsageError(f"unknown scheme {name!r}; known: {', '.join((*SCHEMES, *MIXES))}")
    return SCHEMES[name]


def parse_language_scheme(name: str) -> Scheme | MixScheme:
    """Returns the scheme or the mix called `name`. Raises UsageError that lists the known ones."""
    return MIXES[name] if name in MIXES else parse_scheme(name)


def for_width(scheme: Scheme, width: int) -> Scheme:
    """Returns `scheme` with a block that divides `width`, for tables whose rows must not be padded.

    An int8 block shrinks to the largest of 128, 64, 32; an int4 block halves down to 32. Raises UsageError when 32
    does not divide either.
    """
    block = scheme.block
    while block > 32 and width % block:
        block //= 2
    if block and width % block:
        raise UsageError(
            f"scheme {scheme.name} cannot store a table of width {width}: no block of 32 or more divides it; "
            "override the embedding with fp16"
        )
    return Scheme(scheme.kind, block, scheme.zero_point)


def linear_scheme(scheme: Scheme, width: int) -> Scheme:
    """Returns the scheme that a linear of `width` input features gets.

    `w8` means the block of 128, 64 or 32 that stores the fewest bytes: blocks of 128 would pad a width of 576 to 640.
    The others are taken as asked for.
    """
    if scheme.kind != "int8" or scheme.block != INT8_BLOCKS[0]:
        return scheme
    candidates = [Scheme("int8", block) for block in INT8_BLOCKS]
    return min(candidates, key=lambda s: padded(width, s.block) * s.bits_per_weight)


def padded(width: int, block: int) -> int:
    """Returns `width` rounded up to whole blocks."""
    return -(-width // block) * block if block else width


@dataclass(frozen=True)
class Quantised:
    """A weight [N, K] as codes and scales; W is about (codes - zero_points) * scales, block by block."""

    codes: NDArray[np.uint8]
    """(N, K_padded): one code per byte, 0..15 or 0..255; padding holds the zero point."""
    scales: NDArray[np.float32]
    """(N, n_blocks): fp16 values; may be negative (the signed full range)."""
    zero_points: NDArray[np.uint8] | None
    """(N, n_blocks); None means 8 (4 bits) or 128 (8 bits) everywhere."""
    scheme: Scheme
    in_features: int
    relative_rms: float
    """||W - W_q|| / ||W||; 0 for an all-zero weight."""


def quantise(weight: NDArray[np.float32], scheme: Scheme) -> Quantised:
    """Returns `weight` (N, K) quantised by the algorithm that the table names for `scheme`.

    Raises UsageError for a float scheme, a shape that is not 2-D and values that are not finite.
    """
    from export.quant import asymmetric, int8, symmetric

    algorithms = {
        ("int4", False): symmetric.quantise,
        ("int4", True): asymmetric.quantise,
        ("int8", False): int8.quantise,
    }
    algorithm = algorithms.get((scheme.kind, scheme.zero_point))
    if algorithm is None:
        raise UsageError(f"scheme {scheme.name} has no integer codes; it stores floats")
    if weight.ndim != 2:
        raise UsageError(f"only 2-D weights are quantised, found shape {weight.shape}")
    return algorithm(weight, scheme)


def dequantise(quantised: Quantised) -> NDArray[np.float32]:
    """Returns the float32 weight (N, K) that the codes stand for, computed as onnxruntime does."""
    rows, n_blocks = quantised.scales.shape
    zero: NDArray[np.float32] | float
    if quantised.zero_points is None:
        zero = float(1 << (quantised.scheme.bits - 1))
    else:
        zero = quantised.zero_points.astype(np.float32)[:, :, None]
    values = quantised.codes.reshape(rows, n_blocks, -1).astype(np.float32)
    values -= zero
    values *= quantised.scales[:, :, None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, : quantised.in_features])


def stored_weight(weight: NDArray[np.float32], scheme: Scheme) -> tuple[NDArray[np.float32], float]:
    """Returns `weight` after a round trip through `scheme` (any kind), and its relative RMS error."""
    if scheme.kind == "fp32":
        return weight, 0.0
    if scheme.kind == "fp16":
        rounded = weight.astype(np.float16).astype(np.float32)
        return rounded, relative_rms(weight, rounded)
    quantised = quantise(weight, scheme)
    return dequantise(quantised), quantised.relative_rms


def relative_rms(weight: NDArray[np.float32], approximation: NDArray[np.float32]) -> float:
    """Returns ||W - W_q|| / ||W||, summed in float64; 0 when W is all zero."""
    norm = float(np.sum(np.square(weight), dtype=np.float64))
    error = float(np.sum(np.square(weight - approximation), dtype=np.float64))
    return (error / norm) ** 0.5 if norm > 0 else 0.0
