"""Patch embedding of a vision tower: a float product of patches and filters, positions added."""

from __future__ import annotations

from typing import Any

from tvm_schedules.layouts import COLUMNS
from tvm_schedules.targets import Variant


def patch_gemm(variant: Variant, rows: int, blocks: int, at_once: int) -> Any:
    """Builds the PrimFunc for tiles of `rows`, `at_once` of them in registers.

    C signature: (x f32*, w f32*, positions f32*, y f32*, n, k, row_tiles, n_rows): y (n_rows, n) = positions + x W^T,
    with x (row_tiles * rows, k) the pixels of one patch a row, w (n/16, k, 16), positions (n_rows, n) with the bias in
    them. n is a multiple of blocks * 16. Rows from n_rows on are computed and not stored.
    """
    from tvm.script import tirx as T

    lanes = variant.lanes
    parts = COLUMNS // lanes

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        x_ptr: T.ptr("float32"), w_ptr: T.ptr("float32"), positions_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        n: T.int32, k: T.int32, row_tiles: T.int32, n_rows: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        X = T.decl_buffer((row_tiles * rows * k,), "float32", data=x_ptr)
        W = T.decl_buffer((n * k,), "float32", data=w_ptr)
        P = T.decl_buffer((n_rows * n,), "float32", data=positions_ptr)
        Y = T.decl_buffer((n_rows * n,), "float32", data=y_ptr)
        total = T.alloc_buffer((at_once, blocks, parts, lanes), "float32")
        for column in T.serial(n // (blocks * COLUMNS)):
            for tile in T.serial(row_tiles * (rows // at_once)):
                for r in T.unroll(at_once):
                    for b in T.unroll(blocks):
                        for p in T.unroll(parts):
                            total[r, b, p, T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                for i in T.serial(k):
                    for b in T.unroll(blocks):
                        for p in T.unroll(parts):
                            for r in T.unroll(at_once):
                                total[r, b, p, T.ramp(0, 1, lanes)] = total[r, b, p, T.ramp(0, 1, lanes)] + W[
                                    T.ramp(((column * blocks + b) * k + i) * COLUMNS + p * lanes, 1, lanes)
                                ] * T.broadcast(X[(tile * at_once + r) * k + i], lanes)
                for r in T.unroll(at_once):
                    if tile * at_once + r < n_rows:
                        for b in T.unroll(blocks):
                            for p in T.unroll(parts):
                                Y[T.ramp((tile * at_once + r) * n + (column * blocks + b) * COLUMNS + p * lanes,
                                         1, lanes)] = (
                                    total[r, b, p, T.ramp(0, 1, lanes)]
                                    + P[T.ramp((tile * at_once + r) * n + (column * blocks + b) * COLUMNS + p * lanes,
                                               1, lanes)]
                                )

    return kernel
