"""`weight_codes` for arm64: the same computation on the arm64 layouts.

Two rows or more: the codes of a block of 16 columns are unpacked to bytes once (`quad_dots`), a piece of K at a time,
and all row tiles read that panel; their float sums are carried between the pieces. One row: codes are unpacked in
registers on their way from memory.
"""

from __future__ import annotations

from typing import Any

from tvm_schedules.gemm.panel_arm64 import (
    PANEL_K,
    QUADS,
    Panel,
    as_float,
    from_middle,
    sequence,
    splat4,
    to_float,
)
from tvm_schedules.gemm.quad_dots import PAIR_BYTES, QUAD, RUN_BYTES, add_pairs, codes, column_sum, sdot, tile_dots
from tvm_schedules.layouts import COLUMNS, EIGHT, MAGIC
from tvm_schedules.targets import Tile, Variant
from tvm_schedules.vectors import silu

Expr = Any


def gemm(variant: Variant, tile: Tile, bits: int, group: int, zero_point: bool, swiglu: bool = False) -> Any:
    """Builds the PrimFunc; the C signature is that of `weight_codes.gemm`, with rows as ROW_LAYOUTS["arm64"] says."""
    if tile.rows == 1:
        return _one_row(variant, bits, group, zero_point, swiglu)
    return _many_rows(variant, tile.rows, bits, group, zero_point, swiglu)


def _many_rows(variant: Variant, rows: int, bits: int, group: int, zero_point: bool, swiglu: bool) -> Any:
    from tvm.script import tirx as T

    tile = Panel(tile_dots(variant, rows, bits), bits, group, zero_point)
    count, nibbles = tile.form.accumulators, tile.nibbles
    parts = 2 if swiglu else 1
    batch_tiles, quad_sums = tile.batch_tiles, tile.quad_sums
    quad_bytes, quad_scales, scale_step = tile.quad_bytes, tile.quad_scales, tile.scale_step

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        w_ptr: T.ptr("uint8"), scales_ptr: T.ptr("float16"), zeros_ptr: T.ptr("uint8"), x_ptr: T.ptr("int8"),
        x_scales_ptr: T.ptr("float32"), x_sums_ptr: T.ptr("int32"), bias_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        n: T.int32, k: T.int32, row_tiles: T.int32, has_bias: T.int32, accumulate: T.int32,
        block_begin: T.int32, block_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        W = T.decl_buffer((n * k // nibbles,), "uint8", data=w_ptr)
        S = T.decl_buffer((n * (k // group),), "float16", data=scales_ptr)
        Z = T.decl_buffer((n * (k // group),), "uint8", data=zeros_ptr)
        X = T.decl_buffer((row_tiles * rows * k,), "int8", data=x_ptr)
        XS = T.decl_buffer((row_tiles * rows * 2 * (k // group),), "float32", data=x_scales_ptr)
        XZ = T.decl_buffer((row_tiles * rows * 2 * (k // group),), "int32", data=x_sums_ptr)
        BIAS = T.decl_buffer((n,), "float32", data=bias_ptr)
        Y = T.decl_buffer((row_tiles * rows * n,), "float32", data=y_ptr)
        panel = T.alloc_buffer((QUADS * quad_bytes,), "int8")
        scales = T.alloc_buffer((QUADS * quad_scales,), "float32")
        middles = T.alloc_buffer((QUADS * quad_scales,), "int32")
        carry = T.alloc_buffer((parts * batch_tiles * QUADS * quad_sums,), "float32")
        dots = T.alloc_buffer((count * 4,), "int32")
        total = T.alloc_buffer((count * 4,), "float32")
        line = T.alloc_buffer((parts * COLUMNS,), "float32")
        for unit in T.serial((block_end - block_begin) // parts):
            for batch in T.serial((row_tiles + batch_tiles - 1) // batch_tiles):
                first_tile: T.int32 = batch * batch_tiles
                tiles: T.int32 = T.min(row_tiles - first_tile, batch_tiles)
                for part in T.serial(parts):
                    block: T.int32 = block_begin + unit * parts + part
                    for t in T.serial(tiles):
                        for q in T.serial(QUADS):
                            for m in T.unroll(rows):
                                if has_bias != 0:
                                    T.add_to_parent(
                                        tile.from_row(BIAS, block * COLUMNS + q * QUAD, carry,
                                                          ((part * batch_tiles + t) * QUADS + q) * quad_sums, m)
                                    )
                                else:
                                    T.add_to_parent(
                                        tile.from_row(None, 0, carry,
                                                          ((part * batch_tiles + t) * QUADS + q) * quad_sums, m)
                                    )
                    for piece in T.serial((k + PANEL_K - 1) // PANEL_K):
                        piece_k: T.int32 = T.min(k - piece * PANEL_K, PANEL_K)
                        first_group: T.int32 = piece * tile.groups
                        for run in T.serial(piece_k // EIGHT // nibbles):
                            for q in T.unroll(QUADS):
                                T.add_to_parent(
                                    tile.unpack(
                                        W, (block * (k // EIGHT // nibbles) + piece * (PANEL_K // EIGHT // nibbles)
                                            + run) * RUN_BYTES + q * 2 * PAIR_BYTES,
                                        panel, q * quad_bytes + run * nibbles * 2 * PAIR_BYTES,
                                    )
                                )
                        for g in T.serial(piece_k // group):
                            for q in T.unroll(QUADS):
                                T.add_to_parent(
                                    tile.spread(S, (block * (k // group) + first_group + g) * COLUMNS + q * QUAD,
                                                scales, q * quad_scales + g * scale_step, to_float)
                                )
                                if zero_point:
                                    T.add_to_parent(
                                        tile.spread(Z, (block * (k // group) + first_group + g) * COLUMNS + q * QUAD,
                                                    middles, q * quad_scales + g * scale_step, from_middle)
                                    )
                        for t in T.serial(tiles):
                            for q in T.serial(QUADS):
                                place: T.int32 = ((part * batch_tiles + t) * QUADS + q) * quad_sums
                                for a in T.unroll(count):
                                    total[T.ramp(a * 4, 1, 4)] = carry[T.ramp(place + a * 4, 1, 4)]
                                for g in T.serial(piece_k // group):
                                    row: T.int32 = ((first_tile + t) * (k // group) + first_group + g) * rows
                                    T.add_to_parent(
                                        tile.begin(dots, XZ, row * 2, middles, q * quad_scales + g * scale_step)
                                    )
                                    T.add_to_parent(
                                        tile.multiply(dots, panel, q * quad_bytes + g * group * QUAD, X, row * group)
                                    )
                                    T.add_to_parent(
                                        tile.add_scaled(total, dots, scales, q * quad_scales + g * scale_step, XS,
                                                        row * 2)
                                    )
                                for a in T.unroll(count):
                                    carry[T.ramp(place + a * 4, 1, 4)] = total[T.ramp(a * 4, 1, 4)]
                for t in T.serial(tiles):
                    for m in T.serial(rows):
                        out_row: T.int32 = (first_tile + t) * rows + m
                        for part in T.unroll(parts):
                            for q in T.unroll(QUADS):
                                T.add_to_parent(
                                    tile.to_row(carry, ((part * batch_tiles + t) * QUADS + q) * quad_sums, line,
                                                    part * COLUMNS + q * QUAD, m)
                                )
                        if swiglu:
                            Y[T.ramp(out_row * (n // 2) + (block_begin // 2 + unit) * COLUMNS, 1, COLUMNS)] = silu(
                                line[T.ramp(0, 1, COLUMNS)], COLUMNS
                            ) * line[T.ramp((parts - 1) * COLUMNS, 1, COLUMNS)]
                        elif accumulate != 0:
                            Y[T.ramp(out_row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)] = (
                                Y[T.ramp(out_row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)]
                                + line[T.ramp(0, 1, COLUMNS)]
                            )
                        else:
                            Y[T.ramp(out_row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)] = line[
                                T.ramp(0, 1, COLUMNS)
                            ]

    return kernel


def _one_row(variant: Variant, bits: int, group: int, zero_point: bool, swiglu: bool) -> Any:
    from tvm import tirx
    from tvm.script import tirx as T

    nibbles = 8 // bits
    parts = 2 if swiglu else 1
    runs = group // EIGHT // nibbles
    byte_sums = variant.dot == "smull"

    def store(buffer: Expr, place: int, value: Expr) -> Expr:
        return tirx.BufferStore(buffer, value, [tirx.Ramp(place, 1, 4)])

    def dots_by_columns(dots: Expr, w: Expr, w_base: Expr, x: Expr, x_base: Expr) -> Expr:
        """Without sdot: one column after the other, pairs of columns folded at once."""
        def one(column: int) -> Expr:
            places = [(run, half) for run in range(runs) for half in range(nibbles)]
            weights = [
                codes(w.vload([w_base + run * RUN_BYTES + column * EIGHT], "uint8x8"), bits, half, 8)
                for run, half in places
            ]
            rows = [x.vload([x_base + (run * nibbles + half) * EIGHT], "int8x8") for run, half in places]
            return column_sum(weights, rows, bits)

        return sequence([
            store(dots, pair * 4, add_pairs(one(2 * pair), one(2 * pair + 1))) for pair in range(COLUMNS // 2)
        ])  # fmt: skip

    def dots_by_pairs(dots: Expr, w: Expr, w_base: Expr, x: Expr, x_base: Expr) -> Expr:
        """A register is 2 columns x 8 k: {c0 k0..3, c0 k4..7, c1 k0..3, c1 k4..7}."""
        statements = [store(dots, pair * 4, splat4(tirx.const(0, "int32"))) for pair in range(COLUMNS // 2)]
        for run in range(runs):
            for pair in range(COLUMNS // 2):
                raw = w.vload([w_base + run * RUN_BYTES + pair * PAIR_BYTES], "uint8x16")
                for half in range(nibbles):
                    eight = tirx.reinterpret("int64", x.vload([x_base + (run * nibbles + half) * EIGHT], "int8x8"))
                    both = tirx.reinterpret("int8x16", tirx.Broadcast(eight, 2))
                    old = dots.vload([pair * 4], "int32x4")
                    statements.append(store(dots, pair * 4, sdot(old, codes(raw, bits, half, 16), both)))
        return sequence(statements)

    def add_scaled(
        total: Expr, dots: Expr, s: Expr, place: Expr, zeros: Expr, x_sums: Expr, x_scales: Expr, x_place: Expr
    ) -> Expr:
        first = x_sums.vload([x_place], "int32") if bits == 4 else tirx.const(MAGIC, "int32")
        statements = []
        for q in range(QUADS):
            columns = add_pairs(dots.vload([q * 8], "int32x4"), dots.vload([q * 8 + 4], "int32x4")) + splat4(first)
            if zero_point:
                x_sum = tirx.shift_right(tirx.const(MAGIC, "int32") - first, tirx.const(3, "int32"))
                middle = from_middle(zeros.vload([place + q * QUAD], "uint8x4"))
                columns = columns + middle * splat4(x_sum)
            scale = tirx.Cast("float32x4", s.vload([place + q * QUAD], "float16x4"))
            value = as_float(columns) * (scale * splat4(x_scales.vload([x_place], "float32")))
            statements.append(store(total, q * 4, total.vload([q * 4], "float32x4") + value))
        return sequence(statements)

    dots_of_group = dots_by_columns if byte_sums else dots_by_pairs

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        w_ptr: T.ptr("uint8"), scales_ptr: T.ptr("float16"), zeros_ptr: T.ptr("uint8"), x_ptr: T.ptr("int8"),
        x_scales_ptr: T.ptr("float32"), x_sums_ptr: T.ptr("int32"), bias_ptr: T.ptr("float32"), y_ptr: T.ptr("float32"),
        n: T.int32, k: T.int32, row_tiles: T.int32, has_bias: T.int32, accumulate: T.int32,
        block_begin: T.int32, block_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        W = T.decl_buffer((n * k // nibbles,), "uint8", data=w_ptr)
        S = T.decl_buffer((n * (k // group),), "float16", data=scales_ptr)
        Z = T.decl_buffer((n * (k // group),), "uint8", data=zeros_ptr)
        X = T.decl_buffer((row_tiles * k,), "int8", data=x_ptr)
        XS = T.decl_buffer((row_tiles * 2 * (k // group),), "float32", data=x_scales_ptr)
        XZ = T.decl_buffer((row_tiles * 2 * (k // group),), "int32", data=x_sums_ptr)
        BIAS = T.decl_buffer((n,), "float32", data=bias_ptr)
        Y = T.decl_buffer((row_tiles * n,), "float32", data=y_ptr)
        dots = T.alloc_buffer((COLUMNS * 2,), "int32")
        total = T.alloc_buffer((COLUMNS,), "float32")
        line = T.alloc_buffer((parts * COLUMNS,), "float32")
        for unit in T.serial((block_end - block_begin) // parts):
            for row in T.serial(row_tiles):
                for part in T.serial(parts):
                    block: T.int32 = block_begin + unit * parts + part
                    for q in T.unroll(QUADS):
                        total[T.ramp(q * 4, 1, 4)] = T.broadcast(T.float32(0), 4)
                    if has_bias != 0:
                        for q in T.unroll(QUADS):
                            total[T.ramp(q * 4, 1, 4)] = BIAS[T.ramp(block * COLUMNS + q * 4, 1, 4)]
                    for g in T.serial(k // group):
                        T.add_to_parent(
                            dots_of_group(dots, W, (block * (k // group) + g) * (runs * RUN_BYTES), X,
                                          (row * (k // group) + g) * group)
                        )
                        T.add_to_parent(
                            add_scaled(total, dots, S, (block * (k // group) + g) * COLUMNS, Z, XZ, XS,
                                       (row * (k // group) + g) * 2)
                        )
                    for q in T.unroll(QUADS):
                        line[T.ramp(part * COLUMNS + q * 4, 1, 4)] = total[T.ramp(q * 4, 1, 4)]
                if swiglu:
                    Y[T.ramp(row * (n // 2) + (block_begin // 2 + unit) * COLUMNS, 1, COLUMNS)] = silu(
                        line[T.ramp(0, 1, COLUMNS)], COLUMNS
                    ) * line[T.ramp((parts - 1) * COLUMNS, 1, COLUMNS)]
                elif accumulate != 0:
                    Y[T.ramp(row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)] = (
                        Y[T.ramp(row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)] + line[T.ramp(0, 1, COLUMNS)]
                    )
                else:
                    Y[T.ramp(row * n + (block_begin + unit) * COLUMNS, 1, COLUMNS)] = line[T.ramp(0, 1, COLUMNS)]

    return kernel
