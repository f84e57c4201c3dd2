"""Kernels of the vision tower against float64 on the same codes: product, GELU, patches, norm, attention."""

from __future__ import annotations

import ctypes
from math import erf

import numpy as np
import pytest

from tests.tvm_schedules.kernels import compile_kernels, host_variants, pointer
from tvm_schedules import layouts, reference
from tvm_schedules.targets import Variant
from tvm_schedules.tower_kernels import LINEAR_ROWS

N, K = 192, 320
EPS = 1e-6
HEAD_DIMS = (64, 72)
# int8 queries, keys and values, 7- or 8-bit probabilities: 1.3e-2 to 3.2e-2 of the largest output, measured 2026-11-25
# on white noise, which is the worst case: no structure in the values for the sum over keys to keep.
ATTENTION_BOUND = 4e-2


@pytest.fixture(scope="module", params=host_variants(), ids=lambda variant: variant.name)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, ctypes.CDLL]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.tower_kernels import tower_kernels

    kernels = tower_kernels(request.param)
    return request.param, compile_kernels(kernels, request.param, tmp_path_factory.mktemp("tower"))


class Product:
    """Codes of one product, in the oracle's order and in the kernel's."""

    def __init__(self, group: int, rows: int, tile_rows: int) -> None:
        rng = np.random.default_rng(group)
        self.w_codes = rng.integers(0, 256, (N, K)).astype(np.uint8)
        self.w_scales = (rng.random((N, K // group)) * 0.01).astype(np.float16)
        self.x_codes, self.x_scales = reference.quantise_rows(rng.standard_normal((rows, K)).astype(np.float32), group)
        sums = self.x_codes.astype(np.int32).reshape(rows, K // group, group).sum(axis=2, dtype=np.int32)
        self.bias = rng.standard_normal(N).astype(np.float32)
        self.arguments = (
            layouts.pack(self.w_codes, 8, "x86_64"), layouts.pack_per_group(self.w_scales),
            layouts.pack_rows(self.x_codes, tile_rows, "x86_64"),
            layouts.pack_row_scales(self.x_scales, tile_rows, "x86_64"),
            layouts.pack_row_sums(sums, tile_rows, "x86_64"),
            self.bias,
        )

    def expected(self) -> np.ndarray:
        middle = np.full(self.w_scales.shape, 128, np.uint8)
        product = reference.gemm_codes(self.x_codes, self.x_scales, self.w_codes, self.w_scales, middle)
        return product.astype(np.float64) + self.bias


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("group", [32, 64])
def test_product(compiled: tuple[Variant, ctypes.CDLL], group: int) -> None:
    _, library = compiled
    rows = LINEAR_ROWS
    problem = Product(group, rows * 5, rows)
    pointers = [pointer(array) for array in problem.arguments]
    y = np.zeros((rows * 5, N), np.float32)

    def run(accumulate: int) -> None:
        # Four rectangles of row tiles and column blocks, as four units of work.
        for first, last in ((0, 2), (2, 5)):
            for begin, end in ((0, 4), (4, N // 16)):
                corner = ctypes.c_void_p(y.ctypes.data + 4 * (first * rows * N + begin * 16))
                library[f"tower_gemm_add_g{group}"](*pointers, corner, N, K, N, accumulate, first, last, begin, end)

    run(0)
    assert _error(y, problem.expected()) < 1e-6
    run(1)
    assert _error(y, 2 * problem.expected()) < 1e-6
    wrong = Product(group, rows * 5, rows)  # negative control
    wrong.w_codes[3, 5] ^= 1
    assert _error(y, 2 * wrong.expected()) > 1e-6


def _gelu(x: np.ndarray, form: str) -> np.ndarray:
    if form == "gelu":
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("form", ["gelu", "gelu_tanh"])
def test_gelu_strip(compiled: tuple[Variant, ctypes.CDLL], form: str) -> None:
    """One row tile of some columns, into a strip with a stride of its own."""
    _, library = compiled
    rows = LINEAR_ROWS
    problem = Product(64, rows * 2, rows)
    strip = np.zeros((rows, 64), np.float32)
    pointers = [pointer(array) for array in problem.arguments]
    library[f"tower_gemm_{form}_g64"](*pointers, pointer(strip), N, K, 64, 0, 1, 2, 4, 8)
    # A few values near the GELU's bend, where the two forms differ most.
    values = problem.expected()[rows:, 64:128]
    assert np.abs(strip - _gelu(values, form)).max() < 2e-6 * max(1.0, np.abs(values).max())
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[form]
    assert np.abs(strip - _gelu(values, other)).max() > 1e-4  # negative control


def test_patches(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    variant, library = compiled
    rng = np.random.default_rng(3)
    rows, k, n = variant.prefill_tile.rows, 3 * 14 * 14, 64
    n_rows = rows * 2 - 3
    x = rng.standard_normal((rows * 2, k)).astype(np.float32)
    w = rng.standard_normal((n, k)).astype(np.float32)
    positions = rng.standard_normal((n_rows, n)).astype(np.float32)
    packed = np.ascontiguousarray(w.reshape(n // 16, 16, k).transpose(0, 2, 1))
    y = np.full((rows * 2, n), 7, np.float32)
    library.tower_patches(pointer(x), pointer(packed), pointer(positions), pointer(y), n, k, 2, n_rows)
    expected = x[:n_rows].astype(np.float64) @ w.astype(np.float64).T + positions
    assert _error(y[:n_rows], expected) < 1e-6
    assert np.all(y[n_rows:] == 7)
    assert _error(y[:n_rows], expected - positions + positions[::-1]) > 1e-3  # negative control


def test_norm(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    _, library = compiled
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((9, 192)) * 3 + 5).astype(np.float32)
    gamma, beta = rng.random(192).astype(np.float32), rng.random(192).astype(np.float32)
    y = np.zeros_like(x)
    for share in ((0, 4), (4, 9)):
        library.tower_norm(pointer(x), pointer(gamma), pointer(beta), pointer(y), 192, ctypes.c_float(EPS), *share)
    wide = x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gamma + beta
    assert np.abs(y - expected).max() < 3e-6
    assert np.abs(y - expected[:, ::-1]).max() > 0.1  # negative control


class Attention:
    """Runs the three attention kernels on (tokens, 3 * heads * head_dim) floats, split as threads would."""

    def __init__(self, variant: Variant, library: ctypes.CDLL, head_dim: int) -> None:
        self.rows, self.library, self.head_dim = variant.prefill_tile.rows, library, head_dim

    def __call__(self, qkv: np.ndarray, heads: int) -> np.ndarray:
        head_dim, rows, tokens = self.head_dim, self.rows, len(qkv)
        width, padded = heads * head_dim, -(-tokens // 32) * 32
        means, value_means, value_scales = (np.zeros(width, np.float32) for _ in range(3))
        statistics = (means, value_means, value_scales)
        for begin, end in ((0, 16), (16, width)):
            self.library.tower_statistics(pointer(qkv), *map(pointer, statistics), 3 * width, width, tokens, begin, end)
        queries, keys = np.zeros((heads, padded * head_dim), np.int8), np.zeros((heads, padded * head_dim), np.uint8)
        values = np.zeros((heads, padded * (-(-head_dim // 16) * 16)), np.int8)
        query_scales, key_scales, key_bias = (np.zeros((heads, padded), np.float32) for _ in range(3))
        query_sums = np.zeros((heads, padded), np.int32)
        codes = (queries, query_scales, query_sums, keys, key_scales, key_bias, values)
        for begin, end in ((0, 32), (32, padded)):
            self.library[f"tower_pack_e{head_dim}"](
                pointer(qkv), *map(pointer, statistics), *map(pointer, codes), 3 * width, heads, tokens, padded,
                ctypes.c_float(head_dim**-0.5), begin, end,
            )
        out = np.zeros((tokens, width), np.float32)
        tiles = -(-tokens // rows)
        for head in range(heads):
            per_head = [pointer(array[head]) for array in codes]
            channels = slice(head * head_dim, (head + 1) * head_dim)
            for begin, end in ((0, 1), (1, tiles)):
                self.library[f"tower_attend_e{head_dim}"](
                    *per_head, pointer(value_scales[channels]), pointer(value_means[channels]),
                    ctypes.c_void_p(out.ctypes.data + 4 * head * head_dim), padded, tokens, width, begin, end,
                )
        return out


def _attention(qkv: np.ndarray, heads: int, head_dim: int) -> np.ndarray:
    tokens = len(qkv)
    q, k, v = (part.reshape(tokens, heads, head_dim).transpose(1, 0, 2) for part in np.split(qkv.astype(float), 3, 1))
    scores = q @ k.transpose(0, 2, 1) * head_dim**-0.5
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    out = weights / weights.sum(axis=2, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(tokens, -1)


@pytest.mark.parametrize("tokens", [196, 257, 729])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention(compiled: tuple[Variant, ctypes.CDLL], head_dim: int, tokens: int) -> None:
    heads = 2
    qkv = np.random.default_rng(tokens).standard_normal((tokens, 3 * heads * head_dim)).astype(np.float32)
    found = Attention(*compiled, head_dim)(qkv, heads)
    expected = _attention(qkv, heads, head_dim)
    assert _error(found, expected) < ATTENTION_BOUND
    swapped = _attention(np.roll(qkv, head_dim, axis=1), heads, head_dim)  # negative control: channels of other heads
    assert _error(found, swapped) > 5 * ATTENTION_BOUND


def test_small_probabilities_count(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    """A register token takes a third of the sum; what the 728 others hold must not round to nothing."""
    head_dim, tokens = 64, 729
    rng = np.random.default_rng(5)
    qkv = np.zeros((tokens, 3 * head_dim), np.float32)
    qkv[:, 0] = 8.0
    qkv[0, head_dim] = 8 * np.log(tokens / 2) / 8  # its score: as much as half of the others together
    qkv[:, 2 * head_dim :] = 1 + 0.1 * rng.standard_normal((tokens, head_dim))
    qkv[0, 2 * head_dim :] = -1
    found = Attention(*compiled, head_dim)(qkv, 1)
    expected = _attention(qkv, 1, head_dim)
    assert np.abs(expected[1:] - expected[1]).max() < 1e-3 and 0.2 < expected.mean() < 0.5
    assert np.abs(found - expected).max() < 1e-2
