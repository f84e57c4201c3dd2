"""The integer dot product of each variant, as an expression: the only place that names machine instructions.

`dot(acc, w, x)`: int32 lanes `acc` + sum over 4 consecutive k of unsigned weight codes `w` times signed activation
codes `x`. `bits` tells how large a weight code may be: without VNNI the 16-bit intermediate holds 4-bit codes exactly,
8-bit codes need their sign moved to the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_schedules.targets import Variant

Expr = Any
DotFunction = Callable[[Expr, Expr, Expr], Expr]


def dot_function(variant: Variant, bits: int) -> tuple[DotFunction, int]:
    """Returns the dot product and the code offset that it leaves to the caller.

    The caller subtracts offset * sum(x) (8 or 128 for symmetric codes); 0 means that the function centred the codes.
    """
    table: dict[tuple[str, int], tuple[DotFunction, int]] = {
        ("vpdpbusd512", 4): (_vpdpbusd(16), 8),
        ("vpdpbusd512", 8): (_vpdpbusd(16), 128),
        ("vpdpbusd256", 4): (_vpdpbusd(8), 8),
        ("vpdpbusd256", 8): (_vpdpbusd(8), 128),
        ("maddubs256", 4): (_maddubs, 8),
        ("maddubs256", 8): (_maddubs_signed, 0),
        ("smmla", 4): (_arm64_dot(_sdot), 8),
        ("smmla", 8): (_arm64_dot(_sdot, centre=True), 0),
        ("sdot", 4): (_arm64_dot(_sdot), 8),
        ("sdot", 8): (_arm64_dot(_sdot, centre=True), 0),
        ("smull", 4): (_arm64_dot(_smull), 8),
        ("smull", 8): (_arm64_dot(_smull, centre=True), 0),
        ("vrmpy", 4): (_vrmpy, 8),
        ("vrmpy", 8): (_vrmpy, 128),
    }
    return table[variant.dot, bits]


def _vpdpbusd(lanes: int) -> DotFunction:
    from tvm import tirx

    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"

    def dot(acc: Expr, w: Expr, x: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, tirx.reinterpret(f"int8x{lanes * 4}", w), x)

    return dot


def _vrmpy(acc: Expr, w: Expr, x: Expr) -> Expr:
    """HVX takes the four activations from a scalar register: `x` is their int32."""
    from tvm import tirx

    name = "llvm.hexagon.V6.vrmpybus.acc.128B"
    return tirx.call_llvm_pure_intrin("int32x32", name, acc, tirx.reinterpret("int32x32", w), x)


def _madd_pairs(w: Expr, x: Expr) -> Expr:
    from tvm import tirx

    pairs = tirx.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", tirx.reinterpret("int8x32", w), x)
    ones = tirx.Broadcast(tirx.const(1, "int16"), 16)
    return tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)


def _maddubs(acc: Expr, w: Expr, x: Expr) -> Expr:
    return acc + _madd_pairs(w, x)


def _maddubs_signed(acc: Expr, w: Expr, x: Expr) -> Expr:
    """|w - 128| times x with the sign of w: at most 128 * 127 * 2 = 32512 in the 16-bit intermediate."""
    from tvm import tirx

    signed = tirx.reinterpret("int8x32", w ^ tirx.Broadcast(tirx.const(128, "uint8"), 32))
    zero = tirx.Broadcast(tirx.const(0, "int8"), 32)
    negative = signed < zero
    magnitude = tirx.Select(negative, zero - signed, signed)
    return acc + _madd_pairs(magnitude, tirx.Select(negative, zero - x, x))


SHORT_K = 32
"""Consecutive k whose products of 4-bit codes sum up in 16 bits: 16 pairs of at most 2 * 15 * 127, 30480 in all."""


def short_dot(variant: Variant, bits: int) -> tuple[DotFunction, DotFunction] | None:
    """Returns `add(acc16, w, x)` and `fold(acc32, acc16, ones)` where sums of SHORT_K in 16 bits are cheaper, or None.

    Without VNNI a dot product is two multiplications; summing the first one's 16-bit pairs leaves the second to once a
    run of SHORT_K.
    """
    return (_maddubs_pairs, _fold_pairs) if (variant.dot, bits) == ("maddubs256", 4) else None


def _maddubs_pairs(acc: Expr, w: Expr, x: Expr) -> Expr:
    from tvm import tirx

    return acc + tirx.call_llvm_pure_intrin(
        "int16x16", "llvm.x86.avx2.pmadd.ub.sw", tirx.reinterpret("int8x32", w), x
    )


def _fold_pairs(acc: Expr, pairs: Expr, ones: Expr) -> Expr:
    from tvm import tirx

    return acc + tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)


def _lanes(vectors: list[Expr], begin: int, end: int) -> Expr:
    from tvm import tirx

    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in range(begin, end)])


def _arm64_dot(dot: DotFunction, *, centre: bool = False) -> DotFunction:
    """Sixteen lanes as four registers. Codes below 128 are signed as they are; `centre` makes others so."""
    from tvm import tirx

    def four(acc: Expr, w: Expr, x: Expr) -> Expr:
        if centre:
            w = w ^ tirx.Broadcast(tirx.const(128, "uint8"), 64)
        w, x = tirx.reinterpret("int8x64", w), tirx.reinterpret("int8x64", x)
        quarters = [
            dot(_lanes([acc], 4 * i, 4 * i + 4), _lanes([w], 16 * i, 16 * i + 16), _lanes([x], 16 * i, 16 * i + 16))
            for i in range(4)
        ]
        return _lanes(quarters, 0, 16)

    return four


def _sdot(acc: Expr, w: Expr, x: Expr) -> Expr:
    from tvm import tirx

    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, w, x)


def _smull(acc: Expr, w: Expr, x: Expr) -> Expr:
    """Products of 8 bits fit 16; they are added in pairs, and the pairs in pairs."""
    from tvm import tirx

    pairs = []
    for half in range(2):
        a, b = (tirx.Cast("int16x8", _lanes([v], 8 * half, 8 * half + 8)) for v in (w, x))
        pairs.append(tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", a * b))
    return acc + tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", *pairs)


PairDot = Callable[[Expr, Expr, Expr, list[Expr]], Expr]


def pair_dot(variant: Variant) -> PairDot:
    """Returns `dot(acc, a, b, b_index)`.

    int32 lanes `acc` + the products of the two int16 neighbours of each lane of `a` with the two int16 at `b_index` of
    the buffer `b`, summed.
    """
    table: dict[str, DotFunction] = {
        "vpdpbusd512": _vpdpwssd(16),
        "vpdpbusd256": _vpdpwssd(8),
        "maddubs256": _pmaddwd,
    }
    return _multiply_pairs if variant.arch == "arm64" else _with_broadcast_pair(table[variant.dot], variant.lanes)


def _with_broadcast_pair(dot: DotFunction, lanes: int) -> PairDot:
    from tvm import tirx

    def paired(acc: Expr, a: Expr, b: Expr, b_index: list[Expr]) -> Expr:
        both = tirx.reinterpret("int32", b.vload(b_index, "int16x2"))
        return dot(acc, a, tirx.reinterpret(f"int16x{2 * lanes}", tirx.Broadcast(both, lanes)))

    return paired


def _multiply_pairs(acc: Expr, a: Expr, b: Expr, b_index: list[Expr]) -> Expr:
    """NEON has no such instruction: even and odd neighbours apart, each times its int16 in `smlal`."""
    from tvm import tirx

    for neighbour in range(2):
        chosen = tirx.Shuffle([a], [tirx.const(lane, "int32") for lane in range(neighbour, 32, 2)])
        value = b.vload([*b_index[:-1], b_index[-1] + neighbour], "int16")
        acc = acc + tirx.Cast("int32x16", chosen) * tirx.Cast("int32x16", tirx.Broadcast(value, 16))
    return acc


def _vpdpwssd(lanes: int) -> DotFunction:
    from tvm import tirx

    name = f"llvm.x86.avx512.vpdpwssd.{lanes * 32}"

    def dot(acc: Expr, a: Expr, b: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, a, b)

    return dot


def _pmaddwd(acc: Expr, a: Expr, b: Expr) -> Expr:
    from tvm import tirx

    return acc + tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", a, b)
