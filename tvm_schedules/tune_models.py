"""The products and attentions of language models that tuning is scored on, and which slot is scored on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_schedules import layouts, reference
from tvm_schedules.layouts import COLUMNS
from tvm_schedules.targets import Tile, Variant
from tvm_schedules.tune_space import UNIT_ROWS, Slot
from tvm_schedules.tune_tower import TowerLinearWork, tower_works
from tvm_schedules.tune_work import Array, Check, Operand, Work, relative_error

MOST_COLUMNS = 2048
"""Columns that are measured of a wider matrix: about a thread's part."""
CHUNK = 128
"""Rows of a prefill."""
GEMM_BOUND = 1e-6
ATTEND_BOUND = 2e-4
"""Largest difference over the largest value (LOG.md, 2026-11-25: 16-bit queries and weights)."""


@dataclass(frozen=True)
class GemmWork:
    """`rows` rows through an (n, k) matrix of codes."""

    model: str
    name: str
    n: int
    k: int
    rows: int
    matrices: int
    bits: int = 4
    group: int = 32
    swiglu: bool = False

    @property
    def columns(self) -> int:
        """Columns that are measured."""
        return min(self.n, MOST_COLUMNS)

    @property
    def calls(self) -> float:
        return self.matrices * self.n / self.columns

    @property
    def cold(self) -> bool:
        return self.rows < CHUNK

    def tile(self, variant: Variant) -> tuple[str, Tile]:
        """The tile that the engine takes for that many rows (run.c, tile_rows_for)."""
        if self.rows == 1:
            return "decode", variant.decode_tile
        if self.rows <= variant.batch_tile.rows:
            return "batch", variant.batch_tile
        return "prefill", variant.prefill_tile

    def kernel_name(self, variant: Variant) -> str:
        return f"gemm_w{self.bits}g{self.group}_{'swiglu_' if self.swiglu else ''}{self.tile(variant)[0]}"

    def kernel(self, variant: Variant) -> Any:
        from tvm_schedules.gemm import weight_codes, weight_codes_arm64

        gemm = weight_codes_arm64.gemm if variant.arch == "arm64" else weight_codes.gemm
        return gemm(variant, self.tile(variant)[1], self.bits, self.group, False, swiglu=self.swiglu)

    def operands(self) -> tuple[Operand, ...]:
        weights = self.columns * self.k * self.bits // 8
        scales = self.columns * self.k // self.group
        return (
            Operand("bytes", weights), Operand("halves", scales), Operand("bytes"), Operand("codes"), Operand("floats"),
            Operand("sums"), Operand("floats"), Operand("results"),
        )  # fmt: skip

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        # n is the distance of two rows of the result: a narrower matrix, so that the result stays small.
        tile_rows = self.tile(variant)[1].rows
        return self.columns, self.k, -(-self.rows // tile_rows), 0, 0, 0, self.columns // COLUMNS

    def check(self, variant: Variant) -> Check:
        tile_rows, n, k = self.tile(variant)[1].rows, 128, 384
        rows = 2 * tile_rows if self.rows > 1 else 1
        rng = np.random.default_rng(self.bits * self.group + rows)
        w_codes = rng.integers(0, 2**self.bits, (n, k)).astype(np.uint8)
        w_scales = (rng.random((n, k // self.group)) * 0.01).astype(np.float16)
        middle = np.full(w_scales.shape, 2 ** (self.bits - 1), np.uint8)
        x = rng.standard_normal((rows, k)).astype(np.float32)
        x_codes, x_scales = reference.quantise_rows(x, self.group)
        sums = x_codes.astype(np.int32).reshape(rows, -1, self.group).sum(axis=2, dtype=np.int32)
        expected = reference.gemm_codes(x_codes, x_scales, w_codes, w_scales, middle)
        if self.swiglu:
            gate, up = np.moveaxis(expected.astype(np.float64).reshape(rows, -1, 2, COLUMNS), 2, 0)
            expected = (gate / (1 + np.exp(-gate)) * up).reshape(rows, -1)
        arrays = (
            layouts.pack(w_codes, self.bits, variant.arch), layouts.pack_per_group(w_scales),
            layouts.pack_per_group(middle), layouts.pack_rows(x_codes, tile_rows, variant.arch),
            layouts.pack_row_scales(x_scales, tile_rows, variant.arch),
            layouts.pack_row_sums(sums, tile_rows, variant.arch), np.zeros(n, np.float32),
            np.full(expected.shape, np.nan, np.float32),
        )
        numbers = (n, k, rows // tile_rows, 0, 0, 0, n // COLUMNS)
        return Check(arrays, numbers, lambda after: relative_error(after[-1], expected), GEMM_BOUND)


@dataclass(frozen=True)
class AttendWork:
    """A unit of attention of one KV head over an int8 cache: `tokens` new ones after `n_past`."""

    model: str
    name: str
    head_dim: int
    group: int
    """Query heads per KV head."""
    kv_heads: int
    layers: int
    tokens: int
    n_past: int

    @property
    def decode(self) -> bool:
        return self.tokens == 1

    @property
    def cold(self) -> bool:
        return self.decode

    @property
    def unit_keys(self) -> int:
        """Keys of a call; decode splits them (internal.h, ev_unit_keys)."""
        return (256 if self.head_dim <= 64 else 128) if self.decode else self.n_past + self.tokens

    @property
    def unit_rows(self) -> int:
        return self.group if self.decode else UNIT_ROWS

    @property
    def calls(self) -> float:
        units = (self.n_past + 1) / self.unit_keys if self.decode else self.tokens * self.group / UNIT_ROWS
        return self.layers * self.kv_heads * units

    def kernel_name(self, variant: Variant) -> str:
        return f"attend_e{self.head_dim}_k8v8_{'decode' if self.decode else 'prefill'}"

    def kernel(self, variant: Variant) -> Any:
        from tvm_schedules.attention.attend_codes import attend_codes

        rows = variant.attend_decode_rows if self.decode else variant.attend_rows
        return attend_codes(variant, self.head_dim, 8, 8, rows)

    def operands(self) -> tuple[Operand, ...]:
        codes = self._capacity * self.head_dim
        return (
            Operand("floats"), Operand("bytes", codes), Operand("floats"), Operand("bytes", codes), Operand("floats"),
            Operand("tree"), Operand("results"),
        )  # fmt: skip

    @property
    def _capacity(self) -> int:
        return -(-(self.n_past + self.tokens) // 64) * 64

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        begin = 0 if self.decode else self.tokens * self.group // 2 // UNIT_ROWS * UNIT_ROWS
        stride = self.group * self.head_dim
        return (
            self.group, 1, stride, self._capacity, self.n_past, 0, 0, 0, begin, begin + self.unit_rows, 0,
            self.unit_keys,
        )  # fmt: skip

    def check(self, variant: Variant) -> Check:
        e, group, n_past, tokens, capacity = self.head_dim, self.group, 75, 1 if self.decode else 20, 128
        rng = np.random.default_rng(e + tokens)
        q = rng.standard_normal((tokens, group, e)).astype(np.float32) * np.float32(e**-0.5)
        keys, values = (rng.integers(-127, 128, (capacity, e), np.int8) for _ in range(2))
        key_scales, value_scales = (rng.random(capacity, np.float32) * np.float32(0.02) for _ in range(2))
        expected = reference.attend_codes(q, keys, key_scales, values, value_scales, n_past)
        rows = tokens * group
        partial = np.full((rows, e + 2), np.nan, np.float32)
        # The cache's layout (attention/cache.py): pairs of channels of 16 keys; pairs of tokens of a channel.
        packed_keys = keys.reshape(-1, 16, e // 2, 2).transpose(0, 2, 1, 3)
        packed_values = values.reshape(-1, 2, e).transpose(0, 2, 1)
        arrays = (
            q.reshape(tokens, -1), np.ascontiguousarray(packed_keys).view(np.uint8).reshape(-1), key_scales,
            np.ascontiguousarray(packed_values).view(np.uint8).reshape(-1), value_scales, np.zeros(64, np.int32),
            partial,
        )  # fmt: skip
        numbers = (group, 1, group * e, capacity, n_past, 0, 0, 0, 0, rows, 0, n_past + tokens)

        def error(after: tuple[Array, ...]) -> float:
            found = after[-1].astype(np.float64)
            return relative_error(found[:, :e] / found[:, e + 1 :], expected.reshape(rows, e))

        return Check(arrays, numbers, error, ATTEND_BOUND)


@dataclass(frozen=True)
class _Language:
    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    head_bits: int
    head_group: int


_LANGUAGES = (
    _Language("SmolLM2-135M", 576, 1536, 9, 3, 64, 30, 49152, 8, 64),
    _Language("Qwen2.5-1.5B", 1536, 8960, 12, 2, 128, 28, 151936, 4, 32),
)
"""config.json of the two models; the head in 8 bits for the small one, in 4 bits for the other (issue 3's table)."""


def _products(model: _Language, rows: int) -> list[Work]:
    n_qkv = (model.heads + 2 * model.kv_heads) * model.head_dim
    n_o = model.heads * model.head_dim
    works: list[Work] = [
        GemmWork(model.name, f"qkv, {rows} rows", n_qkv, model.hidden, rows, model.layers),
        GemmWork(model.name, f"o, {rows} rows", model.hidden, n_o, rows, model.layers),
        GemmWork(model.name, f"gate and up, {rows} rows", 2 * model.intermediate, model.hidden, rows, model.layers,
                 swiglu=True),
        GemmWork(model.name, f"down, {rows} rows", model.hidden, model.intermediate, rows, model.layers),
    ]  # fmt: skip
    if rows != CHUNK:  # a prefill computes one row of logits
        name, bits, group = f"head, {rows} rows", model.head_bits, model.head_group
        works.append(GemmWork(model.name, name, model.vocab, model.hidden, rows, 1, bits, group))
    return works


def works_of(slot: Slot, arch: str) -> list[Work]:
    """Returns the workloads that a slot is scored on; a tower's attention has the rows of the prefill tile.

    arm64's towers have no tiles to choose.
    """
    tower = tower_works() if slot in ("prefill", "tower") and arch == "x86_64" else []
    if slot == "tower":
        return [work for work in tower if isinstance(work, TowerLinearWork)]
    if slot in ("prefill", "decode"):
        return [work for m in _LANGUAGES for work in _products(m, CHUNK if slot == "prefill" else 1)] + tower
    if slot == "batch":
        # The product into the residual stream reads as qkv and o do; three of five matrices are enough.
        kept = ("gate and up", "down", "head")
        works = [work for model in _LANGUAGES for rows in (2, 4, 8) for work in _products(model, rows)]
        return [work for work in works if work.name.split(",")[0] in kept]
    tokens, n_past = (CHUNK, 384) if slot == "attend_prefill" else (1, 1023)
    return [
        AttendWork(m.name, f"{tokens} on {n_past + tokens}", m.head_dim, m.heads // m.kv_heads, m.kv_heads, m.layers,
                   tokens, n_past)
        for m in _LANGUAGES
    ]  # fmt: skip
