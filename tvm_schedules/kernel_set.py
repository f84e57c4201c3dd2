"""Every kernel that a library carries, by the name under which the engine looks it up."""

from __future__ import annotations

from typing import Any

from tvm_schedules.attention.attend import attend, merge
from tvm_schedules.attention.cache import append
from tvm_schedules.elementwise.embed import embed
from tvm_schedules.elementwise.quantise_rows import Norm, quantise_rows
from tvm_schedules.gemm.weight_codes import gemm
from tvm_schedules.targets import Variant

GROUPS = (32, 64, 128)
HEAD_DIMS = (64, 128)
NORMS: tuple[Norm, ...] = ("none", "rms", "layer")
CODES = ((4, False), (4, True), (8, False))
"""(bits, zero point) of weight codes."""


def code_name(bits: int, group: int, zero_point: bool) -> str:
    """Such as 'w4g32z'."""
    return f"w{bits}g{group}{'z' if zero_point else ''}"


def kernel_set(variant: Variant) -> dict[str, Any]:
    """Returns name → PrimFunc of all kernels of one variant."""
    tiles = {"prefill": variant.prefill_tile, "batch": variant.batch_tile, "decode": variant.decode_tile}
    kernels: dict[str, Any] = {}
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
        for kv in ("int8", "float32"):
            kernels[f"append_e{head_dim}_{kv}"] = append(variant, head_dim, kv)
            kernels[f"attend_e{head_dim}_{kv}"] = attend(variant, head_dim, kv, variant.attend_rows)
        kernels[f"merge_e{head_dim}"] = merge(variant, head_dim)
    return kernels
