"""Rows of the embedding table as float, gathered from the packed codes that the tied head multiplies with."""

from __future__ import annotations

from typing import Any

from tvm_schedules.layouts import COLUMNS, ROW_LAYOUTS
from tvm_schedules.targets import Variant


def embed(variant: Variant, bits: int, group: int, zero_point: bool) -> Any:
    """Builds the PrimFunc.

    C signature: (w u8*, scales f16*, zeros u8*, ids s32*, y f32*, k, row_begin, row_end): y[row] = table[ids[row]],
    y (T, k). Ids are inside the table; the caller has checked.
    """
    from tvm.script import tirx as T

    length = ROW_LAYOUTS[variant.arch].run
    nibbles = 8 // bits
    middle = 1 << (bits - 1)
    sign = 128 if variant.arch == "arm64" and bits == 8 else 0
    """arm64 keeps 8-bit codes signed."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        w_ptr: T.ptr("uint8"), scales_ptr: T.ptr("float16"), zeros_ptr: T.ptr("uint8"), ids_ptr: T.ptr("int32"),
        y_ptr: T.ptr("float32"), k: T.int32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        W = T.decl_buffer((1 << 40,), "uint8", data=w_ptr)
        S = T.decl_buffer((1 << 40,), "float16", data=scales_ptr)
        Z = T.decl_buffer((1 << 40,), "uint8", data=zeros_ptr)
        IDS = T.decl_buffer((row_end,), "int32", data=ids_ptr)
        Y = T.decl_buffer((row_end * k,), "float32", data=y_ptr)
        for row in T.serial(row_begin, row_end):
            block: T.int64 = T.Cast("int64", IDS[row] // COLUMNS)
            lane: T.int64 = T.Cast("int64", IDS[row] % COLUMNS)
            for run in T.serial(k // length // nibbles):
                first: T.int64 = ((block * (k // length // nibbles) + run) * COLUMNS + lane) * length
                place: T.int64 = (block * (k // group) + run * nibbles * length // group) * COLUMNS + lane
                zero: T.int32 = T.Cast("int32", Z[place]) if zero_point else middle
                for half in T.unroll(nibbles):
                    for j in T.unroll(length):
                        Y[row * k + (run * nibbles + half) * length + j] = T.Cast(
                            "float32",
                            ((T.shift_right(T.Cast("int32", W[first + j]), half * 4) & ((1 << bits) - 1)) ^ sign)
                            - zero,
                        ) * T.Cast("float32", S[place])

    return kernel
