"""LayerNorm of float rows where no quantisation follows: before tokens are merged, and at a tower's end."""

from __future__ import annotations

import operator
from typing import Any

from tvm_schedules.targets import Variant
from tvm_schedules.vectors import reduce_lanes


def norm_rows(variant: Variant) -> Any:
    """Builds the PrimFunc.

    C signature: (x f32*, gamma f32*, beta f32*, y f32*, k, eps, row_begin, row_end), with x and y (T, k), k a multiple
    of 16.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = variant.lanes

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        x_ptr: T.ptr("float32"), gamma_ptr: T.ptr("float32"), beta_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        k: T.int32, eps: T.float32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        X = T.decl_buffer((row_end * k,), "float32", data=x_ptr)
        GAMMA = T.decl_buffer((k,), "float32", data=gamma_ptr)
        BETA = T.decl_buffer((k,), "float32", data=beta_ptr)
        Y = T.decl_buffer((row_end * k,), "float32", data=y_ptr)
        fold = T.alloc_buffer((lanes,), "float32")
        for row in T.serial(row_begin, row_end):
            fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
            for c in T.serial(k // lanes):
                fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + X[T.ramp(row * k + c * lanes, 1, lanes)]
            T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
            mean: T.float32 = fold[0] / T.Cast("float32", k)
            fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
            for c in T.serial(k // lanes):
                fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + (
                    X[T.ramp(row * k + c * lanes, 1, lanes)] - splat(mean)
                ) * (X[T.ramp(row * k + c * lanes, 1, lanes)] - splat(mean))
            T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
            inverse: T.float32 = T.float32(1) / T.sqrt(fold[0] / T.Cast("float32", k) + eps)
            for c in T.serial(k // lanes):
                Y[T.ramp(row * k + c * lanes, 1, lanes)] = (
                    X[T.ramp(row * k + c * lanes, 1, lanes)] - splat(mean)
                ) * splat(inverse) * GAMMA[T.ramp(c * lanes, 1, lanes)] + BETA[T.ramp(c * lanes, 1, lanes)]

    return kernel
