"""Integer dot products of an arm64 register tile: a few rows by a quad of 4 columns over one group of k.

A *panel* is what a GEMM tile reads instead of the packed weights: the codes of one block of 16 columns as bytes, in the
order of the variant's instruction, unpacked once for all rows. Activations are (K/8, rows, 8), so that 16 bytes are 2
rows x 8 k. `Smmla` sums 2 rows x 2 columns per register, `Sdot` and `Smull` one row x 4 columns. Every form leaves
exact integers, so that all give the same result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from tvm_schedules.layouts import COLUMNS, EIGHT
from tvm_schedules.targets import Variant

Expr = Any
Step = tuple[int, Callable[[Expr], Expr]]
"""An accumulator's number, and its new value as a function of the old one. Steps come in the order of the code."""
QUAD = 4
"""Columns of a register tile."""
RUN_BYTES = COLUMNS * EIGHT
"""Bytes of one run of the weight layout."""
PAIR_BYTES = 2 * EIGHT


def shuffle(vectors: list[Expr], lanes: list[int]) -> Expr:
    """The lanes of the concatenated vectors, in that order."""
    from tvm import tirx

    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])


def splat_lane(vector: Expr, lane: int) -> Expr:
    """One lane of four, four times."""
    return shuffle([vector], [lane] * 4)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """A call of llvm.aarch64.neon.`name`."""
    from tvm import tirx

    return tirx.call_llvm_pure_intrin(dtype, f"llvm.aarch64.neon.{name}", *arguments)


def sdot(acc: Expr, w: Expr, x: Expr) -> Expr:
    """Each int32 lane plus its 4 products of bytes."""
    return intrinsic("int32x4", "sdot.v4i32.v16i8", acc, w, x)


def add_pairs(low: Expr, high: Expr) -> Expr:
    """Sums of neighbouring int32 lanes of low, then of high."""
    return intrinsic("int32x4", "addp.v4i32", low, high)


def widen_pairs(products: Expr) -> Expr:
    """Sums of neighbouring int16 lanes as int32."""
    return intrinsic("int32x4", "saddlp.v4i32.v8i16", products)


def multiply(w: Expr, x: Expr) -> Expr:
    """int8x8 times int8x8 as int16x8."""
    from tvm import tirx

    return tirx.Cast("int16x8", w) * tirx.Cast("int16x8", x)


def codes(raw: Expr, bits: int, half: int, lanes: int) -> Expr:
    """Signed bytes of packed codes: of 4-bit codes one half, 0..15; 8-bit codes are stored signed."""
    from tvm import tirx

    if bits == 8:
        return tirx.reinterpret(f"int8x{lanes}", raw)
    if half == 0:
        return tirx.reinterpret(f"int8x{lanes}", raw & tirx.Broadcast(tirx.const(15, "uint8"), lanes))
    return tirx.reinterpret(f"int8x{lanes}", tirx.shift_right(raw, tirx.Broadcast(tirx.const(4, "uint8"), lanes)))


@dataclass(frozen=True)
class RowDots:
    """Register tile of `rows` rows by 4 columns with one accumulator per row: {c0, c1, c2, c3}."""

    rows: int
    bits: int
    scale_lanes: ClassVar[tuple[tuple[int, ...], ...]] = ((0, 1, 2, 3),)
    """Which columns the lanes of each scale vector belong to."""

    @property
    def accumulators(self) -> int:
        return self.rows

    def scale_vector(self, accumulator: int) -> int:
        """Which of the `scale_lanes` vectors an accumulator is scaled with."""
        del accumulator
        return 0

    def row_values(self, values: Expr, base: Expr, accumulator: int) -> Expr:
        """The accumulator's rows of a (rows, 2) array at `base`, lane by lane."""
        pair = values.vload([base + accumulator // 2 * 4], f"{values.dtype}x4")
        return splat_lane(pair, accumulator % 2 * 2)

    def pieces(self, row: Expr) -> list[tuple[Expr, int, int]]:
        """Where a row's 4 columns lie in the tile's accumulators: (offset, first column, width)."""
        return [(row * QUAD, 0, QUAD)]


@dataclass(frozen=True)
class Sdot(RowDots):
    """Panel: (quads of columns, K/4, 4 columns, 4 k)."""

    def unpacked(self, packed: list[Expr]) -> list[Expr]:
        """Panel vectors of one quad, from its two registers of 2 columns x 8 k: k 0..3, then k 4..7."""
        from tvm import tirx

        low, high = (tirx.reinterpret("int32x4", vector) for vector in packed)
        both = (shuffle([low, high], [0, 2, 4, 6]), shuffle([low, high], [1, 3, 5, 7]))
        return [tirx.reinterpret("int8x16", vector) for vector in both]

    def steps(self, panel: Expr, panel_base: Expr, x: Expr, x_base: Expr, group: int) -> Iterator[Step]:
        """One group's products; the panel and x begin at the group."""
        for step in range(group // EIGHT):
            for half in range(2):
                w = panel.vload([panel_base + (step * 2 + half) * 16], "int8x16")
                for row in range(self.rows):
                    rows = x.vload([x_base + (step * self.rows + row // 2 * 2) * EIGHT], "int8x16")
                    yield row, partial(_sdot_lane, w=w, rows=rows, lane=row % 2 * 2 + half)


def _sdot_lane(acc: Expr, w: Expr, rows: Expr, lane: int) -> Expr:
    from tvm import tirx

    return sdot(acc, w, tirx.reinterpret("int8x16", splat_lane(tirx.reinterpret("int32x4", rows), lane)))


@dataclass(frozen=True)
class Smull(RowDots):
    """Panel: (quads of columns, K/8, 4 columns, 8 k). Products are summed in 16 bits while they cannot overflow."""

    def unpacked(self, packed: list[Expr]) -> list[Expr]:
        return packed

    def steps(self, panel: Expr, panel_base: Expr, x: Expr, x_base: Expr, group: int) -> Iterator[Step]:
        """One group's products; the panel and x begin at the group."""
        for row in range(self.rows):
            columns = [
                column_sum(
                    [panel.vload([panel_base + (step * QUAD + column) * EIGHT], "int8x8")
                     for step in range(group // EIGHT)],
                    [x.vload([x_base + (step * self.rows + row) * EIGHT], "int8x8") for step in range(group // EIGHT)],
                    self.bits,
                )
                for column in range(QUAD)
            ]
            yield row, partial(operator.add, add_pairs(add_pairs(*columns[:2]), add_pairs(*columns[2:])))


def column_sum(w: list[Expr], x: list[Expr], bits: int) -> Expr:
    """Four partial sums (int32x4) of one column's products.

    16 products of 4-bit codes are at most 16 * 15 * 127 = 30480 and two of 8-bit codes 2 * 128 * 127 = 32512, so that
    many are summed in 16 bits.
    """
    at_once = 16 if bits == 4 else 2
    total = None
    for begin in range(0, len(w), at_once):
        products = multiply(w[begin], x[begin])
        for a, b in zip(w[begin + 1 : begin + at_once], x[begin + 1 : begin + at_once], strict=True):
            products = products + multiply(a, b)
        total = widen_pairs(products) if total is None else total + widen_pairs(products)
    return total


@dataclass(frozen=True)
class Smmla:
    """Register tile of `rows` rows by 4 columns, one accumulator per 2 x 2: {r0 c0, r0 c1, r1 c0, r1 c1}.

    Panel: (quads of columns, K/8, 4 columns, 8 k).
    """

    rows: int
    bits: int
    scale_lanes: ClassVar[tuple[tuple[int, ...], ...]] = ((0, 1, 0, 1), (2, 3, 2, 3))

    @property
    def accumulators(self) -> int:
        return self.rows

    def scale_vector(self, accumulator: int) -> int:
        """Which of the `scale_lanes` vectors an accumulator is scaled with."""
        return accumulator % 2

    def row_values(self, values: Expr, base: Expr, accumulator: int) -> Expr:
        """The accumulator's rows of a (rows, 2) array at `base`, lane by lane."""
        return values.vload([base + accumulator // 2 * 4], f"{values.dtype}x4")

    def pieces(self, row: Expr) -> list[tuple[Expr, int, int]]:
        """Where a row's 4 columns lie in the tile's accumulators: (offset, first column, width)."""
        base = row // 2 * 2 * QUAD + row % 2 * 2
        return [(base, 0, 2), (base + QUAD, 2, 2)]

    def unpacked(self, packed: list[Expr]) -> list[Expr]:
        """Panel vectors of one quad: its two registers of 2 columns x 8 k as they are."""
        return packed

    def steps(self, panel: Expr, panel_base: Expr, x: Expr, x_base: Expr, group: int) -> Iterator[Step]:
        """One group's products; the panel and x begin at the group."""
        for step in range(group // EIGHT):
            w = [panel.vload([panel_base + (step * 2 + pair) * PAIR_BYTES], "int8x16") for pair in range(2)]
            for row in range(0, self.rows, 2):
                rows = x.vload([x_base + (step * self.rows + row) * EIGHT], "int8x16")
                for pair in range(2):
                    yield row + pair, partial(_smmla, rows=rows, w=w[pair])


def _smmla(acc: Expr, rows: Expr, w: Expr) -> Expr:
    return intrinsic("int32x4", "smmla.v4i32.v16i8", acc, rows, w)


TileDots = Sdot | Smull | Smmla


def tile_dots(variant: Variant, rows: int, bits: int) -> TileDots:
    """The form of a variant's GEMM tile."""
    forms: dict[str, type[TileDots]] = {"smmla": Smmla, "sdot": Sdot, "smull": Smull}
    return forms[variant.dot](rows, bits)
