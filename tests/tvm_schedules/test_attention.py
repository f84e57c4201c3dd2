"""Cache append and attention against float64: chunks, decode, splits of the keys, windows, drafts, all cache forms."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
import pytest

from tests.tvm_schedules.kernels import compile_kernels, host_variants, pointer
from tvm_schedules.attention.cache import form_name
from tvm_schedules.targets import Variant

HEADS, KV_HEADS, CAPACITY = 6, 2, 256
GROUP = HEADS // KV_HEADS
FORMS = ((32, 32), (8, 8), (8, 4), (4, 8), (4, 4))
"""Bits of keys and values; 32 is float."""
# Largest error over the largest output, measured 2026-11-25: 8 bits 0.006-0.009, 4-bit values 0.07, 4-bit keys 0.32.
BOUNDS = {(32, 32): 1e-6, (8, 8): 2e-2, (8, 4): 0.12, (4, 8): 0.4, (4, 4): 0.4}


@pytest.fixture(scope="module", params=host_variants(), ids=lambda variant: variant.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.kernel_set import attention_kernels

    variant: Variant = request.param
    functions = attention_kernels(variant, 64) | attention_kernels(variant, 128)
    return compile_kernels(functions, variant, tmp_path_factory.mktemp("attention"))


class Cache:
    """One layer's cache on the kernels' side, and the float keys and values on the oracle's."""

    def __init__(self, library: ctypes.CDLL, bits: tuple[int, int], head_dim: int = 64) -> None:
        self.library, self.bits, self.head_dim = library, bits, head_dim
        self.name = f"e{head_dim}_{form_name(*bits)}"  # type: ignore[arg-type]
        self.width = (HEADS + 2 * KV_HEADS) * head_dim
        slots = KV_HEADS * CAPACITY
        self.keys, self.values = (np.zeros(slots * head_dim * b // 8, np.uint8) for b in bits)
        self.key_scales, self.value_scales = np.zeros(slots, np.float32), np.zeros(slots, np.float32)
        half = head_dim // 2
        angles = np.arange(CAPACITY)[:, None] / 10000 ** (np.arange(half) / half)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.centre = np.random.default_rng(7).standard_normal((KV_HEADS, head_dim)).astype(np.float32)
        self.true_keys = np.zeros((0, KV_HEADS, head_dim))
        self.true_values = np.zeros((0, KV_HEADS, head_dim))
        self.n_past = 0

    def append(self, qkv: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Appends the keys and values of `qkv` (T, width), which the kernel changes; returns the true queries."""
        rows, half = len(qkv), self.head_dim // 2
        if positions is None:
            positions = np.arange(self.n_past, self.n_past + rows)
        positions = positions.astype(np.int32)
        split = qkv.reshape(rows, -1, self.head_dim).astype(np.float64)
        cos, sin = (table[positions][:, None].astype(np.float64) for table in (self.cos, self.sin))
        low, high = split[..., :half], split[..., half:]
        rotated = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)
        self.true_keys = np.concatenate([self.true_keys, rotated[:, HEADS : HEADS + KV_HEADS]])
        self.true_values = np.concatenate([self.true_values, split[:, HEADS + KV_HEADS :]])
        tables = (self.cos, self.sin, self.centre, positions, *self.arrays)
        self.library[f"append_{self.name}"](
            pointer(qkv), *map(pointer, tables), HEADS, KV_HEADS, CAPACITY, self.n_past,
            ctypes.c_float(self.head_dim**-0.5), self.width, 0, rows,
        )
        return rotated[:, :HEADS]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.keys, self.key_scales, self.values, self.value_scales

    def attend(
        self, qkv: np.ndarray, bounds: list[int], window: int, tile: str = "prefill", tree: np.ndarray | None = None
    ) -> np.ndarray:
        """Attention of the appended rows with the keys cut at `bounds`, merged: (T, HEADS, head_dim)."""
        rows, masks = len(qkv) * GROUP, np.zeros(64, np.int32)
        if tree is not None:
            masks[: len(tree)] = tree
        out = np.zeros((len(qkv), HEADS * self.head_dim), np.float32)
        for head in range(KV_HEADS):
            partials = np.zeros((len(bounds) - 1, rows, self.head_dim + 2), np.float32)
            for part, (begin, end) in enumerate(pairwise(bounds)):
                self.library[f"attend_{self.name}_{tile}"](
                    pointer(qkv), *map(pointer, self.arrays), pointer(masks), pointer(partials[part]), HEADS, KV_HEADS,
                    self.width, CAPACITY, self.n_past, 0 if tree is None else len(tree), window, head, 0, rows, begin,
                    end,
                )
            self.library[f"merge_e{self.head_dim}"](
                pointer(partials), pointer(out), len(partials), rows, HEADS, KV_HEADS, HEADS * self.head_dim, head, 0,
                rows,
            )
        return out.reshape(len(qkv), HEADS, self.head_dim)

    def expected(self, queries: np.ndarray, window: int, tree: np.ndarray | None = None) -> np.ndarray:
        out = np.zeros(queries.shape)
        for row in range(len(queries)):
            position = self.n_past + (row if tree is None else int(tree[row]).bit_count() - 1)
            seen = list(range(self.n_past + row + 1))
            if tree is not None:
                drafted = [self.n_past + i for i in range(len(tree)) if tree[row] >> i & 1]
                seen = list(range(self.n_past)) + drafted
            seen = [key for key in seen if not window or key > position - window]
            for head in range(HEADS):
                scores = self.true_keys[seen, head // GROUP] @ queries[row, head] * self.head_dim**-0.5
                weights = np.exp(scores - scores.max())
                out[row, head] = weights / weights.sum() @ self.true_values[seen, head // GROUP]
        return out


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", FORMS, ids=lambda bits: form_name(*bits))
def test_attention(library: ctypes.CDLL, bits: tuple[int, int], head_dim: int, window: int) -> None:
    rng = np.random.default_rng(1)
    cache = Cache(library, bits, head_dim)
    for rows in (70, 33, 1, 4):
        qkv = rng.standard_normal((rows, cache.width)).astype(np.float32)
        queries = cache.append(qkv)
        expected = cache.expected(queries, window)
        total = cache.n_past + rows
        splits = [[0, total]] + ([[0, 64, total]] if total > 64 else [])
        for bounds in splits:
            for tile in ("prefill", "decode"):
                found = cache.attend(qkv, bounds, window, tile)
                assert np.abs(found - expected).max() < BOUNDS[bits] * np.abs(expected).max()
        wrong = cache.expected(queries[:, ::-1], window)
        assert np.abs(found - wrong).max() > max(0.1, 2 * np.abs(found - expected).max())  # negative control
        cache.n_past = total


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=lambda bits: form_name(*bits))
def test_attention_on_the_same_codes(library: ctypes.CDLL, bits: tuple[int, int], head_dim: int) -> None:
    """Keys and values that the codes hold exactly: what is left is the 16-bit step of queries and weights."""
    rng = np.random.default_rng(4)
    cache = Cache(library, bits, head_dim)
    cache.centre[:] = 0
    rows, levels = 60, 127 if bits == (8, 8) else 7
    qkv = rng.standard_normal((rows, cache.width)).astype(np.float32)
    codes = rng.integers(-levels, levels + 1, (rows, 2 * KV_HEADS, head_dim)).astype(np.float32)
    codes[..., 0] = 127 if bits == (8, 8) else -8
    qkv[:, HEADS * head_dim :] = (codes / 64).reshape(rows, -1)
    queries = cache.append(qkv, np.zeros(rows))
    expected = cache.expected(queries, 0)
    assert np.abs(cache.attend(qkv, [0, rows], 0) - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [(32, 32), (8, 8)], ids=lambda bits: form_name(*bits))
@pytest.mark.parametrize("window", [0, 30])
def test_drafted_tree(library: ctypes.CDLL, bits: tuple[int, int], window: int) -> None:
    """Each drafted token sees the committed ones and its own ancestors; a causal mask gives something else."""
    rng = np.random.default_rng(5)
    cache = Cache(library, bits)
    cache.append(rng.standard_normal((61, cache.width)).astype(np.float32))
    cache.n_past = 61
    parents = [-1, 0, 0, 1, 2, 2, -1]
    tree = np.zeros(len(parents), np.int32)
    for node, parent in enumerate(parents):
        tree[node] = (tree[parent] if parent >= 0 else 0) | 1 << node
    qkv = rng.standard_normal((len(parents), cache.width)).astype(np.float32)
    depths = np.array([int(mask).bit_count() - 1 for mask in tree])
    queries = cache.append(qkv, 61 + depths)
    expected = cache.expected(queries, window, tree)
    for bounds in ([0, 68], [0, 64, 68]):
        found = cache.attend(qkv, bounds, window, "decode", tree)
        assert np.abs(found - expected).max() < BOUNDS[bits] * np.abs(expected).max()
    assert np.abs(cache.attend(qkv, [0, 68], window, "decode") - expected).max() > 0.1


def test_centring_is_exact_in_float(library: ctypes.CDLL) -> None:
    """A constant taken from all keys of a head leaves softmax unchanged (lowers nothing but the codes' range)."""
    rng = np.random.default_rng(2)
    plain, centred = Cache(library, (32, 32)), Cache(library, (32, 32))
    qkv = rng.standard_normal((20, plain.width)).astype(np.float32)
    plain.centre[:] = 0
    centred.centre[:] = 30
    results = []
    for cache in (plain, centred):
        copy = qkv.copy()
        cache.append(copy)
        results.append(cache.attend(copy, [0, 20], 0))
    assert np.abs(results[0] - results[1]).max() < 1e-4
