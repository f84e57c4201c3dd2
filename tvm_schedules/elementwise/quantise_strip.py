"""A strip of four float rows to int8 codes in a linear's order: what a GELU leaves, before it leaves the cache.

The same codes, scales and sums as `quantise_rows`; with the rows of a whole register tile at hand a vector of each row
is transposed in registers and stored at once, where a single row must be stored four bytes at a time.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm_schedules.layouts import QUAD
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import horizontal

ROWS = 4


def quantise_strip(variant: Variant, group: int) -> Any:
    """Builds the PrimFunc.

    C signature: that of `quantise_rows`, for tile_rows = 4 and rows [0, 4): (x f32*, gamma, beta, codes s8*, scales
    f32*, sums s32*, k, tile_rows, eps, row_begin, row_end), with x (4, k), codes (k/4, 4, 4), scales and sums
    (k/group, 4). The arguments that are not described are not read.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = variant.lanes
    vectors = group // lanes
    quads = lanes // QUAD

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def transposed(rows: list[Any]) -> Any:
        """Bytes of a vector of each row, (4, lanes), as (lanes / 4, 4, 4)."""
        words = [tirx.reinterpret(f"int32x{quads}", row) for row in rows]
        order = [tirx.const(row * quads + quad, "int32") for quad in range(quads) for row in range(ROWS)]
        return tirx.reinterpret(f"int8x{ROWS * lanes}", tirx.Shuffle(words, order))

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        x_ptr: T.ptr("float32"), gamma_ptr: T.ptr("float32"), beta_ptr: T.ptr("float32"), codes_ptr: T.ptr("int8"),
        scales_ptr: T.ptr("float32"), sums_ptr: T.ptr("int32"),
        k: T.int32, tile_rows: T.int32, eps: T.float32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        X = T.decl_buffer((ROWS * k,), "float32", data=x_ptr)
        CODES = T.decl_buffer((ROWS * k,), "int8", data=codes_ptr)
        SCALES = T.decl_buffer((ROWS * (k // group),), "float32", data=scales_ptr)
        SUMS = T.decl_buffer((ROWS * (k // group),), "int32", data=sums_ptr)
        codes = T.alloc_buffer((vectors, ROWS, lanes), "int8")
        fold = T.alloc_buffer((lanes,), "float32")
        value = T.alloc_buffer((lanes,), "float32")
        fold_int = T.alloc_buffer((lanes,), "int32")
        for g in T.serial(k // group):
            for r in T.unroll(ROWS):
                fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for v in T.unroll(vectors):
                    fold[T.ramp(0, 1, lanes)] = T.max(
                        fold[T.ramp(0, 1, lanes)], T.abs(X[T.ramp(r * k + g * group + v * lanes, 1, lanes)])
                    )
                largest: T.float32 = horizontal(fold[T.ramp(0, 1, lanes)], lanes, tirx.max)
                SCALES[g * ROWS + r] = largest / T.float32(127)
                inverse: T.float32 = T.if_then_else(largest > T.float32(0), T.float32(127) / largest, T.float32(0))
                fold_int[T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
                for v in T.unroll(vectors):
                    value[T.ramp(0, 1, lanes)] = T.nearbyint(
                        X[T.ramp(r * k + g * group + v * lanes, 1, lanes)] * splat(inverse)
                    )
                    fold_int[T.ramp(0, 1, lanes)] = fold_int[T.ramp(0, 1, lanes)] + T.Cast(
                        f"int32x{lanes}", value[T.ramp(0, 1, lanes)]
                    )
                    codes[v, r, T.ramp(0, 1, lanes)] = T.Cast(f"int8x{lanes}", value[T.ramp(0, 1, lanes)])
                SUMS[g * ROWS + r] = horizontal(fold_int[T.ramp(0, 1, lanes)], lanes, operator.add)
            for v in T.unroll(vectors):
                CODES[T.ramp((g * group + v * lanes) * ROWS, 1, ROWS * lanes)] = transposed(
                    [codes[v, 0, T.ramp(0, 1, lanes)], codes[v, 1, T.ramp(0, 1, lanes)],
                     codes[v, 2, T.ramp(0, 1, lanes)], codes[v, 3, T.ramp(0, 1, lanes)]]
                )

    return kernel
