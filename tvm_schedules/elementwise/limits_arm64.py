"""`limits` for arm64: integer dot products on registers alone, with the instruction of the variant's GEMM."""

from __future__ import annotations

from typing import Any

from tvm_schedules.gemm.quad_dots import add_pairs, intrinsic, multiply, sdot, widen_pairs
from tvm_schedules.layouts import QUAD
from tvm_schedules.targets import Variant

SUMS = 12
"""Registers of sums."""


def products_per_step(variant: Variant) -> int:
    """Multiply-adds of one step of `limit_dots`."""
    return {"smmla": 32, "sdot": 16, "smull": 16}[variant.dot]


def limit_dots(variant: Variant) -> Any:
    """Builds the PrimFunc. C signature: (input s8*, out s32*, rounds).

    A round is as many products as `limits.limit_dots` has: SUMS * lanes * 4, in steps over SUMS registers. input (32,)
    is one register of weights and one of activations, which is xored with the round's number, so that no product can
    be taken out of the loop; out (SUMS, 4).
    """
    from tvm import tirx
    from tvm.script import tirx as T

    steps = variant.lanes * QUAD // products_per_step(variant)

    def step(acc: Any, w: Any, x: Any) -> Any:
        if variant.dot == "smmla":
            return intrinsic("int32x4", "smmla.v4i32.v16i8", acc, x, w)
        if variant.dot == "sdot":
            return sdot(acc, w, x)
        halves = []
        for half in range(2):
            lanes = [tirx.const(half * 8 + i, "int32") for i in range(8)]
            halves.append(widen_pairs(multiply(tirx.Shuffle([w], lanes), tirx.Shuffle([x], lanes))))
        return acc + add_pairs(*halves)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(input_ptr: T.ptr("int8"), out_ptr: T.ptr("int32"), rounds: T.int32):
        T.func_attr({"tirx.noalias": True})
        IN = T.decl_buffer((32,), "int8", data=input_ptr)
        OUT = T.decl_buffer((SUMS * 4,), "int32", data=out_ptr)
        sums = T.alloc_buffer((SUMS, 4), "int32")
        x = T.alloc_buffer((16,), "int8")
        for i in T.unroll(SUMS):
            sums[i, T.ramp(0, 1, 4)] = T.broadcast(0, 4)
        for turn in T.serial(rounds):
            x[T.ramp(0, 1, 16)] = IN[T.ramp(16, 1, 16)] ^ T.broadcast(T.Cast("int8", turn), 16)
            for _step in T.unroll(steps):
                for i in T.unroll(SUMS):
                    sums[i, T.ramp(0, 1, 4)] = step(
                        sums[i, T.ramp(0, 1, 4)], IN[T.ramp(0, 1, 16)], x[T.ramp(0, 1, 16)]
                    )
        for i in T.unroll(SUMS):
            OUT[T.ramp(i * 4, 1, 4)] = sums[i, T.ramp(0, 1, 4)]

    return kernel
