"""y = x W^T on int4 or int8 weight codes and int8 activation codes: one computation for GEMM, small batch and GEMV.

For a block of 16 columns (32 on Hexagon) and a group of k: integer dot products, corrected by offset * sum(x),
converted to float once and added with scale_w * scale_x. `tile.vectors` vectors of columns by `tile.rows` rows live in
registers at once; N, K and the number of row tiles are run-time arguments; [block_begin, block_end) is the caller's
share of the column blocks.
"""

from __future__ import annotations

from typing import Any

from tvm_schedules.dots import SHORT_K, dot_function, short_dot
from tvm_schedules.layouts import BLOCK_COLUMNS, QUAD
from tvm_schedules.targets import Tile, Variant
from tvm_schedules.vectors import half_as_float, silu


def gemm(variant: Variant, tile: Tile, bits: int, group: int, zero_point: bool, swiglu: bool = False) -> Any:
    """Builds the PrimFunc.

    C signature: (w u8*, scales f16*, zeros u8*, x s8*, x_scales f32*, x_sums s32*, bias f32*, y f32*, n, k, row_tiles,
    has_bias, accumulate, block_begin, block_end), with w (N/16, K/group, ...) as `layouts` packs it, scales and zeros
    (N/16, K/group, 16), x (row_tiles, K/4, rows, 4), x_scales and x_sums (row_tiles, K/group, rows), bias (n,), y
    (row_tiles * rows, n). `block_end - block_begin` is a multiple of tile.blocks. `zeros` is not read when
    `zero_point` is false. `accumulate` adds to y (the residual). With `swiglu` even blocks of 16 columns are gate and
    odd ones up, and y (row_tiles * rows, n / 2) receives silu(gate) * up.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    dot, offset = dot_function(variant, bits)
    short = short_dot(variant, bits)
    short_add, short_fold = short or (dot, dot)
    lanes, rows, blocks, at_once = variant.lanes, tile.rows, tile.blocks, tile.vectors
    columns = BLOCK_COLUMNS[variant.arch]
    parts = columns // lanes
    """Vectors in a block of columns."""
    vectors = blocks * parts
    run = columns * QUAD
    """Bytes of one run of the weight layout."""
    part_bytes = lanes * QUAD
    nibbles = 8 // bits
    """Quads of k that one weight byte carries."""
    group_runs, short_runs = group // QUAD // nibbles, SHORT_K // QUAD // nibbles
    unrolled = tile.unroll or group_runs
    if group_runs % unrolled:
        raise ValueError(f"{unrolled} unrolled runs do not divide the {group_runs} of a group of {group}")
    int_type = f"int32x{lanes}"
    wide = lanes if variant.has_float_vectors else 1
    """Lanes whose floats are computed at once."""
    acc_type = f"float32x{wide}" if wide > 1 else "float32"
    over_lanes = T.unroll if wide == lanes else T.serial
    alignment = max(64, lanes * 4)

    def broadcast_quad(buffer: Any, offset_: Any) -> Any:
        quad = tirx.reinterpret("int32", buffer.vload([offset_], "int8x4"))
        if variant.dot == "vrmpy":
            return quad
        return tirx.reinterpret(f"int8x{part_bytes}", tirx.Broadcast(quad, lanes))

    def quad(row_tile: Any, groups: Any, g: Any, r: Any, half: Any, m: Any) -> Any:
        return (((row_tile * groups + g) * group_runs + r) * nibbles + half) * rows * QUAD + m * QUAD

    def weight_run(block: Any, vector: Any, groups: Any, g: Any, r: Any) -> Any:
        return (((block + vector // parts) * groups + g) * group_runs + r) * run + vector % parts * part_bytes

    def per_group(block: Any, vector: Any, groups: Any, g: Any) -> Any:
        return ((block + vector // parts) * groups + g) * columns + vector % parts * lanes

    def gate(vector: Any) -> Any:
        return vector // parts * 2 * parts + vector % parts

    def codes(weights: Any, weights_offset: Any, half: Any) -> Any:
        raw = weights.vload([weights_offset], f"uint8x{part_bytes}")
        if nibbles == 1:
            return raw
        if variant.arch == "hexagon":  # shifts words, not bytes
            words = tirx.reinterpret(f"uint32x{lanes}", raw)
            moved = tirx.shift_right(words, tirx.Broadcast(tirx.Cast("uint32", half * 4), lanes))
            return moved & tirx.Broadcast(tirx.const(0x0F0F0F0F, "uint32"), lanes)
        shifted = tirx.shift_right(raw, tirx.Broadcast(tirx.Cast("uint8", half * 4), part_bytes))
        return shifted & tirx.Broadcast(tirx.const(15, "uint8"), part_bytes)

    def scale(values: Any, place: Any) -> Any:
        if variant.arch == "hexagon":
            return half_as_float(values.vload([place], f"float16x{wide}" if wide > 1 else "float16"), wide)
        return tirx.Cast(acc_type, values.vload([place], f"float16x{wide}"))

    def floats(number: Any) -> Any:
        return tirx.Ramp(number * wide, 1, wide) if wide > 1 else number

    def spread(value: Any) -> Any:
        return tirx.Broadcast(value, wide) if wide > 1 else value

    def first_value(zeros: Any, zeros_offset: Any, x_sum: Any) -> Any:
        if zero_point:
            zero = tirx.Cast(int_type, zeros.vload([zeros_offset], f"uint8x{lanes}"))
            return tirx.Broadcast(tirx.const(0, "int32"), lanes) - zero * tirx.Broadcast(x_sum, lanes)
        return tirx.Broadcast(x_sum * tirx.const(-offset, "int32"), lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        w_ptr: T.ptr("uint8"), scales_ptr: T.ptr("float16"), zeros_ptr: T.ptr("uint8"), x_ptr: T.ptr("int8"),
        x_scales_ptr: T.ptr("float32"), x_sums_ptr: T.ptr("int32"), bias_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        n: T.int32, k: T.int32, row_tiles: T.int32, has_bias: T.int32, accumulate: T.int32,
        block_begin: T.int32, block_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        W = T.decl_buffer((n * k // nibbles,), "uint8", data=w_ptr, align=alignment)
        S = T.decl_buffer((n * (k // group),), "float16", data=scales_ptr, align=alignment)
        Z = T.decl_buffer((n * (k // group),), "uint8", data=zeros_ptr, align=alignment)
        X = T.decl_buffer((row_tiles * rows * k,), "int8", data=x_ptr, align=alignment)
        XS = T.decl_buffer((row_tiles * rows * (k // group),), "float32", data=x_scales_ptr, align=alignment)
        XZ = T.decl_buffer((row_tiles * rows * (k // group),), "int32", data=x_sums_ptr, align=alignment)
        BIAS = T.decl_buffer((n,), "float32", data=bias_ptr, align=alignment)
        Y = T.decl_buffer((row_tiles * rows * n,), "float32", data=y_ptr, align=alignment)
        total = T.alloc_buffer((rows, vectors, lanes), "float32")
        factor = T.alloc_buffer((at_once, lanes), "float32")
        dots = T.alloc_buffer((rows, at_once, lanes), "int32")
        pairs = T.alloc_buffer((rows, at_once, 2 * lanes), "int16")
        for tile_index in T.serial((block_end - block_begin) // blocks):
            block = block_begin + tile_index * blocks
            for row_tile in T.serial(row_tiles):
                for v in T.unroll(vectors):
                    for m in T.unroll(rows):
                        total[m, v, T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                if has_bias != 0:
                    for v in T.unroll(vectors):
                        for m in T.unroll(rows):
                            total[m, v, T.ramp(0, 1, lanes)] = BIAS[T.ramp(block * columns + v * lanes, 1, lanes)]
                for s in T.unroll(vectors // at_once):
                    for g in T.serial(k // group):
                        for i in T.unroll(at_once):
                            for m in T.unroll(rows):
                                dots[m, i, T.ramp(0, 1, lanes)] = first_value(
                                    Z, per_group(block, s * at_once + i, k // group, g),
                                    XZ[(row_tile * (k // group) + g) * rows + m],
                                )
                        if short is None:
                            for stretch in T.serial(group_runs // unrolled):
                                first: T.int32 = stretch * unrolled
                                for u in T.unroll(unrolled):
                                    for half in T.unroll(nibbles):
                                        for i in T.unroll(at_once):
                                            for m in T.unroll(rows):
                                                dots[m, i, T.ramp(0, 1, lanes)] = dot(
                                                    dots[m, i, T.ramp(0, 1, lanes)],
                                                    codes(
                                                        W,
                                                        weight_run(
                                                            block, s * at_once + i, k // group, g, first + u
                                                        ),
                                                        half,
                                                    ),
                                                    broadcast_quad(
                                                        X, quad(row_tile, k // group, g, first + u, half, m)
                                                    ),
                                                )
                        else:
                            for part in T.unroll(group // SHORT_K):
                                for i in T.unroll(at_once):
                                    for m in T.unroll(rows):
                                        pairs[m, i, T.ramp(0, 1, 2 * lanes)] = T.broadcast(T.int16(0), 2 * lanes)
                                for r in T.unroll(short_runs):
                                    for half in T.unroll(nibbles):
                                        for i in T.unroll(at_once):
                                            for m in T.unroll(rows):
                                                pairs[m, i, T.ramp(0, 1, 2 * lanes)] = short_add(
                                                    pairs[m, i, T.ramp(0, 1, 2 * lanes)],
                                                    codes(
                                                        W,
                                                        weight_run(
                                                            block, s * at_once + i, k // group, g, part * short_runs + r
                                                        ),
                                                        half,
                                                    ),
                                                    broadcast_quad(
                                                        X, quad(row_tile, k // group, g, part * short_runs + r, half, m)
                                                    ),
                                                )
                                for i in T.unroll(at_once):
                                    for m in T.unroll(rows):
                                        dots[m, i, T.ramp(0, 1, lanes)] = short_fold(
                                            dots[m, i, T.ramp(0, 1, lanes)], pairs[m, i, T.ramp(0, 1, 2 * lanes)],
                                            T.broadcast(T.int16(1), 2 * lanes),
                                        )
                        for i in T.unroll(at_once):
                            for f in over_lanes(lanes // wide):
                                factor[i, floats(f)] = scale(
                                    S, per_group(block, s * at_once + i, k // group, g) + f * wide
                                )
                            for m in T.unroll(rows):
                                for f in over_lanes(lanes // wide):
                                    total[m, s * at_once + i, floats(f)] = (
                                        total[m, s * at_once + i, floats(f)]
                                        + T.Cast(acc_type, dots[m, i, floats(f)])
                                        * (factor[i, floats(f)]
                                           * spread(XS[(row_tile * (k // group) + g) * rows + m]))
                                    )
                for m in T.unroll(rows):
                    if swiglu:
                        for v in T.unroll(vectors // 2):
                            Y[T.ramp((row_tile * rows + m) * (n // 2) + block // 2 * columns + v * lanes, 1, lanes)] = (
                                silu(total[m, gate(v), T.ramp(0, 1, lanes)], lanes)
                                * total[m, gate(v) + parts, T.ramp(0, 1, lanes)]
                            )
                    elif accumulate != 0:
                        for v in T.unroll(vectors):
                            Y[T.ramp((row_tile * rows + m) * n + block * columns + v * lanes, 1, lanes)] = (
                                Y[T.ramp((row_tile * rows + m) * n + block * columns + v * lanes, 1, lanes)]
                                + total[m, v, T.ramp(0, 1, lanes)]
                            )
                    else:
                        for v in T.unroll(vectors):
                            Y[T.ramp((row_tile * rows + m) * n + block * columns + v * lanes, 1, lanes)] = total[
                                m, v, T.ramp(0, 1, lanes)
                            ]

    return kernel
