"""Cache append and attention against float64: chunks, decode, splits of the keys, windows, drafts, all cache forms."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.tvm_schedules.attention_problem import FORMS, HEADS, KV_HEADS, Cache, bound
from tests.tvm_schedules.kernels import argument_of, compile_kernels, x86_variants
from tvm_schedules.attention.cache import form_name
from tvm_schedules.targets import Variant


@pytest.fixture(scope="module", params=x86_variants())
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.kernel_set import attention_kernels

    variant: Variant = request.param
    functions = attention_kernels(variant, 64) | attention_kernels(variant, 128)
    return compile_kernels(functions, variant, tmp_path_factory.mktemp("attention"))


def cache_of(library: ctypes.CDLL, bits: tuple[int, int], head_dim: int = 64) -> Cache:
    def call(kernel: str, *arguments: Any) -> None:
        library[kernel](*map(argument_of, arguments))

    return Cache(call, bits, head_dim)


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", FORMS, ids=lambda bits: form_name(*bits))
def test_attention(library: ctypes.CDLL, bits: tuple[int, int], head_dim: int, window: int) -> None:
    rng = np.random.default_rng(1)
    cache = cache_of(library, bits, head_dim)
    for rows in (70, 33, 1, 4):
        qkv = rng.standard_normal((rows, cache.width)).astype(np.float32)
        queries = cache.append(qkv)
        expected = cache.expected(queries, window)
        total = cache.n_past + rows
        splits = [[0, total]] + ([[0, 64, total]] if total > 64 else [])
        for bounds in splits:
            for tile in ("prefill", "decode"):
                found = cache.attend(qkv, bounds, window, tile)
                assert np.abs(found - expected).max() < bound(bits, head_dim) * np.abs(expected).max()
        wrong = cache.expected(queries[:, ::-1], window)
        assert np.abs(found - wrong).max() > max(0.1, 2 * np.abs(found - expected).max())  # negative control
        cache.n_past = total


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=lambda bits: form_name(*bits))
def test_attention_on_the_same_codes(library: ctypes.CDLL, bits: tuple[int, int], head_dim: int) -> None:
    """Keys and values that the codes hold exactly: what is left is the 16-bit step of queries and weights."""
    rng = np.random.default_rng(4)
    cache = cache_of(library, bits, head_dim)
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
    cache = cache_of(library, bits)
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
        assert np.abs(found - expected).max() < bound(bits, 64) * np.abs(expected).max()
    assert np.abs(cache.attend(qkv, [0, 68], window, "decode") - expected).max() > 0.1


def test_centring_is_exact_in_float(library: ctypes.CDLL) -> None:
    """A constant taken from all keys of a head leaves softmax unchanged (lowers nothing but the codes' range)."""
    rng = np.random.default_rng(2)
    plain, centred = cache_of(library, (32, 32)), cache_of(library, (32, 32))
    qkv = rng.standard_normal((20, plain.width)).astype(np.float32)
    plain.centre[:] = 0
    centred.centre[:] = 30
    results = []
    for cache in (plain, centred):
        copy = qkv.copy()
        cache.append(copy)
        results.append(cache.attend(copy, [0, 20], 0))
    assert np.abs(results[0] - results[1]).max() < 1e-4
