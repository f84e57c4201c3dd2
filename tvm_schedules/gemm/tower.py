"""y = x W^T for a vision tower: int8 weight codes and int8 activation codes over hundreds of rows, GELU on the way out.

The tile (rows x column blocks) lives in registers and is computed as in `weight_codes`; what differs is the caller's
freedom: a call covers a rectangle of row tiles and column blocks and writes it with any row stride, so that weights
are read once per several row tiles and a strip that is quantised at once never leaves the first-level cache.
"""

from __future__ import annotations

from typing import Any, Literal

from tvm_schedules.dots import dot_function
from tvm_schedules.layouts import COLUMNS, QUAD
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import gelu_erf, gelu_tanh

Epilogue = Literal["add", "gelu", "gelu_tanh"]


def tower_gemm(variant: Variant, rows: int, blocks: int, group: int, epilogue: Epilogue) -> Any:
    """Builds the PrimFunc for register tiles of `rows` by `blocks` of 16 columns.

    C signature: (w u8*, scales f16*, x s8*, x_scales f32*, x_sums s32*, bias f32*, y f32*, n, k, y_stride, accumulate,
    tile_begin, tile_end, block_begin, block_end), with w (N/16, K/group, ...) as `layouts.pack` packs it,
    scales (N/16, K/group, 16), x (row_tiles, K/4, rows, 4), x_scales and x_sums (row_tiles, K/group, rows), bias (n,).
    y points at the first value of the rectangle: row tile `tile_begin`, column block `block_begin`.
    `block_end - block_begin` is a multiple of `blocks`. 'add' adds to y when `accumulate` is not 0 (the residual)
    and stores otherwise; 'gelu' (erf) and 'gelu_tanh' store the activation.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    dot, offset = dot_function(variant, 8)
    lanes = variant.lanes
    parts = COLUMNS // lanes
    run = COLUMNS * QUAD
    part_bytes = lanes * QUAD
    group_runs = group // QUAD
    acc_type = f"float32x{lanes}"

    def broadcast_quad(buffer: Any, offset_: Any) -> Any:
        quad = tirx.reinterpret("int32", buffer.vload([offset_], "int8x4"))
        return tirx.reinterpret(f"int8x{part_bytes}", tirx.Broadcast(quad, lanes))

    def prefetch(y: Any, offset_: Any) -> Any:
        """Asks for a line that will be written: without it the stores of a tile wait for lines of a distant cache."""
        place = tirx.address_of(tirx.BufferLoad(y, [offset_]))
        to_write, to_first_level, data = (tirx.const(value, "int32") for value in (1, 3, 1))
        call = tirx.call_llvm_intrin("void", "llvm.prefetch", place, to_write, to_first_level, data)
        return tirx.Evaluate(call)

    def activated(value: Any) -> Any:
        return gelu_erf(value, lanes) if epilogue == "gelu" else gelu_tanh(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        w_ptr: T.ptr("uint8"), scales_ptr: T.ptr("float16"), x_ptr: T.ptr("int8"), x_scales_ptr: T.ptr("float32"),
        x_sums_ptr: T.ptr("int32"), bias_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        n: T.int32, k: T.int32, y_stride: T.int32, accumulate: T.int32,
        tile_begin: T.int32, tile_end: T.int32, block_begin: T.int32, block_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        W = T.decl_buffer((n * k,), "uint8", data=w_ptr)
        S = T.decl_buffer((n * (k // group),), "float16", data=scales_ptr)
        X = T.decl_buffer((tile_end * rows * k,), "int8", data=x_ptr)
        XS = T.decl_buffer((tile_end * rows * (k // group),), "float32", data=x_scales_ptr)
        XZ = T.decl_buffer((tile_end * rows * (k // group),), "int32", data=x_sums_ptr)
        BIAS = T.decl_buffer((n,), "float32", data=bias_ptr)
        Y = T.decl_buffer((1 << 30,), "float32", data=y_ptr)
        total = T.alloc_buffer((rows, blocks, parts, lanes), "float32")
        dots = T.alloc_buffer((rows, blocks, parts, lanes), "int32")
        for tile_index in T.serial((block_end - block_begin) // blocks):
            block = block_begin + tile_index * blocks
            for row_index in T.serial(tile_end - tile_begin):
                row_tile: T.int32 = tile_begin + row_index
                for m in T.unroll(rows):
                    for b in T.unroll(blocks):
                        T.add_to_parent(
                            prefetch(Y, (row_index * rows + m) * y_stride + (tile_index * blocks + b) * COLUMNS)
                        )
                for m in T.unroll(rows):
                    for b in T.unroll(blocks):
                        for p in T.unroll(parts):
                            total[m, b, p, T.ramp(0, 1, lanes)] = BIAS[
                                T.ramp((block + b) * COLUMNS + p * lanes, 1, lanes)
                            ]
                for g in T.serial(k // group):
                    for m in T.unroll(rows):
                        for b in T.unroll(blocks):
                            for p in T.unroll(parts):
                                dots[m, b, p, T.ramp(0, 1, lanes)] = T.broadcast(
                                    XZ[(row_tile * (k // group) + g) * rows + m] * T.int32(-offset), lanes
                                )
                    for r in T.unroll(group_runs):
                        for b in T.unroll(blocks):
                            for p in T.unroll(parts):
                                for m in T.unroll(rows):
                                    dots[m, b, p, T.ramp(0, 1, lanes)] = dot(
                                        dots[m, b, p, T.ramp(0, 1, lanes)],
                                        W[T.ramp((((block + b) * (k // group) + g) * group_runs + r) * run
                                                 + p * part_bytes, 1, part_bytes)],
                                        broadcast_quad(
                                            X, ((row_tile * (k // group) + g) * group_runs + r) * rows * QUAD + m * QUAD
                                        ),
                                    )
                    for m in T.unroll(rows):
                        for b in T.unroll(blocks):
                            for p in T.unroll(parts):
                                total[m, b, p, T.ramp(0, 1, lanes)] = (
                                    total[m, b, p, T.ramp(0, 1, lanes)]
                                    + T.Cast(acc_type, dots[m, b, p, T.ramp(0, 1, lanes)])
                                    * (T.Cast(acc_type, S[T.ramp(((block + b) * (k // group) + g) * COLUMNS
                                                                 + p * lanes, 1, lanes)])
                                       * T.broadcast(XS[(row_tile * (k // group) + g) * rows + m], lanes))
                                )
                if epilogue == "add":
                    if accumulate != 0:
                        for m in T.unroll(rows):
                            for b in T.unroll(blocks):
                                for p in T.unroll(parts):
                                    Y[T.ramp((row_index * rows + m) * y_stride + (tile_index * blocks + b) * COLUMNS
                                             + p * lanes, 1, lanes)] = (
                                        Y[T.ramp((row_index * rows + m) * y_stride + (tile_index * blocks + b) * COLUMNS
                                                 + p * lanes, 1, lanes)] + total[m, b, p, T.ramp(0, 1, lanes)]
                                    )
                    else:
                        for m in T.unroll(rows):
                            for b in T.unroll(blocks):
                                for p in T.unroll(parts):
                                    Y[T.ramp((row_index * rows + m) * y_stride + (tile_index * blocks + b) * COLUMNS
                                             + p * lanes, 1, lanes)] = total[m, b, p, T.ramp(0, 1, lanes)]
                else:
                    for m in T.unroll(rows):
                        for b in T.unroll(blocks):
                            for p in T.unroll(parts):
                                Y[T.ramp((row_index * rows + m) * y_stride + (tile_index * blocks + b) * COLUMNS
                                         + p * lanes, 1, lanes)] = activated(total[m, b, p, T.ramp(0, 1, lanes)])

    return kernel
