"""Rows of float activations to int8 codes in a GEMM's order, optionally through RMSNorm or LayerNorm on the way.

Each (row, group) gets scale = max|v| / 127, codes rint(v / scale) and the sum of its codes; a group of zeros gets
scale 0. Rows are independent: [row_begin, row_end) is the caller's share.
"""

from __future__ import annotations

import operator
from typing import Any, Literal

from tvm_schedules.layouts import ROW_LAYOUTS
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import reduce_lanes

Norm = Literal["none", "rms", "layer"]


def quantise_rows(variant: Variant, group: int, norm: Norm) -> Any:
    """Builds the PrimFunc.

    C signature: (x f32*, gamma f32*, beta f32*, codes s8*, scales f32*, sums s32*, k, tile_rows, eps, row_begin,
    row_end), with x (T, k), gamma and beta (k,) read as the norm needs; codes, scales and sums as `RowLayout` says.
    Rows of the last tile that have no x must be cleared by the caller once.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = variant.lanes
    layout = ROW_LAYOUTS[variant.arch]
    run, copies = layout.run, layout.copies
    vectors = group // lanes
    vector = f"float32x{lanes}"
    normalised = norm != "none"
    centred = norm == "layer"

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def value(x: Any, gamma: Any, beta: Any, row_offset: Any, column: Any, mean: Any, inverse: Any) -> Any:
        raw = x.vload([row_offset + column], vector)
        if not normalised:
            return raw
        if centred:
            raw = raw - splat(mean)
        scaled = raw * splat(inverse) * gamma.vload([column], vector)
        return scaled + beta.vload([column], vector) if centred else scaled

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        x_ptr: T.ptr("float32"), gamma_ptr: T.ptr("float32"), beta_ptr: T.ptr("float32"), codes_ptr: T.ptr("int8"),
        scales_ptr: T.ptr("float32"), sums_ptr: T.ptr("int32"),
        k: T.int32, tile_rows: T.int32, eps: T.float32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        X = T.decl_buffer((row_end * k,), "float32", data=x_ptr)
        GAMMA = T.decl_buffer((k,), "float32", data=gamma_ptr)
        BETA = T.decl_buffer((k,), "float32", data=beta_ptr)
        CODES = T.decl_buffer((row_end * k,), "int8", data=codes_ptr)
        SCALES = T.decl_buffer((row_end * copies * (k // group),), "float32", data=scales_ptr)
        SUMS = T.decl_buffer((row_end * copies * (k // group),), "int32", data=sums_ptr)
        values = T.alloc_buffer((group,), "float32")
        quads = T.alloc_buffer((group,), "int8")
        fold = T.alloc_buffer((lanes,), "float32")
        fold_int = T.alloc_buffer((lanes,), "int32")
        mean = T.alloc_buffer((1,), "float32")
        inverse = T.alloc_buffer((1,), "float32")
        for row in T.serial(row_begin, row_end):
            mean[0] = T.float32(0)
            inverse[0] = T.float32(1)
            if centred:
                fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for c in T.serial(k // lanes):
                    fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + X[T.ramp(row * k + c * lanes, 1, lanes)]
                T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
                mean[0] = fold[0] / T.Cast("float32", k)
            if normalised:
                fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for c in T.serial(k // lanes):
                    fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + (
                        X[T.ramp(row * k + c * lanes, 1, lanes)] - splat(mean[0])
                    ) * (X[T.ramp(row * k + c * lanes, 1, lanes)] - splat(mean[0]))
                T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
                inverse[0] = T.float32(1) / T.sqrt(fold[0] / T.Cast("float32", k) + eps)
            for g in T.serial(k // group):
                fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for v in T.unroll(vectors):
                    values[T.ramp(v * lanes, 1, lanes)] = value(
                        X, GAMMA, BETA, row * k, g * group + v * lanes, mean[0], inverse[0]
                    )
                    fold[T.ramp(0, 1, lanes)] = T.max(
                        fold[T.ramp(0, 1, lanes)], T.abs(values[T.ramp(v * lanes, 1, lanes)])
                    )
                T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                place: T.int32 = (((row // tile_rows) * (k // group) + g) * tile_rows + row % tile_rows) * copies
                for c in T.unroll(copies):
                    SCALES[place + c] = fold[0] / T.float32(127)
                inverse_scale: T.float32 = T.if_then_else(
                    fold[0] > T.float32(0), T.float32(127) / fold[0], T.float32(0)
                )
                fold_int[T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
                for v in T.unroll(vectors):
                    values[T.ramp(v * lanes, 1, lanes)] = T.nearbyint(
                        values[T.ramp(v * lanes, 1, lanes)] * splat(inverse_scale)
                    )
                    fold_int[T.ramp(0, 1, lanes)] = fold_int[T.ramp(0, 1, lanes)] + T.Cast(
                        f"int32x{lanes}", values[T.ramp(v * lanes, 1, lanes)]
                    )
                    quads[T.ramp(v * lanes, 1, lanes)] = T.Cast(f"int8x{lanes}", values[T.ramp(v * lanes, 1, lanes)])
                T.add_to_parent(reduce_lanes(fold_int, lanes, operator.add))
                for c in T.unroll(copies):
                    SUMS[place + c] = fold_int[0] * layout.sum_factor + layout.sum_base
                for q in T.unroll(group // run):
                    CODES[
                        T.ramp(
                            (((row // tile_rows) * (k // run) + g * (group // run) + q) * tile_rows
                             + row % tile_rows) * run, 1, run,
                        )
                    ] = quads[T.ramp(q * run, 1, run)]

    return kernel
