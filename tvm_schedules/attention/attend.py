"""Softmax attention of query rows over a range of a float cache, and the merge of partial results.

A row is one (token, query head) pair of a KV head: the query heads of a group share every key and value that is read.
A range of keys leaves, per row, the unnormalised sum o, its running maximum m and sum l; because rescaling is
associative (LeanAttention, arXiv 2405.10480), any split of the keys over threads merges to the same result.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm_schedules.attention.cache import TOKENS
from tvm_schedules.attention.masks import LOWEST, hidden, limit, masked, position, window_start
from tvm_schedules.targets import Variant
from tvm_schedules.vectors import exp, reduce_lanes

KV_TILE = 64
"""Keys between two rescalings."""


def attend(variant: Variant, head_dim: int, row_tile: int) -> Any:
    """Builds the PrimFunc.

    C signature: (q f32*, keys, key_scales f32*, values, value_scales f32*, tree s32*, partial f32*, heads, kv_heads,
    q_stride, capacity, n_past, tree_rows, window, kv_head, row_begin, row_end, key_begin, key_end). q is (T, q_stride)
    with query head h at h * E, already rotated and scaled. Rows row_begin.. are counted inside the KV head, token-major
    (row = token * (H/G) + head in the group); a row of token t sees keys max(0, n_past + t + 1 - window) .. n_past + t
    inclusive, inside [key_begin, key_end), with key_begin a multiple of 64; window <= 0 means no window. Without
    causality pass n_past = key_end. With tree_rows > 0 (at most 31 drafted tokens) token t sees the keys before n_past
    and of the drafted ones those whose bit is set in tree[t], its own among them; its position is n_past + the number
    of bits - 1. partial is (rows, E + 2), written at row - row_begin: o, then m and l. The scales are not read here.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = min(variant.lanes, TOKENS)
    parts = KV_TILE // lanes
    channels = head_dim // lanes

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        q_ptr: T.ptr("float32"), keys_ptr: T.ptr("float32"), key_scales_ptr: T.ptr("float32"),
        values_ptr: T.ptr("float32"), value_scales_ptr: T.ptr("float32"), tree_ptr: T.ptr("int32"),
        partial_ptr: T.ptr("float32"),
        heads: T.int32, kv_heads: T.int32, q_stride: T.int32, capacity: T.int32, n_past: T.int32, tree_rows: T.int32,
        window: T.int32, kv_head: T.int32, row_begin: T.int32, row_end: T.int32, key_begin: T.int32,
        key_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        Q = T.decl_buffer((1 << 30,), "float32", data=q_ptr)
        KEYS = T.decl_buffer((kv_heads * capacity * head_dim,), "float32", data=keys_ptr)
        VALUES = T.decl_buffer((kv_heads * capacity * head_dim,), "float32", data=values_ptr)
        TREE = T.decl_buffer((64,), "int32", data=tree_ptr)
        PARTIAL = T.decl_buffer(((row_end - row_begin) * (head_dim + 2),), "float32", data=partial_ptr)
        group: T.int32 = heads // kv_heads
        scores = T.alloc_buffer((row_tile, KV_TILE), "float32")
        out = T.alloc_buffer((row_tile, head_dim), "float32")
        top = T.alloc_buffer((row_tile,), "float32")
        total = T.alloc_buffer((row_tile,), "float32")
        offsets = T.alloc_buffer((row_tile,), "int32")
        limits = T.alloc_buffer((row_tile,), "int32")
        lows = T.alloc_buffer((row_tile,), "int32")
        fold = T.alloc_buffer((lanes,), "float32")
        for tile in T.serial((row_end - row_begin + row_tile - 1) // row_tile):
            for r in T.unroll(row_tile):
                row: T.int32 = T.min(row_begin + tile * row_tile + r, row_end - 1)
                offsets[r] = row // group * q_stride + (kv_head * group + row % group) * head_dim
                place: T.int32 = position(TREE, tree_rows, n_past, row // group)
                limits[r] = limit(place, tree_rows, n_past, key_end)
                lows[r] = window_start(place, window)
                top[r] = T.float32(LOWEST)
                total[r] = T.float32(0)
                for c in T.unroll(channels):
                    out[r, T.ramp(c * lanes, 1, lanes)] = splat(T.float32(0))
            last: T.int32 = limits[row_tile - 1]
            for key_tile in T.serial((T.max(last - key_begin, 0) + KV_TILE - 1) // KV_TILE):
                key: T.int32 = key_begin + key_tile * KV_TILE
                for r in T.unroll(row_tile):
                    for p in T.unroll(parts):
                        scores[r, T.ramp(p * lanes, 1, lanes)] = splat(T.float32(0))
                for p in T.serial(parts):
                    block: T.int32 = (kv_head * capacity + (key + p * lanes) // TOKENS * TOKENS) * head_dim + (
                        p * lanes
                    ) % TOKENS
                    for e in T.serial(head_dim):
                        for r in T.unroll(row_tile):
                            scores[r, T.ramp(p * lanes, 1, lanes)] = scores[r, T.ramp(p * lanes, 1, lanes)] + KEYS[
                                T.ramp(block + e * TOKENS, 1, lanes)
                            ] * splat(Q[offsets[r] + e])
                for r in T.unroll(row_tile):
                    for p in T.unroll(parts):
                        scores[r, T.ramp(p * lanes, 1, lanes)] = masked(
                            scores[r, T.ramp(p * lanes, 1, lanes)], key + p * lanes, lows[r], limits[r], lanes
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
                for r in T.unroll(row_tile):
                    fold[T.ramp(0, 1, lanes)] = splat(top[r])
                    for p in T.unroll(parts):
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], scores[r, T.ramp(p * lanes, 1, lanes)]
                        )
                    T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                    new_top: T.float32 = fold[0]
                    fold[T.ramp(0, 1, lanes)] = exp(splat(top[r] - new_top), lanes)
                    factor: T.float32 = fold[0]
                    top[r] = new_top
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for p in T.unroll(parts):
                        scores[r, T.ramp(p * lanes, 1, lanes)] = exp(
                            scores[r, T.ramp(p * lanes, 1, lanes)] - splat(new_top), lanes
                        )
                        fold[T.ramp(0, 1, lanes)] = fold[T.ramp(0, 1, lanes)] + scores[r, T.ramp(p * lanes, 1, lanes)]
                    T.add_to_parent(reduce_lanes(fold, lanes, operator.add))
                    total[r] = total[r] * factor + fold[0]
                    for c in T.unroll(channels):
                        out[r, T.ramp(c * lanes, 1, lanes)] = out[r, T.ramp(c * lanes, 1, lanes)] * splat(factor)
                for t in T.serial(T.min(last - key, KV_TILE)):
                    for c in T.unroll(channels):
                        for r in T.unroll(row_tile):
                            out[r, T.ramp(c * lanes, 1, lanes)] = out[r, T.ramp(c * lanes, 1, lanes)] + VALUES[
                                T.ramp((kv_head * capacity + key + t) * head_dim + c * lanes, 1, lanes)
                            ] * splat(scores[r, t])
            for r in T.serial(row_tile):
                if tile * row_tile + r < row_end - row_begin:
                    for c in T.unroll(channels):
                        PARTIAL[T.ramp((tile * row_tile + r) * (head_dim + 2) + c * lanes, 1, lanes)] = out[
                            r, T.ramp(c * lanes, 1, lanes)
                        ]
                    PARTIAL[(tile * row_tile + r) * (head_dim + 2) + head_dim] = top[r]
                    PARTIAL[(tile * row_tile + r) * (head_dim + 2) + head_dim + 1] = total[r]

    return kernel


def merge(variant: Variant, head_dim: int) -> Any:
    """Builds the PrimFunc that merges partial results and normalises them.

    C signature: (partials f32*, out f32*, n_parts, n_rows, heads, kv_heads, out_stride, kv_head, row_begin, row_end),
    with partials (n_parts, n_rows, E + 2) of one KV head and out (T, out_stride), query head h at h * E.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    lanes = variant.lanes
    channels = head_dim // lanes

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        partials_ptr: T.ptr("float32"), out_ptr: T.ptr("float32"),
        n_parts: T.int32, n_rows: T.int32, heads: T.int32, kv_heads: T.int32, out_stride: T.int32, kv_head: T.int32,
        row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        P = T.decl_buffer((n_parts * n_rows * (head_dim + 2),), "float32", data=partials_ptr)
        OUT = T.decl_buffer((1 << 30,), "float32", data=out_ptr)
        group: T.int32 = heads // kv_heads
        total = T.alloc_buffer((head_dim,), "float32")
        top = T.alloc_buffer((1,), "float32")
        norm = T.alloc_buffer((1,), "float32")
        weight = T.alloc_buffer((lanes,), "float32")
        for row in T.serial(row_begin, row_end):
            top[0] = T.float32(LOWEST)
            norm[0] = T.float32(0)
            for s in T.serial(n_parts):
                top[0] = T.max(top[0], P[(s * n_rows + row) * (head_dim + 2) + head_dim])
            for c in T.unroll(channels):
                total[T.ramp(c * lanes, 1, lanes)] = splat(T.float32(0))
            for s in T.serial(n_parts):
                base: T.int32 = (s * n_rows + row) * (head_dim + 2)
                weight[T.ramp(0, 1, lanes)] = exp(splat(P[base + head_dim] - top[0]), lanes)
                norm[0] = norm[0] + weight[0] * P[base + head_dim + 1]
                for c in T.unroll(channels):
                    total[T.ramp(c * lanes, 1, lanes)] = total[T.ramp(c * lanes, 1, lanes)] + P[
                        T.ramp(base + c * lanes, 1, lanes)
                    ] * weight[T.ramp(0, 1, lanes)]
            target: T.int32 = row // group * out_stride + (kv_head * group + row % group) * head_dim
            for c in T.unroll(channels):
                OUT[T.ramp(target + c * lanes, 1, lanes)] = total[T.ramp(c * lanes, 1, lanes)] * splat(
                    T.float32(1) / norm[0]
                )

    return kernel
