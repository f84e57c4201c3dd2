"""Every kernel that a library carries, by the name under which the engine looks it up."""

from __future__ import annotations

from typing import Any

from tvm_schedules.attention.attend import attend, merge
from tvm_schedules.attention.attend_codes import attend_codes
from tvm_schedules.attention.cache import KVBits, append, form_name
from tvm_schedules.elementwise import limits, limits_arm64
from tvm_schedules.elementwise.embed import embed
from tvm_schedules.elementwise.quantise_rows import Norm, quantise_rows
from tvm_schedules.gemm import weight_codes, weight_codes_arm64
from tvm_schedules.targets import Variant
from tvm_schedules.tower_kernels import TOWER_ARCHS, tower_kernels

GROUPS = (32, 64, 128)
HEAD_DIMS = (64, 128)
NORMS: tuple[Norm, ...] = ("none", "rms", "layer")
KV_FORMS: tuple[tuple[KVBits, KVBits], ...] = ((8, 8), (8, 4), (4, 8), (4, 4), (32, 32))
"""Bits of keys and of values; 32 is float."""
CODES = ((4, False), (4, True), (8, False))
"""(bits, zero point) of weight codes."""


def code_name(bits: int, group: int, zero_point: bool) -> str:
    """Such as 'w4g32z'."""
    return f"w{bits}g{group}{'z' if zero_point else ''}"


def kernel_set(variant: Variant) -> dict[str, Any]:
    """Returns name → PrimFunc of all kernels of one variant."""
    tiles = {"prefill": variant.prefill_tile, "batch": variant.batch_tile, "decode": variant.decode_tile}
    gemm = weight_codes_arm64.gemm if variant.arch == "arm64" else weight_codes.gemm
    limit_dots = limits_arm64.limit_dots if variant.arch == "arm64" else limits.limit_dots
    kernels: dict[str, Any] = {"limit_dots": limit_dots(variant), "limit_read": limits.limit_read(variant)}
    for group in GROUPS:
        for norm in NORMS:
            kernels[f"quantise_{norm}_g{group}"] = quantise_rows(variant, group, norm)
        for bits, zero_point in CODES:
            code = code_name(bits, group, zero_point)
            kernels[f"embed_{code}"] = embed(variant, bits, group, zero_point)
            for tile_name, tile in tiles.items():
                kernels[f"gemm_{code}_{tile_name}"] = gemm(variant, tile, bits, group, zero_point)
                kernels[f"gemm_{code}_swiglu_{tile_name}"] = gemm(variant, tile, bits, group, zero_point, swiglu=True)
    for head_dim in HEAD_DIMS:
        kernels |= attention_kernels(variant, head_dim)
    if variant.arch in TOWER_ARCHS:
        kernels |= tower_kernels(variant)
    return kernels


def attention_kernels(variant: Variant, head_dim: int) -> dict[str, Any]:
    """The part of `kernel_set` that serves heads of `head_dim` channels."""
    kernels: dict[str, Any] = {f"merge_e{head_dim}": merge(variant, head_dim)}
    tiles = {"prefill": variant.attend_rows, "decode": variant.attend_decode_rows}
    for key_bits, value_bits in KV_FORMS:
        name = f"e{head_dim}_{form_name(key_bits, value_bits)}"
        kernels[f"append_{name}"] = append(variant, head_dim, key_bits, value_bits)
        for tile, rows in tiles.items():
            kernels[f"attend_{name}_{tile}"] = (
                attend(variant, head_dim, variant.attend_decode_rows)
                if key_bits == 32
                else attend_codes(variant, head_dim, key_bits, value_bits, rows)
            )
    return kernels
