"""Every kernel that a vision tower calls, by the name under which the engine looks it up."""

from __future__ import annotations

from typing import Any

from tvm_schedules.attention import tower as attention
from tvm_schedules.elementwise.norm_rows import norm_rows
from tvm_schedules.elementwise.quantise_rows import quantise_rows
from tvm_schedules.elementwise.quantise_strip import ROWS as LINEAR_ROWS
from tvm_schedules.elementwise.quantise_strip import quantise_strip
from tvm_schedules.gemm import tower_arm64
from tvm_schedules.gemm.patches import patch_gemm
from tvm_schedules.gemm.tower import Epilogue, tower_gemm
from tvm_schedules.targets import Variant

TOWER_ARCHS = ("x86_64", "arm64")
"""Architectures whose activation layout the tower's kernels read."""
TOWER_HEAD_DIMS = (64, 72)
TOWER_GROUPS = (32, 64, 128)
EPILOGUES: tuple[Epilogue, ...] = ("add", "gelu", "gelu_tanh")
PATCH_BLOCKS = 2
"""Blocks of 16 columns of the patch embedding's register tile; one, of 4 rows, on arm64."""


def tower_kernels(variant: Variant) -> dict[str, Any]:
    """Returns name → PrimFunc. Patches and attention take the rows of the variant's prefill tile, linears 4."""
    rows, arm64 = variant.prefill_tile.rows, variant.arch == "arm64"
    kernels: dict[str, Any] = {
        "tower_norm": norm_rows(variant),
        "tower_patches": patch_gemm(variant, rows, *((1, 4) if arm64 else (PATCH_BLOCKS, rows))),
        "tower_statistics": attention.statistics(variant),
    }
    for group in TOWER_GROUPS:
        # Codes lie in another order on arm64.
        kernels[f"tower_strip_g{group}"] = (
            quantise_rows(variant, group, "none") if arm64 else quantise_strip(variant, group)
        )
        for epilogue in EPILOGUES:
            kernels[f"tower_gemm_{epilogue}_g{group}"] = (
                tower_arm64.tower_gemm(variant, LINEAR_ROWS, group, epilogue)
                if arm64
                else tower_gemm(variant, LINEAR_ROWS, variant.tower_blocks, group, epilogue)
            )
    for head_dim in TOWER_HEAD_DIMS:
        kernels[f"tower_pack_e{head_dim}"] = attention.pack(variant, head_dim, rows)
        kernels[f"tower_attend_e{head_dim}"] = attention.attend(variant, head_dim, rows)
    return kernels
