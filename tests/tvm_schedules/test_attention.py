"""Cache append and attention against float64: chunks, decode, splits of the keys, windows, both cache types."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
import pytest

from tests.tvm_schedules.kernels import compile_kernels, host_variants, pointer
from tvm_schedules.targets import Variant

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 6, 2, 64, 256
GROUP, WIDTH = HEADS // KV_HEADS, (HEADS + 2 * KV_HEADS) * HEAD_DIM
SCALE = HEAD_DIM**-0.5
# int8 keys and values: half a step of 1/127 of the largest channel, measured 0.6-0.9 % of the largest output.
BOUNDS = {"float32": 1e-6, "int8": 2e-2}


@pytest.fixture(scope="module", params=host_variants(), ids=lambda variant: variant.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.attention.attend import attend, merge
    from tvm_schedules.attention.cache import append

    variant: Variant = request.param
    functions = {"merge": merge(variant, HEAD_DIM)}
    for kv in ("int8", "float32"):
        functions[f"append_{kv}"] = append(variant, HEAD_DIM, kv)  # type: ignore[arg-type]
        functions[f"attend_{kv}"] = attend(variant, HEAD_DIM, kv, variant.attend_rows)  # type: ignore[arg-type]
    return compile_kernels(functions, variant, tmp_path_factory.mktemp("attention"))


class Cache:
    """One layer's cache on the kernels' side, and the float keys and values on the oracle's."""

    def __init__(self, library: ctypes.CDLL, kv: str) -> None:
        self.library, self.kv = library, kv
        self.keys = np.zeros(KV_HEADS * CAPACITY * HEAD_DIM, kv)
        self.values = np.zeros(KV_HEADS * CAPACITY * HEAD_DIM, kv)
        self.key_scales = np.zeros(KV_HEADS * CAPACITY, np.float32)
        self.value_scales = np.zeros(KV_HEADS * CAPACITY, np.float32)
        angles = np.arange(CAPACITY)[:, None] / 10000 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.centre = np.random.default_rng(7).standard_normal((KV_HEADS, HEAD_DIM)).astype(np.float32)
        self.true_keys = np.zeros((0, KV_HEADS, HEAD_DIM))
        self.true_values = np.zeros((0, KV_HEADS, HEAD_DIM))
        self.n_past = 0

    def append(self, qkv: np.ndarray) -> np.ndarray:
        """Appends the keys and values of `qkv` (T, WIDTH), which the kernel changes; returns the true queries."""
        rows = len(qkv)
        positions = np.arange(self.n_past, self.n_past + rows, dtype=np.int32)
        split = qkv.reshape(rows, -1, HEAD_DIM).astype(np.float64)
        cos, sin = (table[positions][:, None].astype(np.float64) for table in (self.cos, self.sin))
        low, high = split[..., : HEAD_DIM // 2], split[..., HEAD_DIM // 2 :]
        rotated = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)
        self.true_keys = np.concatenate([self.true_keys, rotated[:, HEADS : HEADS + KV_HEADS]])
        self.true_values = np.concatenate([self.true_values, split[:, HEADS + KV_HEADS :]])
        cache = (self.keys, self.key_scales, self.values, self.value_scales)
        tables = (self.cos, self.sin, self.centre, positions, *cache)
        self.library[f"append_{self.kv}"](
            pointer(qkv), *map(pointer, tables), HEADS, KV_HEADS, CAPACITY, self.n_past, ctypes.c_float(SCALE), WIDTH,
            0, rows,
        )
        return rotated[:, :HEADS]

    def attend(self, qkv: np.ndarray, bounds: list[int], window: int) -> np.ndarray:
        """Attention of the appended rows with the keys cut at `bounds`, merged: (T, HEADS, HEAD_DIM)."""
        rows = len(qkv) * GROUP
        out = np.zeros((len(qkv), HEADS * HEAD_DIM), np.float32)
        cache = (self.keys, self.key_scales, self.values, self.value_scales)
        for head in range(KV_HEADS):
            partials = np.zeros((len(bounds) - 1, rows, HEAD_DIM + 2), np.float32)
            for part, (begin, end) in enumerate(pairwise(bounds)):
                self.library[f"attend_{self.kv}"](
                    pointer(qkv), *map(pointer, cache), pointer(partials[part]), HEADS, KV_HEADS, WIDTH, CAPACITY,
                    self.n_past, window, head, 0, rows, begin, end,
                )
            self.library.merge(
                pointer(partials), pointer(out), len(partials), rows, HEADS, KV_HEADS, HEADS * HEAD_DIM, head, 0, rows
            )
        return out.reshape(len(qkv), HEADS, HEAD_DIM)

    def expected(self, queries: np.ndarray, window: int) -> np.ndarray:
        out = np.zeros(queries.shape)
        for row in range(len(queries)):
            last = self.n_past + row + 1
            first = max(0, last - window) if window else 0
            for head in range(HEADS):
                scores = self.true_keys[first:last, head // GROUP] @ queries[row, head] * SCALE
                weights = np.exp(scores - scores.max())
                out[row, head] = weights / weights.sum() @ self.true_values[first:last, head // GROUP]
        return out


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_attention(library: ctypes.CDLL, kv: str, window: int) -> None:
    rng = np.random.default_rng(1)
    cache = Cache(library, kv)
    for rows in (70, 33, 1, 4):
        qkv = rng.standard_normal((rows, WIDTH)).astype(np.float32)
        queries = cache.append(qkv)
        expected = cache.expected(queries, window)
        total = cache.n_past + rows
        splits = [[0, total]] + ([[0, 64, total]] if total > 64 else [])
        for bounds in splits:
            found = cache.attend(qkv, bounds, window)
            assert np.abs(found - expected).max() < BOUNDS[kv] * np.abs(expected).max()
        assert np.abs(found - cache.expected(queries[:, ::-1], window)).max() > 0.1  # negative control: heads swapped
        cache.n_past = total


def test_centring_is_exact_in_float(library: ctypes.CDLL) -> None:
    """A constant taken from all keys of a head leaves softmax unchanged (lowers nothing but the codes' range)."""
    rng = np.random.default_rng(2)
    qkv = rng.standard_normal((20, WIDTH)).astype(np.float32)
    plain, centred = Cache(library, "float32"), Cache(library, "float32")
    plain.centre[:] = 0
    centred.centre[:] = 30
    results = []
    for cache in (plain, centred):
        copy = qkv.copy()
        cache.append(copy)
        results.append(cache.attend(copy, [0, 20], 0))
    assert np.abs(results[0] - results[1]).max() < 1e-4
