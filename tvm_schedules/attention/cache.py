"""RoPE on the queries and keys of new tokens, and their append to the cache.

Cache of one layer, G heads of E channels. As codes (8 or 4 bits, each (token, head) with its own scale), two channels
of a key and two tokens of a value lie side by side, because the dot product takes pairs (`attend_codes.py`):

- keys (G, capacity/16, E/2, 16, 2) of 8 bits: channel pair, token, channel in the pair;
- keys (G, capacity/16, E/4, 16, 2) of 4 bits: the low nibble is the first pair of four channels, the high the second;
- values (G, capacity/2, E, 2) of 8 bits: token pair, channel, token in the pair;
- values (G, capacity/2, E/32, 16, 2) of 4 bits: of 32 channels the low nibble is one of the first 16, the high
  one of the last 16.

As floats: keys (G, capacity/16, E, 16), values (G, capacity, E).
"""

from __future__ import annotations

from typing import Any, Literal

from tvm_schedules.targets import Variant
from tvm_schedules.vectors import reduce_lanes

KVBits = Literal[4, 8, 32]
"""Bits of keys or of values; 32 is float32, of both or of none."""
TOKENS = 16
"""Tokens of one block of keys."""
MIDDLE = 8
"""The 4-bit code of zero."""


def form_name(key_bits: KVBits, value_bits: KVBits) -> str:
    """Such as 'k8v4' or 'float'."""
    return "float" if key_bits == 32 else f"k{key_bits}v{value_bits}"


def append(variant: Variant, head_dim: int, key_bits: KVBits, value_bits: KVBits) -> Any:
    """Builds the PrimFunc.

    C signature: (qkv f32*, cos f32*, sin f32*, centre f32*, positions s32*, keys, key_scales f32*, values,
    value_scales f32*, heads, kv_heads, capacity, n_past, scale, qkv_stride, row_begin, row_end). qkv is (T, qkv_stride)
    as the merged projection leaves it, (H + 2 G) E columns and padding; its queries are rotated and multiplied by
    `scale` in place. cos and sin are (positions, E/2) tables. `centre` (G, E) is subtracted from rotated keys.
    key_scales, value_scales (G, capacity). Scales: max|v| / 127 of 8 bits; of 4 bits v / -8 with the v of largest
    magnitude, so that all 16 codes are used (as llama.cpp's Q4_0 does).
    """
    from tvm import tirx
    from tvm.script import tirx as T

    half = head_dim // 2
    lanes = min(variant.lanes, half)
    vectors = head_dim // lanes
    floats = key_bits == 32
    key_type, value_type = ("float32", "float32") if floats else ("uint8", "uint8")

    def splat(value: Any) -> Any:
        return tirx.Broadcast(value, lanes)

    def extreme(buffer: Any, fold: Any, combine: Any) -> Any:
        statements = [tirx.BufferStore(fold, buffer.vload([0], f"float32x{lanes}"), [tirx.Ramp(0, 1, lanes)])]
        for c in range(1, vectors):
            folded = combine(fold.vload([0], f"float32x{lanes}"), buffer.vload([c * lanes], f"float32x{lanes}"))
            statements.append(tirx.BufferStore(fold, folded, [tirx.Ramp(0, 1, lanes)]))
        return tirx.SeqStmt([*statements, reduce_lanes(fold, lanes, combine)])

    def scale_of(low: Any, high: Any, bits: int) -> Any:
        if bits == 8:
            return tirx.max(high, -low) / T.float32(127)
        return tirx.Select(high >= -low, high, low) / T.float32(-8)

    def code(value: Any, inverse: Any, bits: int) -> Any:
        """uint8 vector: the two's complement of 8 bits, or code + 8 of 4 bits."""
        rounded = tirx.Cast(f"int32x{lanes}", tirx.nearbyint(value * splat(inverse)))
        if bits == 8:
            return tirx.Cast(f"uint8x{lanes}", rounded)
        return tirx.Cast(f"uint8x{lanes}", tirx.min(rounded, splat(T.int32(7))) + splat(T.int32(MIDDLE)))

    def key_store(keys: Any, codes: Any, base: Any, e: Any) -> Any:
        """Stores the byte(s) of channel pair e (8 bits) or of channels 4 e .. 4 e + 3 (4 bits)."""
        if key_bits == 8:
            values = [codes[2 * e], codes[2 * e + 1]]
        else:
            values = [
                codes[4 * e + j] | tirx.shift_left(codes[4 * e + 2 + j], tirx.const(4, "uint8")) for j in range(2)
            ]
        return tirx.SeqStmt([tirx.BufferStore(keys, v, [base + e * TOKENS * 2 + j]) for j, v in enumerate(values)])

    def value_store(values: Any, codes: Any, base: Any, e: Any) -> Any:
        """Stores the byte of channel e (8 bits), or the one of the e-th pair of channels (4 bits)."""
        if value_bits == 8:
            return tirx.BufferStore(values, codes[e], [base + e * 2])
        low = e // 16 * 32 + e % 16
        byte = codes[low] | tirx.shift_left(codes[low + 16], tirx.const(4, "uint8"))
        return tirx.BufferStore(values, byte, [base + e * 2])

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        qkv_ptr: T.ptr("float32"), cos_ptr: T.ptr("float32"), sin_ptr: T.ptr("float32"), centre_ptr: T.ptr("float32"),
        positions_ptr: T.ptr("int32"), keys_ptr: T.ptr(key_type), key_scales_ptr: T.ptr("float32"),
        values_ptr: T.ptr(value_type), value_scales_ptr: T.ptr("float32"),
        heads: T.int32, kv_heads: T.int32, capacity: T.int32, n_past: T.int32, scale: T.float32,
        qkv_stride: T.int32, row_begin: T.int32, row_end: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        QKV = T.decl_buffer((row_end * qkv_stride,), "float32", data=qkv_ptr)
        COS = T.decl_buffer((1 << 24,), "float32", data=cos_ptr)
        SIN = T.decl_buffer((1 << 24,), "float32", data=sin_ptr)
        CENTRE = T.decl_buffer((kv_heads * head_dim,), "float32", data=centre_ptr)
        POSITIONS = T.decl_buffer((row_end,), "int32", data=positions_ptr)
        KEYS = T.decl_buffer((kv_heads * capacity * head_dim,), key_type, data=keys_ptr)
        KEY_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=key_scales_ptr)
        VALUES = T.decl_buffer((kv_heads * capacity * head_dim,), value_type, data=values_ptr)
        VALUE_SCALES = T.decl_buffer((kv_heads * capacity,), "float32", data=value_scales_ptr)
        rotated = T.alloc_buffer((head_dim,), "float32")
        codes = T.alloc_buffer((head_dim,), "uint8")
        low = T.alloc_buffer((lanes,), "float32")
        high = T.alloc_buffer((lanes,), "float32")
        for row in T.serial(row_begin, row_end):
            angle: T.int32 = POSITIONS[row] * half
            slot: T.int32 = n_past + row
            for head in T.serial(heads + kv_heads):
                base: T.int32 = row * qkv_stride + head * head_dim
                for c in T.unroll(half // lanes):
                    # fma, so that no target chooses which of the two products is rounded.
                    rotated[T.ramp(c * lanes, 1, lanes)] = T.fma(
                        QKV[T.ramp(base + c * lanes, 1, lanes)], COS[T.ramp(angle + c * lanes, 1, lanes)],
                        (splat(T.float32(0)) - QKV[T.ramp(base + half + c * lanes, 1, lanes)])
                        * SIN[T.ramp(angle + c * lanes, 1, lanes)],
                    )
                    rotated[T.ramp(half + c * lanes, 1, lanes)] = T.fma(
                        QKV[T.ramp(base + half + c * lanes, 1, lanes)], COS[T.ramp(angle + c * lanes, 1, lanes)],
                        QKV[T.ramp(base + c * lanes, 1, lanes)] * SIN[T.ramp(angle + c * lanes, 1, lanes)],
                    )
                if head < heads:
                    for c in T.unroll(vectors):
                        QKV[T.ramp(base + c * lanes, 1, lanes)] = rotated[T.ramp(c * lanes, 1, lanes)] * splat(scale)
                else:
                    key_head: T.int32 = head - heads
                    for c in T.unroll(vectors):
                        rotated[T.ramp(c * lanes, 1, lanes)] = (
                            rotated[T.ramp(c * lanes, 1, lanes)]
                            - CENTRE[T.ramp(key_head * head_dim + c * lanes, 1, lanes)]
                        )
                    if floats:
                        for e in T.serial(head_dim):
                            KEYS[
                                (key_head * capacity + slot // TOKENS * TOKENS) * head_dim + slot % TOKENS + e * TOKENS
                            ] = rotated[e]
                    else:
                        T.add_to_parent(extreme(rotated, low, tirx.min))
                        T.add_to_parent(extreme(rotated, high, tirx.max))
                        key_scale: T.float32 = scale_of(low[0], high[0], key_bits)
                        KEY_SCALES[key_head * capacity + slot] = key_scale
                        key_inverse: T.float32 = T.if_then_else(
                            key_scale != T.float32(0), T.float32(1) / key_scale, T.float32(0)
                        )
                        for c in T.unroll(vectors):
                            codes[T.ramp(c * lanes, 1, lanes)] = code(
                                rotated[T.ramp(c * lanes, 1, lanes)], key_inverse, key_bits
                            )
                        key_base: T.int32 = (
                            (key_head * capacity + slot // TOKENS * TOKENS) * head_dim * key_bits // 8
                            + slot % TOKENS * 2
                        )
                        for e in T.serial(head_dim * key_bits // 16):
                            T.add_to_parent(key_store(KEYS, codes, key_base, e))
            for value_head in T.serial(kv_heads):
                value_base: T.int32 = row * qkv_stride + (heads + kv_heads + value_head) * head_dim
                if floats:
                    for c in T.unroll(vectors):
                        VALUES[
                            T.ramp((value_head * capacity + slot) * head_dim + c * lanes, 1, lanes)
                        ] = QKV[T.ramp(value_base + c * lanes, 1, lanes)]
                else:
                    for c in T.unroll(vectors):
                        rotated[T.ramp(c * lanes, 1, lanes)] = QKV[T.ramp(value_base + c * lanes, 1, lanes)]
                    T.add_to_parent(extreme(rotated, low, tirx.min))
                    T.add_to_parent(extreme(rotated, high, tirx.max))
                    value_scale: T.float32 = scale_of(low[0], high[0], value_bits)
                    VALUE_SCALES[value_head * capacity + slot] = value_scale
                    value_inverse: T.float32 = T.if_then_else(
                        value_scale != T.float32(0), T.float32(1) / value_scale, T.float32(0)
                    )
                    for c in T.unroll(vectors):
                        codes[T.ramp(c * lanes, 1, lanes)] = code(
                            rotated[T.ramp(c * lanes, 1, lanes)], value_inverse, value_bits
                        )
                    for e in T.serial(head_dim * value_bits // 8):
                        T.add_to_parent(
                            value_store(
                                VALUES, codes,
                                (value_head * capacity + slot // 2 * 2) * head_dim * value_bits // 8 + slot % 2, e,
                            )
                        )

    return kernel
