"""What the arm64 GEMMs of several rows share: statements that fill a panel, multiply a group, scale and put in order.

A panel holds one block of 16 columns over PANEL_K k, in the order of the variant's instruction (`quad_dots`), with the
block's scales spread over the lanes of the accumulators. All row tiles read it; their float sums are carried from one
panel to the next.

An integer accumulator begins at MAGIC, so that one float subtraction converts it: `scvtf` takes two cycles of the two
pipes that have it, a subtraction one of any pipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_schedules.gemm.quad_dots import PAIR_BYTES, QUAD, TileDots, codes, shuffle
from tvm_schedules.layouts import COLUMNS, MAGIC

Expr = Any
QUADS = COLUMNS // QUAD
PANEL_K = 512
"""k of one panel: 8 kB of bytes and 2-4 kB of scales stay in the first-level cache beside 128 rows' sums."""
PANEL_ROWS = 128
MAGIC_FLOAT = 12582912.0


def sequence(statements: list[Expr]) -> Expr:
    """One statement of several, or the only one itself."""
    from tvm import tirx

    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def splat4(value: Expr) -> Expr:
    """The value in four lanes."""
    from tvm import tirx

    return tirx.Broadcast(value, 4)


def as_float(total: Expr) -> Expr:
    """The float value of an accumulator that began at MAGIC."""
    from tvm import tirx

    return tirx.reinterpret("float32x4", total) - splat4(tirx.const(MAGIC_FLOAT, "float32"))


def from_middle(zeros: Expr) -> Expr:
    """8 - zero point: what the sum of x is to be multiplied with, since accumulators begin at -8 of it."""
    from tvm import tirx

    return splat4(tirx.const(8, "int32")) - tirx.Cast("int32x4", zeros)


def to_float(scales: Expr) -> Expr:
    """fp16 scales as float32."""
    from tvm import tirx

    return tirx.Cast("float32x4", scales)


@dataclass(frozen=True)
class Panel:
    """Sizes of a kernel's buffers, and the statements of its loops."""

    form: TileDots
    bits: int
    group: int
    zero_point: bool = False

    @property
    def nibbles(self) -> int:
        return 8 // self.bits

    @property
    def groups(self) -> int:
        """Groups of one panel."""
        return PANEL_K // self.group

    @property
    def quad_bytes(self) -> int:
        return PANEL_K * QUAD

    @property
    def scale_step(self) -> int:
        """Floats of a quad's scales of one group."""
        return len(self.form.scale_lanes) * 4

    @property
    def quad_scales(self) -> int:
        return self.groups * self.scale_step

    @property
    def batch_tiles(self) -> int:
        """Row tiles whose sums are carried together."""
        return PANEL_ROWS // self.form.rows

    @property
    def quad_sums(self) -> int:
        """Floats of the accumulators of one tile of rows x 4 columns."""
        return self.form.accumulators * 4

    def unpack(self, packed: Expr, packed_base: Expr, panel: Expr, panel_base: Expr) -> Expr:
        """Unpacks one run of one quad of columns."""
        from tvm import tirx

        raw = [packed.vload([packed_base + pair * PAIR_BYTES], "uint8x16") for pair in range(2)]
        statements = []
        for half in range(self.nibbles):
            for index, vector in enumerate(self.form.unpacked([codes(pair, self.bits, half, 16) for pair in raw])):
                place = panel_base + (half * 2 + index) * PAIR_BYTES
                statements.append(tirx.BufferStore(panel, vector, [tirx.Ramp(place, 1, 16)]))
        return sequence(statements)

    def spread(self, source: Expr, source_base: Expr, target: Expr, target_base: Expr, convert: Any) -> Expr:
        """Spreads one value per column over the lanes of the accumulators' scale vectors."""
        from tvm import tirx

        value = convert(source.vload([source_base], f"{source.dtype}x4"))
        return sequence([
            tirx.BufferStore(target, shuffle([value], list(lanes)), [tirx.Ramp(target_base + index * 4, 1, 4)])
            for index, lanes in enumerate(self.form.scale_lanes)
        ])  # fmt: skip

    def begin(self, dots: Expr, sums: Expr, sums_base: Expr, zeros: Expr, zeros_base: Expr) -> Expr:
        """Sets the accumulators to their first values."""
        from tvm import tirx

        statements = []
        for a in range(self.form.accumulators):
            value = splat4(tirx.const(MAGIC, "int32"))
            if self.bits == 4:
                value = self.form.row_values(sums, sums_base, a)
            if self.zero_point:
                eightfold = splat4(tirx.const(MAGIC, "int32")) - self.form.row_values(sums, sums_base, a)
                middle = zeros.vload([zeros_base + self.form.scale_vector(a) * 4], "int32x4")
                value = value + tirx.shift_right(eightfold * middle, splat4(tirx.const(3, "int32")))
            statements.append(tirx.BufferStore(dots, value, [tirx.Ramp(a * 4, 1, 4)]))
        return sequence(statements)

    def multiply(self, dots: Expr, panel: Expr, panel_base: Expr, x: Expr, x_base: Expr) -> Expr:
        """Adds the products of one group."""
        from tvm import tirx

        return sequence([
            tirx.BufferStore(dots, update(dots.vload([a * 4], "int32x4")), [tirx.Ramp(a * 4, 1, 4)])
            for a, update in self.form.steps(panel, panel_base, x, x_base, self.group)
        ])  # fmt: skip

    def add_scaled(self, total: Expr, dots: Expr, scales: Expr, scales_base: Expr, x_scales: Expr, base: Expr) -> Expr:
        """Adds the group's products times both scales to the float sums."""
        from tvm import tirx

        statements = []
        for a in range(self.form.accumulators):
            scale = scales.vload([scales_base + self.form.scale_vector(a) * 4], "float32x4")
            value = as_float(dots.vload([a * 4], "int32x4")) * (scale * self.form.row_values(x_scales, base, a))
            old = total.vload([a * 4], "float32x4")
            statements.append(tirx.BufferStore(total, old + value, [tirx.Ramp(a * 4, 1, 4)]))
        return sequence(statements)

    def to_row(self, carry: Expr, carry_base: Expr, line: Expr, line_base: Expr, row: Expr) -> Expr:
        """Moves a row's 4 columns from the accumulators' order to `line`."""
        from tvm import tirx

        return sequence([
            tirx.BufferStore(line, carry.vload([carry_base + place], f"float32x{width}"),
                             [tirx.Ramp(line_base + column, 1, width)])
            for place, column, width in self.form.pieces(row)
        ])  # fmt: skip

    def from_row(self, bias: Expr | None, bias_base: Expr, carry: Expr, carry_base: Expr, row: Expr) -> Expr:
        """Starts a row's 4 columns, in the accumulators' order, at the bias or at 0."""
        from tvm import tirx

        statements = []
        for place, column, width in self.form.pieces(row):
            dtype = f"float32x{width}"
            zero = tirx.Broadcast(tirx.const(0.0, "float32"), width)
            value = zero if bias is None else bias.vload([bias_base + column], dtype)
            statements.append(tirx.BufferStore(carry, value, [tirx.Ramp(carry_base + place, 1, width)]))
        return sequence(statements)
