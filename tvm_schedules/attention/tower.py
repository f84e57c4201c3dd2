"""Attention of a vision tower: every token sees every token, both products in int8, no T x T array.

`statistics` finds what each channel of the keys and values has in common over a tile's tokens, `pack` turns float
queries, keys and values into codes in the order that `attend` reads them. Keys and values lose their means: softmax
does not change when all keys lose a constant, and the values' mean is added to the result. Without it the many small
probabilities of a row whose largest is a register token round to nothing and take their share of the result along
(LOG.md, 2026-11-25).
"""

from __future__ import annotations

import math
import operator
from typing import Any

from tvm_schedules.attention.masks import LOWEST
from tvm_schedules.dots import dot_function
from tvm_schedules.layouts import COLUMNS, QUAD
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import exp2_rough, horizontal, reduce_lanes

KEY_BLOCKS = 2
"""Blocks of 16 keys whose scores are computed together; tokens are padded to a multiple of 32."""
KEY_TILE = 128
"""Keys between two rescalings, which share one scale of their probabilities' codes."""
GROUP_ROWS = 4
"""Query rows whose results live in registers together; a tile of queries is a multiple."""


def value_blocks(head_dim: int) -> int:
    """Blocks of 16 channels of a head's values: 72 channels take 5, the last half empty."""
    return -(-head_dim // COLUMNS)


def statistics(variant: Variant) -> Any:
    """Builds the PrimFunc.

    C signature: (qkv f32*, key_means f32*, value_means f32*, value_scales f32*, stride, width, tokens, begin, end).
    qkv points at the first token of a tile, rows of `stride` floats: queries, keys and values of `width` floats each;
    the outputs are (width,), of which [begin, end), multiples of 16, are written: means over the tokens, and 1/127 of
    the largest |value - mean|.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = variant.lanes

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        qkv_ptr: T.ptr("float32"), key_means_ptr: T.ptr("float32"), value_means_ptr: T.ptr("float32"),
        value_scales_ptr: T.ptr("float32"),
        stride: T.int32, width: T.int32, tokens: T.int32, begin: T.int32, end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        QKV = T.decl_buffer((tokens * stride,), "float32", data=qkv_ptr)
        KM = T.decl_buffer((width,), "float32", data=key_means_ptr)
        VM = T.decl_buffer((width,), "float32", data=value_means_ptr)
        VS = T.decl_buffer((width,), "float32", data=value_scales_ptr)
        key_sum = T.alloc_buffer((lanes,), "float32")
        value_sum = T.alloc_buffer((lanes,), "float32")
        lowest = T.alloc_buffer((lanes,), "float32")
        highest = T.alloc_buffer((lanes,), "float32")
        for c in T.serial((end - begin) // lanes):
            channel: T.int32 = begin + c * lanes
            key_sum[T.ramp(0, 1, lanes)] = splat(T.float32(0))
            value_sum[T.ramp(0, 1, lanes)] = splat(T.float32(0))
            lowest[T.ramp(0, 1, lanes)] = QKV[T.ramp(2 * width + channel, 1, lanes)]
            highest[T.ramp(0, 1, lanes)] = QKV[T.ramp(2 * width + channel, 1, lanes)]
            for t in T.serial(tokens):
                key_sum[T.ramp(0, 1, lanes)] = (
                    key_sum[T.ramp(0, 1, lanes)] + QKV[T.ramp(t * stride + width + channel, 1, lanes)]
                )
                value_sum[T.ramp(0, 1, lanes)] = (
                    value_sum[T.ramp(0, 1, lanes)] + QKV[T.ramp(t * stride + 2 * width + channel, 1, lanes)]
                )
                lowest[T.ramp(0, 1, lanes)] = T.min(
                    lowest[T.ramp(0, 1, lanes)], QKV[T.ramp(t * stride + 2 * width + channel, 1, lanes)]
                )
                highest[T.ramp(0, 1, lanes)] = T.max(
                    highest[T.ramp(0, 1, lanes)], QKV[T.ramp(t * stride + 2 * width + channel, 1, lanes)]
                )
            KM[T.ramp(channel, 1, lanes)] = key_sum[T.ramp(0, 1, lanes)] / splat(T.Cast("float32", tokens))
            value_sum[T.ramp(0, 1, lanes)] = value_sum[T.ramp(0, 1, lanes)] / splat(T.Cast("float32", tokens))
            VM[T.ramp(channel, 1, lanes)] = value_sum[T.ramp(0, 1, lanes)]
            VS[T.ramp(channel, 1, lanes)] = T.max(
                highest[T.ramp(0, 1, lanes)] - value_sum[T.ramp(0, 1, lanes)],
                value_sum[T.ramp(0, 1, lanes)] - lowest[T.ramp(0, 1, lanes)],
            ) / splat(T.float32(127))

    return kernel


def pack(variant: Variant, head_dim: int, rows: int) -> Any:
    """Builds the PrimFunc.

    C signature: (qkv f32*, key_means f32*, value_means f32*, value_scales f32*, queries s8*, query_scales f32*,
    query_sums s32*, keys u8*, key_scales f32*, key_bias f32*, values s32*, stride, heads, tokens, padded, scale,
    token_begin, token_end). Per head, one after the other: queries (padded/rows, E/4, rows, 4), their scales and sums
    (padded,); keys (padded/16, E/4, 16, 4) with zero at 128, scales and bias (padded,), the bias 0 or LOWEST for
    padding; values (E/16, padded/4, 16) words of four signed codes. `padded` and the shares [token_begin, token_end)
    are multiples of 32 and of `rows`. `scale` multiplies the queries.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = math.gcd(variant.lanes, head_dim)
    vectors = head_dim // lanes
    blocks = value_blocks(head_dim)

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def byte(value: Any) -> Any:
        return tirx.Cast(f"int32x{lanes}", tirx.nearbyint(value)) & splat(tirx.const(255, "int32"))

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        qkv_ptr: T.ptr("float32"), key_means_ptr: T.ptr("float32"), value_means_ptr: T.ptr("float32"),
        value_scales_ptr: T.ptr("float32"), queries_ptr: T.ptr("int8"), query_scales_ptr: T.ptr("float32"),
        query_sums_ptr: T.ptr("int32"), keys_ptr: T.ptr("uint8"), key_scales_ptr: T.ptr("float32"),
        key_bias_ptr: T.ptr("float32"), values_ptr: T.ptr("int32"),
        stride: T.int32, heads: T.int32, tokens: T.int32, padded: T.int32, scale: T.float32,
        token_begin: T.int32, token_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        QKV = T.decl_buffer((tokens * stride,), "float32", data=qkv_ptr)
        KM = T.decl_buffer((heads * head_dim,), "float32", data=key_means_ptr)
        VM = T.decl_buffer((heads * head_dim,), "float32", data=value_means_ptr)
        VS = T.decl_buffer((heads * head_dim,), "float32", data=value_scales_ptr)
        Q = T.decl_buffer((heads * padded * head_dim,), "int8", data=queries_ptr)
        QS = T.decl_buffer((heads * padded,), "float32", data=query_scales_ptr)
        QZ = T.decl_buffer((heads * padded,), "int32", data=query_sums_ptr)
        K = T.decl_buffer((heads * padded * head_dim,), "uint8", data=keys_ptr)
        KS = T.decl_buffer((heads * padded,), "float32", data=key_scales_ptr)
        KB = T.decl_buffer((heads * padded,), "float32", data=key_bias_ptr)
        V = T.decl_buffer((heads * blocks * padded * COLUMNS // QUAD,), "int32", data=values_ptr)
        inverse = T.alloc_buffer((head_dim,), "float32")
        row_values = T.alloc_buffer((head_dim,), "float32")
        codes = T.alloc_buffer((head_dim,), "int8")
        words = T.alloc_buffer((head_dim,), "int32")
        fold = T.alloc_buffer((lanes,), "float32")
        fold_int = T.alloc_buffer((lanes,), "int32")
        for head in T.serial(heads):
            q_base: T.int32 = head * head_dim
            k_base: T.int32 = (heads + head) * head_dim
            v_base: T.int32 = (2 * heads + head) * head_dim
            for t in T.serial(token_begin, token_end):
                q_place: T.int32 = head * padded * head_dim + (t // rows * (head_dim // QUAD) * rows + t % rows) * QUAD
                k_place: T.int32 = (
                    head * padded * head_dim + (t // COLUMNS * (head_dim // QUAD) * COLUMNS + t % COLUMNS) * QUAD
                )
                if t < tokens:
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for c in T.unroll(vectors):
                        row_values[T.ramp(c * lanes, 1, lanes)] = QKV[T.ramp(t * stride + q_base + c * lanes, 1, lanes)]
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], T.abs(row_values[T.ramp(c * lanes, 1, lanes)])
                        )
                    query_top: T.float32 = horizontal(fold[T.ramp(0, 1, lanes)], lanes, tirx.max)
                    QS[head * padded + t] = query_top / T.float32(127) * scale
                    query_inverse: T.float32 = T.if_then_else(
                        query_top > T.float32(0), T.float32(127) / query_top, T.float32(0)
                    )
                    fold_int[T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
                    for c in T.unroll(vectors):
                        row_values[T.ramp(c * lanes, 1, lanes)] = T.nearbyint(
                            row_values[T.ramp(c * lanes, 1, lanes)] * splat(query_inverse)
                        )
                        fold_int[T.ramp(0, 1, lanes)] = fold_int[T.ramp(0, 1, lanes)] + T.Cast(
                            f"int32x{lanes}", row_values[T.ramp(c * lanes, 1, lanes)]
                        )
                        codes[T.ramp(c * lanes, 1, lanes)] = T.Cast(
                            f"int8x{lanes}", row_values[T.ramp(c * lanes, 1, lanes)]
                        )
                    T.add_to_parent(reduce_lanes(fold_int, lanes, operator.add))
                    QZ[head * padded + t] = fold_int[0]
                    for e in T.unroll(head_dim // QUAD):
                        Q[T.ramp(q_place + e * rows * QUAD, 1, QUAD)] = codes[T.ramp(e * QUAD, 1, QUAD)]
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for c in T.unroll(vectors):
                        row_values[T.ramp(c * lanes, 1, lanes)] = (
                            QKV[T.ramp(t * stride + k_base + c * lanes, 1, lanes)]
                            - KM[T.ramp(q_base + c * lanes, 1, lanes)]
                        )
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], T.abs(row_values[T.ramp(c * lanes, 1, lanes)])
                        )
                    key_top: T.float32 = horizontal(fold[T.ramp(0, 1, lanes)], lanes, tirx.max)
                    KS[head * padded + t] = key_top / T.float32(127)
                    KB[head * padded + t] = T.float32(0)
                    key_inverse: T.float32 = T.if_then_else(
                        key_top > T.float32(0), T.float32(127) / key_top, T.float32(0)
                    )
                    for c in T.unroll(vectors):
                        codes[T.ramp(c * lanes, 1, lanes)] = T.Cast(
                            f"int8x{lanes}", T.nearbyint(row_values[T.ramp(c * lanes, 1, lanes)] * splat(key_inverse))
                        )
                    for e in T.unroll(head_dim // QUAD):
                        K[T.ramp(k_place + e * COLUMNS * QUAD, 1, QUAD)] = T.reinterpret(
                            "uint8x4", codes[T.ramp(e * QUAD, 1, QUAD)]
                        ) ^ T.broadcast(T.uint8(128), QUAD)
                else:
                    QS[head * padded + t] = T.float32(0)
                    QZ[head * padded + t] = 0
                    KS[head * padded + t] = T.float32(0)
                    KB[head * padded + t] = T.float32(LOWEST)
                    for e in T.unroll(head_dim // QUAD):
                        Q[T.ramp(q_place + e * rows * QUAD, 1, QUAD)] = T.broadcast(T.int8(0), QUAD)
                        K[T.ramp(k_place + e * COLUMNS * QUAD, 1, QUAD)] = T.broadcast(T.uint8(128), QUAD)
            for c in T.unroll(vectors):
                inverse[T.ramp(c * lanes, 1, lanes)] = T.Select(
                    VS[T.ramp(q_base + c * lanes, 1, lanes)] > splat(T.float32(0)),
                    splat(T.float32(1)) / VS[T.ramp(q_base + c * lanes, 1, lanes)],
                    splat(T.float32(0)),
                )
            for quad in T.serial(token_begin // QUAD, token_end // QUAD):
                for c in T.unroll(vectors):
                    words[T.ramp(c * lanes, 1, lanes)] = T.broadcast(0, lanes)
                for j in T.unroll(QUAD):
                    if quad * QUAD + j < tokens:
                        for c in T.unroll(vectors):
                            words[T.ramp(c * lanes, 1, lanes)] = words[T.ramp(c * lanes, 1, lanes)] | T.shift_left(
                                byte(
                                    (QKV[T.ramp((quad * QUAD + j) * stride + v_base + c * lanes, 1, lanes)]
                                     - VM[T.ramp(q_base + c * lanes, 1, lanes)])
                                    * inverse[T.ramp(c * lanes, 1, lanes)]
                                ),
                                T.broadcast(8 * j, lanes),
                            )
                for c in T.unroll(vectors):
                    V[
                        T.ramp(((head * blocks + c * lanes // COLUMNS) * (padded // QUAD) + quad) * COLUMNS
                               + c * lanes % COLUMNS, 1, lanes)
                    ] = words[T.ramp(c * lanes, 1, lanes)]

    return kernel


def attend(variant: Variant, head_dim: int, rows: int) -> Any:
    """Builds the PrimFunc.

    C signature: (queries s8*, query_scales f32*, query_sums s32*, keys u8*, key_scales f32*, key_bias f32*, values
    s8*, value_scales f32*, value_means f32*, out f32*, padded, tokens, out_stride, tile_begin, tile_end), the first
    nine of one head as `pack` and `statistics` left them. out points at the head's first channel of the tile's first
    token, rows of `out_stride` floats; query tiles [tile_begin, tile_end) of `rows` tokens are written, padding left
    out. Channels of a value block beyond E are never read back, whatever they hold.

    Online softmax over tiles of KEY_TILE keys. Scores stay without the query's scale until they are exponents.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    dot, offset = dot_function(variant, 8)
    # The 4-bit dot product takes unsigned codes as they are; below 128 its 16-bit intermediates hold them exactly.
    code_dot, _ = dot_function(variant, 4)
    top_code = 255.0 if variant.dot.startswith("vpdpbusd") else 127.0
    lanes = variant.lanes
    parts = COLUMNS // lanes
    part_bytes = lanes * QUAD
    run = COLUMNS * QUAD
    vector = f"float32x{lanes}"
    blocks = value_blocks(head_dim)
    # arm64's vectors of 16 lanes are four registers of 32: fewer blocks, and fewer rows, at a time.
    wide = lanes == COLUMNS and variant.arch == "x86_64"
    group_blocks = blocks if wide else 1
    score_rows, score_blocks = (4, 1) if variant.arch == "arm64" else (rows, KEY_BLOCKS)
    """Blocks of channels whose sums live in registers together."""
    store_lanes = math.gcd(lanes, head_dim)
    width = blocks * COLUMNS
    step = KEY_BLOCKS * COLUMNS
    log2_e = math.log2(math.e)

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def broadcast_quad(buffer: Any, offset_: Any, code: str) -> Any:
        quad = tirx.reinterpret("int32", buffer.vload([offset_], f"{code}x4"))
        return tirx.reinterpret(f"{code}x{part_bytes}", tirx.Broadcast(quad, lanes))

    def rounded_byte(value: Any) -> Any:
        # 1.5 * 2^23 leaves the rounded integer in the lowest bits.
        shifted = value * splat(tirx.const(top_code, "float32")) + splat(tirx.const(12582912.0, "float32"))
        return tirx.Cast(f"uint8x{lanes}", tirx.reinterpret(f"int32x{lanes}", shifted))

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        queries_ptr: T.ptr("int8"), query_scales_ptr: T.ptr("float32"), query_sums_ptr: T.ptr("int32"),
        keys_ptr: T.ptr("uint8"), key_scales_ptr: T.ptr("float32"), key_bias_ptr: T.ptr("float32"),
        values_ptr: T.ptr("int8"), value_scales_ptr: T.ptr("float32"), value_means_ptr: T.ptr("float32"),
        out_ptr: T.ptr("float32"),
        padded: T.int32, tokens: T.int32, out_stride: T.int32, tile_begin: T.int32, tile_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        Q = T.decl_buffer((padded * head_dim,), "int8", data=queries_ptr)
        QS = T.decl_buffer((padded,), "float32", data=query_scales_ptr)
        QZ = T.decl_buffer((padded,), "int32", data=query_sums_ptr)
        K = T.decl_buffer((padded * head_dim,), "uint8", data=keys_ptr)
        KS = T.decl_buffer((padded,), "float32", data=key_scales_ptr)
        KB = T.decl_buffer((padded,), "float32", data=key_bias_ptr)
        V = T.decl_buffer((width * padded,), "int8", data=values_ptr)
        VS = T.decl_buffer((head_dim,), "float32", data=value_scales_ptr)
        VM = T.decl_buffer((head_dim,), "float32", data=value_means_ptr)
        OUT = T.decl_buffer((tokens * out_stride,), "float32", data=out_ptr)
        dots = T.alloc_buffer((score_rows, score_blocks, parts, lanes), "int32")
        scores = T.alloc_buffer((rows * KEY_TILE,), "float32")
        codes = T.alloc_buffer((rows * KEY_TILE,), "uint8")
        largest = T.alloc_buffer((rows, lanes), "float32")
        fold = T.alloc_buffer((lanes,), "float32")
        chance = T.alloc_buffer((lanes,), "float32")
        # One value per row: a vector of `rows` lanes.
        top = T.alloc_buffer((rows,), "float32")
        tile_top = T.alloc_buffer((rows,), "float32")
        new_top = T.alloc_buffer((rows,), "float32")
        factor = T.alloc_buffer((rows,), "float32")
        weight = T.alloc_buffer((rows,), "float32")
        scale = T.alloc_buffer((rows,), "float32")
        total = T.alloc_buffer((rows, lanes), "float32")
        sums = T.alloc_buffer((GROUP_ROWS, group_blocks, parts, lanes), "int32")
        out = T.alloc_buffer((rows, width), "float32")
        for tile in T.serial(tile_begin, tile_end):
            # Powers of two are cheaper than of e: log2(e) joins the scale of the query.
            scale[T.ramp(0, 1, rows)] = QS[T.ramp(tile * rows, 1, rows)] * T.broadcast(T.float32(log2_e), rows)
            top[T.ramp(0, 1, rows)] = T.broadcast(T.float32(LOWEST), rows)
            for r in T.serial(rows):
                total[r, T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for c in T.unroll(width // lanes):
                    out[r, T.ramp(c * lanes, 1, lanes)] = splat(T.float32(0))
            for key_tile in T.serial((padded + KEY_TILE - 1) // KEY_TILE):
                steps: T.int32 = T.min(KEY_TILE, padded - key_tile * KEY_TILE) // step
                for r in T.unroll(rows):
                    largest[r, T.ramp(0, 1, lanes)] = splat(T.float32(LOWEST))
                for pair in T.serial(steps):
                    for span in T.unroll(rows // score_rows * (KEY_BLOCKS // score_blocks)):
                        first_row: T.int32 = span // (KEY_BLOCKS // score_blocks) * score_rows
                        first_block: T.int32 = pair * KEY_BLOCKS + span % (KEY_BLOCKS // score_blocks) * score_blocks
                        block: T.int32 = key_tile * (KEY_TILE // COLUMNS) + first_block
                        for r in T.unroll(score_rows):
                            for b in T.unroll(score_blocks):
                                for p in T.unroll(parts):
                                    dots[r, b, p, T.ramp(0, 1, lanes)] = T.broadcast(
                                        QZ[tile * rows + first_row + r] * T.int32(-offset), lanes
                                    )
                        # Not unrolled whole, or LLVM spreads the queries' broadcasts over 9 KB of stack.
                        for half in T.serial(head_dim // QUAD // 2):
                            for odd in T.unroll(2):
                                for b in T.unroll(score_blocks):
                                    for p in T.unroll(parts):
                                        for r in T.unroll(score_rows):
                                            dots[r, b, p, T.ramp(0, 1, lanes)] = dot(
                                                dots[r, b, p, T.ramp(0, 1, lanes)],
                                                K[T.ramp(((block + b) * (head_dim // QUAD) + half * 2 + odd) * run
                                                         + p * part_bytes, 1, part_bytes)],
                                                broadcast_quad(
                                                    Q,
                                                    ((tile * (head_dim // QUAD) + half * 2 + odd) * rows + first_row
                                                     + r) * QUAD,
                                                    "int8",
                                                ),
                                            )
                        for b in T.unroll(score_blocks):
                            for p in T.unroll(parts):
                                for r in T.unroll(score_rows):
                                    fold[T.ramp(0, 1, lanes)] = T.Cast(
                                        vector, dots[r, b, p, T.ramp(0, 1, lanes)]
                                    ) * KS[T.ramp((block + b) * COLUMNS + p * lanes, 1, lanes)] + KB[
                                        T.ramp((block + b) * COLUMNS + p * lanes, 1, lanes)
                                    ]
                                    largest[first_row + r, T.ramp(0, 1, lanes)] = T.max(
                                        largest[first_row + r, T.ramp(0, 1, lanes)], fold[T.ramp(0, 1, lanes)]
                                    )
                                    scores[
                                        T.ramp((first_row + r) * KEY_TILE + (first_block + b) * COLUMNS + p * lanes,
                                               1, lanes)
                                    ] = fold[T.ramp(0, 1, lanes)]
                for r in T.unroll(rows):
                    tile_top[r] = horizontal(largest[r, T.ramp(0, 1, lanes)], lanes, tirx.max)
                new_top[T.ramp(0, 1, rows)] = T.max(top[T.ramp(0, 1, rows)], tile_top[T.ramp(0, 1, rows)])
                factor[T.ramp(0, 1, rows)] = exp2_rough(
                    (top[T.ramp(0, 1, rows)] - new_top[T.ramp(0, 1, rows)]) * scale[T.ramp(0, 1, rows)], rows
                )
                weight[T.ramp(0, 1, rows)] = exp2_rough(
                    (tile_top[T.ramp(0, 1, rows)] - new_top[T.ramp(0, 1, rows)]) * scale[T.ramp(0, 1, rows)], rows
                )
                top[T.ramp(0, 1, rows)] = new_top[T.ramp(0, 1, rows)]
                for r in T.serial(rows):
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for c in T.serial(steps):
                        for p in T.unroll(step // lanes):
                            chance[T.ramp(0, 1, lanes)] = exp2_rough(
                                scores[T.ramp(r * KEY_TILE + c * step + p * lanes, 1, lanes)] * splat(scale[r])
                                - splat(tile_top[r] * scale[r]), lanes,
                            )
                            fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + chance[T.ramp(0, 1, lanes)]
                            codes[T.ramp(r * KEY_TILE + c * step + p * lanes, 1, lanes)] = rounded_byte(
                                chance[T.ramp(0, 1, lanes)]
                            )
                    total[r, T.ramp(0, 1, lanes)] = (
                        total[r, T.ramp(0, 1, lanes)] * splat(factor[r]) + fold[T.ramp(0, 1, lanes)] * splat(weight[r])
                    )
                for group in T.serial(rows // GROUP_ROWS):
                    for first in T.serial(blocks // group_blocks):
                        for r in T.unroll(GROUP_ROWS):
                            for b in T.unroll(group_blocks):
                                for p in T.unroll(parts):
                                    sums[r, b, p, T.ramp(0, 1, lanes)] = T.broadcast(0, lanes)
                        for c in T.serial(steps):
                            for q in T.unroll(step // QUAD):
                                for b in T.unroll(group_blocks):
                                    for p in T.unroll(parts):
                                        for r in T.unroll(GROUP_ROWS):
                                            sums[r, b, p, T.ramp(0, 1, lanes)] = code_dot(
                                                sums[r, b, p, T.ramp(0, 1, lanes)],
                                                broadcast_quad(
                                                    codes,
                                                    (group * GROUP_ROWS + r) * KEY_TILE + c * step + q * QUAD, "uint8",
                                                ),
                                                V[T.ramp(((first * group_blocks + b) * (padded // QUAD)
                                                          + (key_tile * KEY_TILE + c * step) // QUAD + q) * run
                                                         + p * part_bytes, 1, part_bytes)],
                                            )
                        for r in T.unroll(GROUP_ROWS):
                            for b in T.unroll(group_blocks):
                                for p in T.unroll(parts):
                                    out[group * GROUP_ROWS + r,
                                        T.ramp((first * group_blocks + b) * COLUMNS + p * lanes, 1, lanes)] = (
                                        out[group * GROUP_ROWS + r,
                                            T.ramp((first * group_blocks + b) * COLUMNS + p * lanes, 1, lanes)]
                                        * splat(factor[group * GROUP_ROWS + r])
                                        + T.Cast(vector, sums[r, b, p, T.ramp(0, 1, lanes)])
                                        * splat(weight[group * GROUP_ROWS + r])
                                    )
            for r in T.serial(rows):
                if tile * rows + r < tokens:
                    fold[T.ramp(0, 1, lanes)] = total[r, T.ramp(0, 1, lanes)]
                    T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
                    norm: T.float32 = T.float32(1 / top_code) / fold[0]
                    for c in T.unroll(head_dim // store_lanes):
                        OUT[T.ramp((tile * rows + r) * out_stride + c * store_lanes, 1, store_lanes)] = (
                            out[r, T.ramp(c * store_lanes, 1, store_lanes)]
                            * (VS[T.ramp(c * store_lanes, 1, store_lanes)] * T.broadcast(norm, store_lanes))
                            + VM[T.ramp(c * store_lanes, 1, store_lanes)]
                        )

    return kernel
