"""What a machine can do at most: integer dot products on registers alone, and a sum over memory."""

from __future__ import annotations

from typing import Any

from tvm_schedules.dots import dot_function
from tvm_schedules.layouts import QUAD
from tvm_schedules.targets import Variant

SUMS = 12
"""Independent sums: enough to hide the latency of a dot product on every target."""
READ_RUN = 4096
"""Bytes of one run of `limit_read`."""


def limit_dots(variant: Variant) -> Any:
    """Builds the PrimFunc. C signature: (input u8*, out s32*, rounds): SUMS dot products of 4-bit codes a round."""
    from tvm import tirx
    from tvm.script import tirx as T

    dot, _ = dot_function(variant, 4)
    lanes = variant.lanes
    part_bytes = lanes * QUAD

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(input_ptr: T.ptr("uint8"), out_ptr: T.ptr("int32"), rounds: T.int32):
        T.func_attr({"tirx.noalias": True})
        IN = T.decl_buffer((2 * part_bytes,), "uint8", data=input_ptr)
        OUT = T.decl_buffer((SUMS * lanes,), "int32", data=out_ptr)
        sums = T.alloc_buffer((SUMS, lanes), "int32")
        for i in T.unroll(SUMS):
            sums[i, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
        for _round in T.serial(rounds):
            for i in T.unroll(SUMS):
                sums[i, T.ramp(0, 1, lanes)] = dot(
                    sums[i, T.ramp(0, 1, lanes)],
                    IN[T.ramp(0, 1, part_bytes)],
                    tirx.reinterpret(f"int8x{part_bytes}", IN[T.ramp(part_bytes, 1, part_bytes)]),
                )
        for i in T.unroll(SUMS):
            OUT[T.ramp(i * lanes, 1, lanes)] = sums[i, T.ramp(0, 1, lanes)]

    return kernel


def limit_read(variant: Variant) -> Any:
    """Builds the PrimFunc. C signature: (input u8*, out s32*, runs): adds up runs of READ_RUN bytes as int32."""
    from tvm.script import tirx as T

    lanes = variant.lanes
    sums_at_once = 8
    step = lanes * sums_at_once

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(input_ptr: T.ptr("int32"), out_ptr: T.ptr("int32"), runs: T.int32):
        T.func_attr({"tirx.noalias": True})
        IN = T.decl_buffer((runs * (READ_RUN // 4),), "int32", data=input_ptr)
        OUT = T.decl_buffer((step,), "int32", data=out_ptr)
        sums = T.alloc_buffer((sums_at_once, lanes), "int32")
        for i in T.unroll(sums_at_once):
            sums[i, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
        for j in T.serial(runs * (READ_RUN // 4 // step)):
            for i in T.unroll(sums_at_once):
                sums[i, T.ramp(0, 1, lanes)] = (
                    sums[i, T.ramp(0, 1, lanes)] + IN[T.ramp(j * step + i * lanes, 1, lanes)]
                )
        for i in T.unroll(sums_at_once):
            OUT[T.ramp(i * lanes, 1, lanes)] = sums[i, T.ramp(0, 1, lanes)]

    return kernel
