"""Small expressions on vectors in registers that several kernels need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Expr = Any
Combine = Callable[[Expr, Expr], Expr]

EXP2_COEFFICIENTS = (0.999999191, 0.693121968, 0.240249811, 0.055917039, 0.009560510)
"""2^r on |r| <= 1/2, least squares of the relative error at Chebyshev nodes: 2.7e-6 at most."""


def halving_steps(lanes: int) -> list[int]:
    """Widths of the halving reduction of a vector of `lanes`: 16 → [8, 4, 2, 1]; a fixed order, so a fixed result."""
    steps = []
    while lanes > 1:
        lanes //= 2
        steps.append(lanes)
    return steps


def reduce_lanes(buffer: Any, lanes: int, combine: Combine) -> Any:
    """Statement that folds `buffer[0:lanes]` into `buffer[0]` by halves."""
    from tvm import tirx

    statements = []
    for width in halving_steps(lanes):
        low, high = (_slice(buffer, start, width) for start in (0, width))
        index = [tirx.Ramp(0, 1, width) if width > 1 else tirx.const(0, "int32")]
        statements.append(tirx.BufferStore(buffer, combine(low, high), index))
    return tirx.SeqStmt(statements)


def _slice(buffer: Any, start: int, width: int) -> Any:
    from tvm import tirx

    index = tirx.Ramp(start, 1, width) if width > 1 else tirx.const(start, "int32")
    return tirx.BufferLoad(buffer, [index])


def exp(x: Expr, lanes: int) -> Expr:
    """e^x of a float32 vector for x <= 88, within 2 units in the last place; below -87 the result is about 1e-38.

    Own polynomial, so that every machine and thread count gives the same bits and no library is called: x is split as
    n ln 2 + r (ln 2 in two parts), e^r is a degree-6 polynomial on |r| <= ln 2 / 2, 2^n is built in the exponent.
    """
    from tvm import tirx

    def splat(value: float) -> Expr:
        return tirx.Broadcast(tirx.const(value, "float32"), lanes)

    clamped = tirx.max(x, splat(-87.0))
    n = tirx.nearbyint(clamped * splat(1.4426950408889634))
    r = clamped - n * splat(0.693359375)
    r = r - n * splat(-2.12194440e-4)
    polynomial = splat(1.0 / 720)
    for coefficient in (1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        polynomial = polynomial * r + splat(coefficient)
    exponent = tirx.Cast(f"int32x{lanes}", n) + tirx.Broadcast(tirx.const(127, "int32"), lanes)
    shifted = tirx.shift_left(exponent, tirx.Broadcast(tirx.const(23, "int32"), lanes))
    power = tirx.reinterpret(f"float32x{lanes}", shifted)
    return polynomial * power


def half_as_float(x: Expr, lanes: int) -> Expr:
    """float32 of non-negative float16 values (scales) where no instruction converts them; exact, subnormal ones too.

    The bits moved to float32's places are the value times 2^-112.
    """
    from tvm import tirx

    def splat(value: Expr) -> Expr:
        return tirx.Broadcast(value, lanes) if lanes > 1 else value

    kind = f"x{lanes}" if lanes > 1 else ""
    bits = tirx.Cast(f"uint32{kind}", tirx.reinterpret(f"uint16{kind}", x))
    moved = tirx.reinterpret(f"float32{kind}", tirx.shift_left(bits, splat(tirx.const(13, "uint32"))))
    return moved * splat(tirx.const(2.0**112, "float32"))


def silu(x: Expr, lanes: int) -> Expr:
    """x / (1 + e^-x) of a float32 vector. The exponent is clamped at 87: silu(-87) is 0 to float32's last place."""
    from tvm import tirx

    one = tirx.Broadcast(tirx.const(1.0, "float32"), lanes)
    limit = tirx.Broadcast(tirx.const(87.0, "float32"), lanes)
    zero = tirx.Broadcast(tirx.const(0.0, "float32"), lanes)
    return x / (one + exp(tirx.min(zero - x, limit), lanes))


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) of a float32 vector, written as x / (1 + e^-2y)."""
    from tvm import tirx

    def splat(value: float) -> Expr:
        return tirx.Broadcast(tirx.const(value, "float32"), lanes)

    y2 = x * (splat(2 * 0.7978845608028654) + splat(2 * 0.7978845608028654 * 0.044715) * x * x)
    return x / (splat(1.0) + exp(tirx.min(splat(0.0) - y2, splat(87.0)), lanes))


def gelu_erf(x: Expr, lanes: int) -> Expr:
    """0.5 x (1 + erf(x / sqrt 2)) of a float32 vector, within 5e-7 of max(1, |x|).

    erfc(z) = t(z) e^(-z^2) with t of Abramowitz and Stegun 7.1.26 is off by 1.5e-7 at most.
    """
    from tvm import tirx

    def splat(value: float) -> Expr:
        return tirx.Broadcast(tirx.const(value, "float32"), lanes)

    zero = splat(0.0)
    z = tirx.max(x, zero - x) * splat(0.7071067811865476)
    t = splat(1.0) / (splat(1.0) + splat(0.3275911) * z)
    polynomial = splat(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = polynomial * t + splat(coefficient)
    half_tail = splat(0.5) * x * (polynomial * t * exp(zero - z * z, lanes))
    return tirx.Select(x < zero, half_tail, x - half_tail)


def exp2_rough(x: Expr, lanes: int) -> Expr:
    """2^x of a float32 vector for x <= 0, within 4e-6 of the result: enough for what becomes an 8-bit code.

    Below -126 the result is about 1e-38. The degree-4 polynomial was fitted to 2^r on |r| <= 1/2.
    """
    from tvm import tirx

    def splat(value: float) -> Expr:
        return tirx.Broadcast(tirx.const(value, "float32"), lanes)

    clamped = tirx.max(x, splat(-126.0))
    # 1.5 * 2^23 leaves the nearest integer in the lowest bits: no conversion, and additions have ports of their own.
    # The detour over integers keeps TVM from simplifying (x + c) - c to x.
    shifter = splat(12582912.0)
    ints = f"int32x{lanes}"
    shifted = tirx.reinterpret(ints, clamped + shifter)
    r = clamped - (tirx.reinterpret(f"float32x{lanes}", shifted) - shifter)
    polynomial = splat(EXP2_COEFFICIENTS[4])
    for coefficient in reversed(EXP2_COEFFICIENTS[:4]):
        polynomial = polynomial * r + splat(coefficient)
    exponent = tirx.shift_left(shifted, tirx.Broadcast(tirx.const(23, "int32"), lanes))
    return tirx.reinterpret(f"float32x{lanes}", tirx.reinterpret(ints, polynomial) + exponent)


def horizontal(x: Expr, lanes: int, combine: Combine) -> Expr:
    """The lanes of a vector combined into one value in registers, by halves."""
    from tvm import tirx

    for width in halving_steps(lanes):
        low, high = ([tirx.const(start + i, "int32") for i in range(width)] for start in (0, width))
        x = combine(tirx.Shuffle([x], low), tirx.Shuffle([x], high))
    return x
