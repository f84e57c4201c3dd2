"""The products and the attention of a vision tower that tuning is scored on: SmolVLM-256M's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_schedules import layouts, reference
from tvm_schedules.elementwise.quantise_strip import ROWS as LINEAR_ROWS
from tvm_schedules.layouts import COLUMNS, QUAD
from tvm_schedules.targets import Variant
from tvm_schedules.tower_kernels import PATCH_BLOCKS
from tvm_schedules.tune_work import Array, Check, Operand, Work, relative_error

TOWER = "SmolVLM-256M tower"
HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM, LAYERS, TOKENS, PATCH_K = 768, 3072, 12, 64, 12, 1024, 768
"""config.json of the release: tiles of 512 px in patches of 16."""
GROUP = 64
"""Int8 blocks of an exported tower."""
ROWS = 128
"""Rows that are measured of the 1024."""
COLUMNS_AT_ONCE = 128
"""Columns that are measured: the engine's strip of a GELU."""
GEMM_BOUND, GELU_BOUND = 1e-6, 3e-6
ATTEND_BOUND = 4e-3
"""Of the largest output, on the same codes: probabilities are codes of 8 bits or of 7 (5e-4 measured, 2026-11-25)."""


@dataclass(frozen=True)
class TowerLinearWork:
    """`ROWS` rows and `COLUMNS_AT_ONCE` columns of an (n, k) linear."""

    name: str
    n: int
    k: int
    gelu: bool = False
    model: str = TOWER
    cold: bool = False

    @property
    def calls(self) -> float:
        return LAYERS * TOKENS / ROWS * self.n / COLUMNS_AT_ONCE

    def kernel_name(self, variant: Variant) -> str:
        return f"tower_gemm_{'gelu_tanh' if self.gelu else 'add'}_g{GROUP}"

    def kernel(self, variant: Variant) -> Any:
        from tvm_schedules.gemm.tower import tower_gemm

        return tower_gemm(variant, LINEAR_ROWS, variant.tower_blocks, GROUP, "gelu_tanh" if self.gelu else "add")

    def operands(self) -> tuple[Operand, ...]:
        return (
            Operand("bytes"), Operand("halves"), Operand("codes"), Operand("floats"), Operand("sums"),
            Operand("floats"), Operand("results"),
        )  # fmt: skip

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        n = COLUMNS_AT_ONCE
        return n, self.k, n, 0, 0, ROWS // LINEAR_ROWS, 0, n // COLUMNS

    def check(self, variant: Variant) -> Check:
        rows, n, k = 3 * LINEAR_ROWS, 128, 320
        rng = np.random.default_rng(1)
        w_codes = rng.integers(0, 256, (n, k)).astype(np.uint8)
        w_scales = (rng.random((n, k // GROUP)) * 0.01).astype(np.float16)
        x_codes, x_scales = reference.quantise_rows(rng.standard_normal((rows, k)).astype(np.float32), GROUP)
        sums = x_codes.astype(np.int32).reshape(rows, -1, GROUP).sum(axis=2, dtype=np.int32)
        bias = rng.standard_normal(n).astype(np.float32)
        middle = np.full(w_scales.shape, 128, np.uint8)
        expected = reference.gemm_codes(x_codes, x_scales, w_codes, w_scales, middle).astype(np.float64) + bias
        if self.gelu:
            expected *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
        arrays = (
            layouts.pack(w_codes, 8, variant.arch), layouts.pack_per_group(w_scales),
            layouts.pack_rows(x_codes, LINEAR_ROWS, variant.arch),
            layouts.pack_row_scales(x_scales, LINEAR_ROWS, variant.arch),
            layouts.pack_row_sums(sums, LINEAR_ROWS, variant.arch), bias, np.full((rows, n), np.nan, np.float32),
        )  # fmt: skip
        numbers = (n, k, n, 0, 0, rows // LINEAR_ROWS, 0, n // COLUMNS)
        bound = GELU_BOUND if self.gelu else GEMM_BOUND
        return Check(arrays, numbers, lambda after: relative_error(after[-1], expected), bound)


@dataclass(frozen=True)
class PatchWork:
    """`ROWS` patches through `COLUMNS_AT_ONCE` of the filters."""

    name: str = "patches"
    model: str = TOWER
    cold: bool = False

    @property
    def calls(self) -> float:
        return TOKENS / ROWS * HIDDEN / COLUMNS_AT_ONCE

    def kernel_name(self, variant: Variant) -> str:
        return "tower_patches"

    def kernel(self, variant: Variant) -> Any:
        from tvm_schedules.gemm.patches import patch_gemm

        return patch_gemm(variant, variant.prefill_tile.rows, PATCH_BLOCKS, variant.prefill_tile.rows)

    def operands(self) -> tuple[Operand, ...]:
        return Operand("floats"), Operand("floats"), Operand("floats"), Operand("results")

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        return COLUMNS_AT_ONCE, PATCH_K, ROWS // variant.prefill_tile.rows, ROWS

    def check(self, variant: Variant) -> Check:
        tile_rows, n, k = variant.prefill_tile.rows, 64, 96
        rng = np.random.default_rng(2)
        x = rng.standard_normal((2 * tile_rows, k)).astype(np.float32)
        w = rng.standard_normal((n, k)).astype(np.float32)
        positions = rng.standard_normal((2 * tile_rows, n)).astype(np.float32)
        expected = x.astype(np.float64) @ w.astype(np.float64).T + positions
        packed = np.ascontiguousarray(w.reshape(n // COLUMNS, COLUMNS, k).transpose(0, 2, 1))
        arrays = (x, packed, positions, np.full(positions.shape, np.nan, np.float32))
        return Check(
            arrays, (n, k, 2, 2 * tile_rows), lambda after: relative_error(after[-1], expected), GEMM_BOUND
        )


@dataclass(frozen=True)
class TowerAttendWork:
    """`ROWS` queries of one head on all tokens."""

    name: str = "attention"
    model: str = TOWER
    cold: bool = False

    @property
    def calls(self) -> float:
        return LAYERS * HEADS * TOKENS / ROWS

    def kernel_name(self, variant: Variant) -> str:
        return f"tower_attend_e{HEAD_DIM}"

    def kernel(self, variant: Variant) -> Any:
        from tvm_schedules.attention.tower import attend

        return attend(variant, HEAD_DIM, variant.prefill_tile.rows)

    def operands(self) -> tuple[Operand, ...]:
        return (
            Operand("codes"), Operand("floats"), Operand("sums"), Operand("bytes"), Operand("floats"),
            Operand("floats"), Operand("codes"), Operand("floats"), Operand("floats"), Operand("results"),
        )  # fmt: skip

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        return TOKENS, TOKENS, HEADS * HEAD_DIM, 0, ROWS // variant.prefill_tile.rows

    def check(self, variant: Variant) -> Check:
        rows, tokens, e = variant.prefill_tile.rows, 96, HEAD_DIM
        rng = np.random.default_rng(3)
        q, k, v = (rng.integers(-127, 128, (tokens, e), np.int8) for _ in range(3))
        q_scales = (rng.random(tokens, np.float32) * np.float32(1 / 127) * np.float32(e**-0.5)).astype(np.float32)
        k_scales = (rng.random(tokens, np.float32) * np.float32(3 / 127)).astype(np.float32)
        v_scales = (rng.random(e, np.float32) * np.float32(1 / 127)).astype(np.float32)
        v_means = rng.standard_normal(e).astype(np.float32)
        wide_q, wide_k = q * q_scales[:, None].astype(np.float64), k * k_scales[:, None].astype(np.float64)
        scores = wide_q @ wide_k.T
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected = weights / weights.sum(axis=1, keepdims=True) @ (v * v_scales.astype(np.float64)) + v_means
        run = QUAD
        arrays: tuple[Array, ...] = (
            np.ascontiguousarray(q.reshape(-1, rows, e // run, run).transpose(0, 2, 1, 3)), q_scales,
            q.astype(np.int32).sum(axis=1, dtype=np.int32),
            np.ascontiguousarray((k.view(np.uint8) ^ np.uint8(128)).reshape(-1, COLUMNS, e // run, run)
                                 .transpose(0, 2, 1, 3)),
            k_scales, np.zeros(tokens, np.float32),
            np.ascontiguousarray(v.reshape(tokens // run, run, e // COLUMNS, COLUMNS).transpose(2, 0, 3, 1)),
            v_scales, v_means, np.full((tokens, e), np.nan, np.float32),
        )  # fmt: skip
        numbers = (tokens, tokens, e, 0, math.ceil(tokens / rows))
        return Check(arrays, numbers, lambda after: relative_error(after[-1], expected), ATTEND_BOUND)


def tower_works() -> list[Work]:
    """Returns what a tile costs: linears, patches, attention."""
    return [
        TowerLinearWork("qkv", 3 * HIDDEN, HIDDEN), TowerLinearWork("out", HIDDEN, HIDDEN),
        TowerLinearWork("fc1", INTERMEDIATE, HIDDEN, gelu=True), TowerLinearWork("fc2", HIDDEN, INTERMEDIATE),
        PatchWork(), TowerAttendWork(),
    ]  # fmt: skip
