"""Softmax attention over a cache of 8- or 4-bit codes: `attend.py`'s computation on integer dot products of pairs.

Queries and softmax weights become 16-bit integers (per row, and per row and tile of keys), whose step is 1/250 of that
of the cache's own codes; products are summed exactly in 32 bits and scaled once per tile. Twice the multiply-adds of
float per instruction, and codes are widened once instead of converted twice.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm_schedules.attention.attend import KV_TILE
from tvm_schedules.attention.cache import MIDDLE, TOKENS, KVBits
from tvm_schedules.attention.masks import LOWEST, hidden, limit, masked, position, window_start
from tvm_schedules.dots import pair_dot
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import exp, reduce_lanes

FULL = 32767
"""Largest 16-bit integer. KV_TILE * FULL * 127 and E * FULL * 127 (E <= 512) stay below 2^31."""


def attend_codes(variant: Variant, head_dim: int, key_bits: KVBits, value_bits: KVBits, row_tile: int) -> Any:
    """Builds the PrimFunc; C signature and meaning are `attend`'s, the cache as `cache.py` lays it out."""
    from tvm import tirx
    from tvm.script import tirx as T

    dot = pair_dot(variant)
    lanes = min(variant.lanes, TOKENS)
    parts = KV_TILE // lanes
    channels = head_dim // lanes
    key_nibbles, value_nibbles = 8 // key_bits, 8 // value_bits
    at_once = 2 if row_tile <= 4 else 1
    """Vectors of keys, or of channels, in flight: enough independent sums to hide the latency of a dot product."""
    value_step = at_once * value_nibbles
    vector, pairs = f"float32x{lanes}", f"int16x{2 * lanes}"

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def widened(buffer: Any, offset: Any, nibble: Any, bits: int) -> Any:
        """int16 pairs: signed codes of 8 bits, codes 0..15 of 4 bits."""
        if bits == 8:
            return tirx.Cast(pairs, tirx.reinterpret(f"int8x{2 * lanes}", buffer.vload([offset], f"uint8x{2 * lanes}")))
        wide = tirx.Cast(pairs, buffer.vload([offset], f"uint8x{2 * lanes}"))
        shifted = tirx.shift_right(wide, tirx.Broadcast(tirx.Cast("int16", nibble * 4), 2 * lanes))
        return shifted & tirx.Broadcast(tirx.const(15, "int16"), 2 * lanes)

    def value_offset(base: Any, token_pair: Any, first_vector: Any, i: Any) -> Any:
        """Offset of the bytes that hold channel vector first_vector + i (8 bits) or its pair of them (4 bits)."""
        row = base + token_pair * (2 * head_dim // value_nibbles)
        if value_bits == 8:
            return row + (first_vector + i) * lanes * 2
        low = first_vector // 2 + i // 2
        per_block = 16 // lanes
        return row + low // per_block * 32 + low % per_block * lanes * 2

    def channel(first_vector: Any, i: Any) -> Any:
        """Which channel vector slot i of a step is: of 4 bits the two nibbles of a byte are 16 channels apart."""
        if value_bits == 8:
            return first_vector + i
        per_block = 16 // lanes
        low = first_vector // 2 + i // 2
        return low // per_block * 2 * per_block + low % per_block + i % 2 * per_block

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        q_ptr: T.ptr("float32"), keys_ptr: T.ptr("uint8"), key_scales_ptr: T.ptr("float32"),
        values_ptr: T.ptr("uint8"), value_scales_ptr: T.ptr("float32"), tree_ptr: T.ptr("int32"),
        partial_ptr: T.ptr("float32"),
        heads: T.int32, kv_heads: T.int32, q_stride: T.int32, capacity: T.int32, n_past: T.int32, tree_rows: T.int32,
        window: T.int32, kv_head: T.int32, row_begin: T.int32, row_end: T.int32, key_begin: T.int32,
        key_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        Q = T.decl_buffer((1 << 30,), "float32", data=q_ptr)
        KEYS = T.decl_buffer((kv_heads * capacity * head_dim,), "uint8", data=keys_ptr)
        KEY_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=key_scales_ptr)
        VALUES = T.decl_buffer((kv_heads * capacity * head_dim,), "uint8", data=values_ptr)
        VALUE_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=value_scales_ptr)
        TREE = T.decl_buffer((64,), "int32", data=tree_ptr)
        PARTIAL = T.decl_buffer(((row_end - row_begin) * (head_dim + 2),), "float32", data=partial_ptr)
        group: T.int32 = heads // kv_heads
        query = T.alloc_buffer((row_tile, head_dim), "int16")
        query_scale = T.alloc_buffer((row_tile,), "float32")
        query_start = T.alloc_buffer((row_tile,), "int32")
        scores = T.alloc_buffer((row_tile, KV_TILE), "float32")
        weights = T.alloc_buffer((row_tile, KV_TILE), "int16")
        weight_scale = T.alloc_buffer((row_tile,), "float32")
        weight_start = T.alloc_buffer((row_tile,), "int32")
        factors = T.alloc_buffer((row_tile,), "float32")
        sums = T.alloc_buffer((row_tile, value_step, lanes), "int32")
        out = T.alloc_buffer((row_tile, head_dim), "float32")
        top = T.alloc_buffer((row_tile,), "float32")
        total = T.alloc_buffer((row_tile,), "float32")
        limits = T.alloc_buffer((row_tile,), "int32")
        lows = T.alloc_buffer((row_tile,), "int32")
        fold = T.alloc_buffer((lanes,), "float32")
        count = T.alloc_buffer((lanes,), "int32")
        for tile in T.serial((row_end - row_begin + row_tile - 1) // row_tile):
            for r in T.serial(row_tile):
                row: T.int32 = T.min(row_begin + tile * row_tile + r, row_end - 1)
                offset: T.int32 = row // group * q_stride + (kv_head * group + row % group) * head_dim
                place: T.int32 = position(TREE, tree_rows, n_past, row // group)
                limits[r] = limit(place, tree_rows, n_past, key_end)
                lows[r] = window_start(place, window)
                top[r] = T.float32(LOWEST)
                total[r] = T.float32(0)
                fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                for c in T.unroll(channels):
                    fold[T.ramp(0, 1, lanes)] = T.max(
                        fold[T.ramp(0, 1, lanes)], T.abs(Q[T.ramp(offset + c * lanes, 1, lanes)])
                    )
                    out[r, T.ramp(c * lanes, 1, lanes)] = splat(T.float32(0))
                T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                query_scale[r] = fold[0] / T.float32(FULL)
                query_inverse: T.float32 = T.if_then_else(
                    fold[0] > T.float32(0), T.float32(FULL) / fold[0], T.float32(0)
                )
                count[T.ramp(0, 1, lanes)] = splat(0)
                for c in T.unroll(channels):
                    fold[T.ramp(0, 1, lanes)] = T.nearbyint(
                        Q[T.ramp(offset + c * lanes, 1, lanes)] * splat(query_inverse)
                    )
                    count[T.ramp(0, 1, lanes)] = count[T.ramp(0, 1, lanes)] + T.Cast(
                        f"int32x{lanes}", fold[T.ramp(0, 1, lanes)]
                    )
                    query[r, T.ramp(c * lanes, 1, lanes)] = T.Cast(f"int16x{lanes}", fold[T.ramp(0, 1, lanes)])
                T.add_to_parent(reduce_lanes(count, lanes, operator.add))
                query_start[r] = T.int32(0) if key_bits == 8 else count[0] * -MIDDLE
            last: T.int32 = limits[row_tile - 1]
            for key_tile in T.serial((T.max(last - key_begin, 0) + KV_TILE - 1) // KV_TILE):
                key: T.int32 = key_begin + key_tile * KV_TILE
                for p in T.serial(parts // at_once):
                    for i in T.unroll(at_once):
                        for r in T.unroll(row_tile):
                            sums[r, i, T.ramp(0, 1, lanes)] = splat(query_start[r])
                    for e in T.serial(head_dim // 2 // key_nibbles):
                        for nibble in T.unroll(key_nibbles):
                            for i in T.unroll(at_once):
                                for r in T.unroll(row_tile):
                                    sums[r, i, T.ramp(0, 1, lanes)] = dot(
                                        sums[r, i, T.ramp(0, 1, lanes)],
                                        widened(
                                            KEYS,
                                            (kv_head * capacity + (key + (p * at_once + i) * lanes) // TOKENS * TOKENS)
                                            * head_dim // key_nibbles
                                            + e * TOKENS * 2 + (key + (p * at_once + i) * lanes) % TOKENS * 2,
                                            nibble, key_bits,
                                        ),
                                        query, [r, (e * key_nibbles + nibble) * 2],
                                    )
                    for i in T.unroll(at_once):
                        for r in T.unroll(row_tile):
                            scores[r, T.ramp((p * at_once + i) * lanes, 1, lanes)] = masked(
                                T.Cast(vector, sums[r, i, T.ramp(0, 1, lanes)])
                                * (KEY_SCALES[T.ramp(kv_head * capacity + key + (p * at_once + i) * lanes, 1, lanes)]
                                   * splat(query_scale[r])),
                                key + (p * at_once + i) * lanes, lows[r], limits[r], lanes,
                            )
                if tree_rows > 0:
                    for r in T.serial(row_tile):
                        for t in T.serial(
                            T.min(T.max(n_past - key, 0), KV_TILE), T.min(T.max(n_past + tree_rows - key, 0), KV_TILE)
                        ):
                            if hidden(
                                TREE, T.min(row_begin + tile * row_tile + r, row_end - 1) // group, key + t - n_past
                            ):
                                scores[r, t] = T.float32(LOWEST)
                for r in T.serial(row_tile):
                    fold[T.ramp(0, 1, lanes)] = splat(top[r])
                    for p in T.unroll(parts):
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], scores[r, T.ramp(p * lanes, 1, lanes)]
                        )
                    T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                    new_top: T.float32 = fold[0]
                    fold[T.ramp(0, 1, lanes)] = exp(splat(top[r] - new_top), lanes)
                    factors[r] = fold[0]
                    top[r] = new_top
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for p in T.unroll(parts):
                        scores[r, T.ramp(p * lanes, 1, lanes)] = exp(
                            scores[r, T.ramp(p * lanes, 1, lanes)] - splat(new_top), lanes
                        )
                        fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + scores[r, T.ramp(p * lanes, 1, lanes)]
                    T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
                    total[r] = total[r] * factors[r] + fold[0]
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for p in T.unroll(parts):
                        scores[r, T.ramp(p * lanes, 1, lanes)] = (
                            scores[r, T.ramp(p * lanes, 1, lanes)]
                            * VALUE_SCALES[T.ramp(kv_head * capacity + key + p * lanes, 1, lanes)]
                        )
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], T.abs(scores[r, T.ramp(p * lanes, 1, lanes)])
                        )
                    T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                    weight_scale[r] = fold[0] / T.float32(FULL)
                    weight_inverse: T.float32 = T.if_then_else(
                        fold[0] > T.float32(1e-30), T.float32(FULL) / fold[0], T.float32(0)
                    )
                    count[T.ramp(0, 1, lanes)] = splat(0)
                    for p in T.unroll(parts):
                        fold[T.ramp(0, 1, lanes)] = T.nearbyint(
                            scores[r, T.ramp(p * lanes, 1, lanes)] * splat(weight_inverse)
                        )
                        count[T.ramp(0, 1, lanes)] = count[T.ramp(0, 1, lanes)] + T.Cast(
                            f"int32x{lanes}", fold[T.ramp(0, 1, lanes)]
                        )
                        weights[r, T.ramp(p * lanes, 1, lanes)] = T.Cast(
                            f"int16x{lanes}", fold[T.ramp(0, 1, lanes)]
                        )
                    T.add_to_parent(reduce_lanes(count, lanes, operator.add))
                    weight_start[r] = T.int32(0) if value_bits == 8 else count[0] * -MIDDLE
                for step in T.serial(channels // value_step):
                    for i in T.unroll(value_step):
                        for r in T.unroll(row_tile):
                            sums[r, i, T.ramp(0, 1, lanes)] = splat(weight_start[r])
                    for t in T.serial((T.min(last - key, KV_TILE) + 1) // 2):
                        for i in T.unroll(value_step):
                            for r in T.unroll(row_tile):
                                sums[r, i, T.ramp(0, 1, lanes)] = dot(
                                    sums[r, i, T.ramp(0, 1, lanes)],
                                    widened(
                                        VALUES,
                                        value_offset(
                                            (kv_head * capacity + key) * head_dim // value_nibbles, t,
                                            step * value_step, i,
                                        ),
                                        i % value_nibbles, value_bits,
                                    ),
                                    weights, [r, t * 2],
                                )
                    for i in T.unroll(value_step):
                        for r in T.unroll(row_tile):
                            out[r, T.ramp(channel(step * value_step, i) * lanes, 1, lanes)] = out[
                                r, T.ramp(channel(step * value_step, i) * lanes, 1, lanes)
                            ] * splat(factors[r]) + T.Cast(vector, sums[r, i, T.ramp(0, 1, lanes)]) * splat(
                                weight_scale[r]
                            )
            for r in T.serial(row_tile):
                if tile * row_tile + r < row_end - row_begin:
                    for c in T.unroll(channels):
                        PARTIAL[T.ramp((tile * row_tile + r) * (head_dim + 2) + c * lanes, 1, lanes)] = out[
                            r, T.ramp(c * lanes, 1, lanes)
                        ]
                    PARTIAL[(tile * row_tile + r) * (head_dim + 2) + head_dim] = top[r]
                    PARTIAL[(tile * row_tile + r) * (head_dim + 2) + head_dim + 1] = total[r]

    return kernel
