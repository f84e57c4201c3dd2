"""RoPE on the queries and keys of new tokens, and their append to the cache.

Cache of one layer: keys (G, capacity/16, E, 16), so that one vector holds one channel of 16 tokens; values (G,
capacity, E). In int8 each (token, head) has its own scale, max|v| / 127.
"""

from __future__ import annotations

from typing import Any, Literal

from tvm_schedules.targets import Variant
from tvm_schedules.vectors import reduce_lanes

KVType = Literal["int8", "float32"]
TOKENS = 16
"""Tokens of one block of keys."""


def append(variant: Variant, head_dim: int, kv: KVType) -> Any:
    """Builds the PrimFunc.

    C signature: (qkv f32*, cos f32*, sin f32*, centre f32*, positions s32*, keys, key_scales f32*, values,
    value_scales f32*, heads, kv_heads, capacity, n_past, scale, qkv_stride, row_begin, row_end). qkv is (T, qkv_stride)
    as the merged projection leaves it, (H + 2 G) E columns and padding; its queries are rotated and multiplied by
    `scale` in place. cos and sin are (positions, E/2) tables. `centre` (G, E) is subtracted from rotated keys.
    key_scales, value_scales (G, capacity).
    """
    from tvm import tirx
    from tvm.script import tirx as T

    half = head_dim // 2
    lanes = min(variant.lanes, half)
    int8 = kv == "int8"

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        qkv_ptr: T.ptr("float32"), cos_ptr: T.ptr("float32"), sin_ptr: T.ptr("float32"), centre_ptr: T.ptr("float32"),
        positions_ptr: T.ptr("int32"), keys_ptr: T.ptr(kv), key_scales_ptr: T.ptr("float32"), values_ptr: T.ptr(kv),
        value_scales_ptr: T.ptr("float32"),
        heads: T.int32, kv_heads: T.int32, capacity: T.int32, n_past: T.int32, scale: T.float32,
        qkv_stride: T.int32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        QKV = T.decl_buffer((row_end * qkv_stride,), "float32", data=qkv_ptr)
        COS = T.decl_buffer((1 << 24,), "float32", data=cos_ptr)
        SIN = T.decl_buffer((1 << 24,), "float32", data=sin_ptr)
        CENTRE = T.decl_buffer((kv_heads * head_dim,), "float32", data=centre_ptr)
        POSITIONS = T.decl_buffer((row_end,), "int32", data=positions_ptr)
        KEYS = T.decl_buffer((kv_heads * capacity * head_dim,), kv, data=keys_ptr)
        KEY_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=key_scales_ptr)
        VALUES = T.decl_buffer((kv_heads * capacity * head_dim,), kv, data=values_ptr)
        VALUE_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=value_scales_ptr)
        rotated = T.alloc_buffer((head_dim,), "float32")
        codes = T.alloc_buffer((head_dim,), "int8")
        fold = T.alloc_buffer((lanes,), "float32")
        for row in T.serial(row_begin, row_end):
            angle: T.int32 = POSITIONS[row] * half
            slot: T.int32 = n_past + row
            for head in T.serial(heads + kv_heads):
                base: T.int32 = row * qkv_stride + head * head_dim
                for c in T.unroll(half // lanes):
                    rotated[T.ramp(c * lanes, 1, lanes)] = (
                        QKV[T.ramp(base + c * lanes, 1, lanes)] * COS[T.ramp(angle + c * lanes, 1, lanes)]
                        - QKV[T.ramp(base + half + c * lanes, 1, lanes)] * SIN[T.ramp(angle + c * lanes, 1, lanes)]
                    )
                    rotated[T.ramp(half + c * lanes, 1, lanes)] = (
                        QKV[T.ramp(base + half + c * lanes, 1, lanes)] * COS[T.ramp(angle + c * lanes, 1, lanes)]
                        + QKV[T.ramp(base + c * lanes, 1, lanes)] * SIN[T.ramp(angle + c * lanes, 1, lanes)]
                    )
                if head < heads:
                    for c in T.unroll(head_dim // lanes):
                        QKV[T.ramp(base + c * lanes, 1, lanes)] = rotated[T.ramp(c * lanes, 1, lanes)] * splat(scale)
                else:
                    key_head: T.int32 = head - heads
                    for c in T.unroll(head_dim // lanes):
                        rotated[T.ramp(c * lanes, 1, lanes)] = (
                            rotated[T.ramp(c * lanes, 1, lanes)]
                            - CENTRE[T.ramp(key_head * head_dim + c * lanes, 1, lanes)]
                        )
                    key_base: T.int32 = (key_head * capacity + slot // TOKENS * TOKENS) * head_dim + slot % TOKENS
                    if int8:
                        fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                        for c in T.unroll(head_dim // lanes):
                            fold[T.ramp(0, 1, lanes)] = T.max(
                                fold[T.ramp(0, 1, lanes)], T.abs(rotated[T.ramp(c * lanes, 1, lanes)])
                            )
                        T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                        KEY_SCALES[key_head * capacity + slot] = fold[0] / T.float32(127)
                        key_inverse: T.float32 = T.if_then_else(
                            fold[0] > T.float32(0), T.float32(127) / fold[0], T.float32(0)
                        )
                        for c in T.unroll(head_dim // lanes):
                            codes[T.ramp(c * lanes, 1, lanes)] = T.Cast(
                                f"int8x{lanes}", T.nearbyint(rotated[T.ramp(c * lanes, 1, lanes)] * splat(key_inverse))
                            )
                        for e in T.serial(head_dim):
                            KEYS[key_base + e * TOKENS] = codes[e]
                    else:
                        for e in T.serial(head_dim):
                            KEYS[key_base + e * TOKENS] = rotated[e]
            for value_head in T.serial(kv_heads):
                value_base: T.int32 = row * qkv_stride + (heads + kv_heads + value_head) * head_dim
                store: T.int32 = (value_head * capacity + slot) * head_dim
                if int8:
                    fold[T.ramp(0, 1, lanes)] = splat(T.float32(0))
                    for c in T.unroll(head_dim // lanes):
                        fold[T.ramp(0, 1, lanes)] = T.max(
                            fold[T.ramp(0, 1, lanes)], T.abs(QKV[T.ramp(value_base + c * lanes, 1, lanes)])
                        )
                    T.add_to_parent(reduce_lanes(fold, lanes, tirx.max))
                    VALUE_SCALES[value_head * capacity + slot] = fold[0] / T.float32(127)
                    value_inverse: T.float32 = T.if_then_else(
                        fold[0] > T.float32(0), T.float32(127) / fold[0], T.float32(0)
                    )
                    for c in T.unroll(head_dim // lanes):
                        VALUES[T.ramp(store + c * lanes, 1, lanes)] = T.Cast(
                            f"int8x{lanes}",
                            T.nearbyint(QKV[T.ramp(value_base + c * lanes, 1, lanes)] * splat(value_inverse)),
                        )
                else:
                    for c in T.unroll(head_dim // lanes):
                        VALUES[T.ramp(store + c * lanes, 1, lanes)] = QKV[T.ramp(value_base + c * lanes, 1, lanes)]

    return kernel
