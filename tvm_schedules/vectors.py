"""Small expressions on vectors in registers that several kernels need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Expr = Any
Combine = Callable[[Expr, Expr], Expr]


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


def silu(x: Expr, lanes: int) -> Expr:
    """x / (1 + e^-x) of a float32 vector. The exponent is clamped at 87: silu(-87) is 0 to float32's last place."""
    from tvm import tirx

    one = tirx.Broadcast(tirx.const(1.0, "float32"), lanes)
    limit = tirx.Broadcast(tirx.const(87.0, "float32"), lanes)
    zero = tirx.Broadcast(tirx.const(0.0, "float32"), lanes)
    return x / (one + exp(tirx.min(zero - x, limit), lanes))
