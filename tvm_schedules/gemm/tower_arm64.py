"""`tower` for arm64: the same products on panels (`panel_arm64`)."""

from __future__ import annotations

from typing import Any

from tvm_schedules.gemm.panel_arm64 import PANEL_K, QUADS, Panel, to_float
from tvm_schedules.gemm.quad_dots import PAIR_BYTES, QUAD, RUN_BYTES, tile_dots
from tvm_schedules.gemm.tower import Epilogue
from tvm_schedules.layouts import COLUMNS, EIGHT
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import gelu_erf, gelu_tanh


def tower_gemm(variant: Variant, rows: int, group: int, epilogue: Epilogue) -> Any:
    """Builds the PrimFunc; the C signature is that of `tower.tower_gemm`, with rows as ROW_LAYOUTS["arm64"] says."""
    from tvm.script import tirx as T

    tile = Panel(tile_dots(variant, rows, 8), 8, group)
    count, batch_tiles, quad_sums = tile.form.accumulators, tile.batch_tiles, tile.quad_sums
    quad_bytes, quad_scales, scale_step = tile.quad_bytes, tile.quad_scales, tile.scale_step

    def activated(value: Any) -> Any:
        return gelu_erf(value, COLUMNS) if epilogue == "gelu" else gelu_tanh(value, COLUMNS)

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
        XS = T.decl_buffer((tile_end * rows * 2 * (k // group),), "float32", data=x_scales_ptr)
        XZ = T.decl_buffer((tile_end * rows * 2 * (k // group),), "int32", data=x_sums_ptr)
        BIAS = T.decl_buffer((n,), "float32", data=bias_ptr)
        Y = T.decl_buffer((1 << 30,), "float32", data=y_ptr)
        panel = T.alloc_buffer((QUADS * quad_bytes,), "int8")
        scales = T.alloc_buffer((QUADS * quad_scales,), "float32")
        carry = T.alloc_buffer((batch_tiles * QUADS * quad_sums,), "float32")
        dots = T.alloc_buffer((count * 4,), "int32")
        total = T.alloc_buffer((count * 4,), "float32")
        line = T.alloc_buffer((COLUMNS,), "float32")
        for column in T.serial(block_end - block_begin):
            block: T.int32 = block_begin + column
            for batch in T.serial((tile_end - tile_begin + batch_tiles - 1) // batch_tiles):
                first_tile: T.int32 = tile_begin + batch * batch_tiles
                tiles: T.int32 = T.min(tile_end - first_tile, batch_tiles)
                for t in T.serial(tiles):
                    for q in T.serial(QUADS):
                        for m in T.unroll(rows):
                            T.add_to_parent(
                                tile.from_row(BIAS, block * COLUMNS + q * QUAD, carry, (t * QUADS + q) * quad_sums, m)
                            )
                for piece in T.serial((k + PANEL_K - 1) // PANEL_K):
                    piece_k: T.int32 = T.min(k - piece * PANEL_K, PANEL_K)
                    first_group: T.int32 = piece * tile.groups
                    for run in T.serial(piece_k // EIGHT):
                        for q in T.unroll(QUADS):
                            T.add_to_parent(
                                tile.unpack(
                                    W, (block * (k // EIGHT) + piece * (PANEL_K // EIGHT) + run) * RUN_BYTES
                                    + q * 2 * PAIR_BYTES,
                                    panel, q * quad_bytes + run * 2 * PAIR_BYTES,
                                )
                            )
                    for g in T.serial(piece_k // group):
                        for q in T.unroll(QUADS):
                            T.add_to_parent(
                                tile.spread(S, (block * (k // group) + first_group + g) * COLUMNS + q * QUAD, scales,
                                            q * quad_scales + g * scale_step, to_float)
                            )
                    for t in T.serial(tiles):
                        for q in T.serial(QUADS):
                            for a in T.unroll(count):
                                total[T.ramp(a * 4, 1, 4)] = carry[T.ramp((t * QUADS + q) * quad_sums + a * 4, 1, 4)]
                            for g in T.serial(piece_k // group):
                                row: T.int32 = ((first_tile + t) * (k // group) + first_group + g) * rows
                                T.add_to_parent(tile.begin(dots, XZ, row * 2, XZ, 0))
                                T.add_to_parent(
                                    tile.multiply(dots, panel, q * quad_bytes + g * group * QUAD, X, row * group)
                                )
                                T.add_to_parent(
                                    tile.add_scaled(total, dots, scales, q * quad_scales + g * scale_step, XS, row * 2)
                                )
                            for a in T.unroll(count):
                                carry[T.ramp((t * QUADS + q) * quad_sums + a * 4, 1, 4)] = total[T.ramp(a * 4, 1, 4)]
                for t in T.serial(tiles):
                    for m in T.serial(rows):
                        place: T.int32 = ((first_tile - tile_begin + t) * rows + m) * y_stride + column * COLUMNS
                        for q in T.unroll(QUADS):
                            T.add_to_parent(tile.to_row(carry, (t * QUADS + q) * quad_sums, line, q * QUAD, m))
                        if epilogue != "add":
                            Y[T.ramp(place, 1, COLUMNS)] = activated(line[T.ramp(0, 1, COLUMNS)])
                        elif accumulate != 0:
                            Y[T.ramp(place, 1, COLUMNS)] = (
                                Y[T.ramp(place, 1, COLUMNS)] + line[T.ramp(0, 1, COLUMNS)]
                            )
                        else:
                            Y[T.ramp(place, 1, COLUMNS)] = line[T.ramp(0, 1, COLUMNS)]

    return kernel
