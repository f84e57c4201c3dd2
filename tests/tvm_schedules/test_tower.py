"""Kernels of the vision tower against float64 on the same codes: product, GELU, patches, norm, attention."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.tvm_schedules.gemm_problem import relative_error
from tests.tvm_schedules.kernels import argument_of, compile_kernels, pointer, x86_variants
from tests.tvm_schedules.tower_problem import ATTENTION_BOUND, Attention, K, N, Product, attention, gelu
from tvm_schedules import layouts, reference
from tvm_schedules.targets import Variant
from tvm_schedules.tower_kernels import LINEAR_ROWS

EPS = 1e-6
HEAD_DIMS = (64, 72)


@pytest.fixture(scope="module", params=x86_variants())
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, ctypes.CDLL]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.tower_kernels import tower_kernels

    kernels = tower_kernels(request.param)
    return request.param, compile_kernels(kernels, request.param, tmp_path_factory.mktemp("tower"))


def attention_of(variant: Variant, library: ctypes.CDLL, head_dim: int) -> Attention:
    def call(kernel: str, *arguments: Any) -> None:
        library[kernel](*map(argument_of, arguments))

    return Attention(call, variant.prefill_tile.rows, head_dim)


@pytest.mark.parametrize("group", [32, 64])
def test_product(compiled: tuple[Variant, ctypes.CDLL], group: int) -> None:
    variant, library = compiled
    rows = LINEAR_ROWS
    problem = Product(group, rows * 5, rows, variant.arch)
    pointers = [pointer(array) for array in problem.arguments]
    y = np.zeros((rows * 5, N), np.float32)

    def run(accumulate: int) -> None:
        # Four rectangles of row tiles and column blocks, as four units of work.
        for first, last in ((0, 2), (2, 5)):
            for begin, end in ((0, 4), (4, N // 16)):
                corner = ctypes.c_void_p(y.ctypes.data + 4 * (first * rows * N + begin * 16))
                library[f"tower_gemm_add_g{group}"](*pointers, corner, N, K, N, accumulate, first, last, begin, end)

    run(0)
    assert relative_error(y, problem.expected()) < 1e-6
    run(1)
    assert relative_error(y, 2 * problem.expected()) < 1e-6
    wrong = Product(group, rows * 5, rows, variant.arch)  # negative control
    wrong.w_codes[3, 5] ^= 1
    assert relative_error(y, 2 * wrong.expected()) > 1e-6


@pytest.mark.parametrize("form", ["gelu", "gelu_tanh"])
def test_gelu_strip(compiled: tuple[Variant, ctypes.CDLL], form: str) -> None:
    """One row tile of some columns, into a strip with a stride of its own."""
    variant, library = compiled
    rows = LINEAR_ROWS
    problem = Product(64, rows * 2, rows, variant.arch)
    strip = np.zeros((rows, 64), np.float32)
    pointers = [pointer(array) for array in problem.arguments]
    library[f"tower_gemm_{form}_g64"](*pointers, pointer(strip), N, K, 64, 0, 1, 2, 4, 8)
    # A few values near the GELU's bend, where the two forms differ most.
    values = problem.expected()[rows:, 64:128]
    assert np.abs(strip - gelu(values, form)).max() < 2e-6 * max(1.0, np.abs(values).max())
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[form]
    assert np.abs(strip - gelu(values, other)).max() > 1e-4  # negative control


@pytest.mark.parametrize("group", [32, 64, 128])
def test_strip(compiled: tuple[Variant, ctypes.CDLL], group: int) -> None:
    """Codes, scales and sums of four rows, in the order that a linear reads them."""
    _, library = compiled
    x = np.random.default_rng(group).standard_normal((LINEAR_ROWS, 128)).astype(np.float32)
    x[2, :group] = 0
    codes, scales = reference.quantise_rows(x, group)
    found_codes = np.full((1, 128 // 4, LINEAR_ROWS, 4), 99, np.int8)
    found_scales = np.zeros((1, 128 // group, LINEAR_ROWS), np.float32)
    found_sums = np.zeros((1, 128 // group, LINEAR_ROWS), np.int32)
    outputs = (pointer(found_codes), pointer(found_scales), pointer(found_sums))
    library[f"tower_strip_g{group}"](pointer(x), None, None, *outputs, 128, LINEAR_ROWS, ctypes.c_float(0), 0, 4)
    np.testing.assert_allclose(found_scales[0], scales.T, rtol=1e-6, atol=0)
    expected = layouts.pack_rows(codes, LINEAR_ROWS, "x86_64")
    # A value on the edge between two codes may fall either way.
    assert np.abs(found_codes.astype(int) - expected).max() <= 1
    assert np.count_nonzero(found_codes != expected) <= 2
    own = found_codes.astype(np.int32).transpose(0, 2, 1, 3).reshape(LINEAR_ROWS, -1, group).sum(axis=2)
    np.testing.assert_array_equal(found_sums[0], own.T)
    assert np.count_nonzero(found_codes != layouts.pack_rows(codes[::-1], LINEAR_ROWS, "x86_64")) > 100  # control


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
    assert relative_error(y[:n_rows], expected) < 1e-6
    assert np.all(y[n_rows:] == 7)
    assert relative_error(y[:n_rows], expected - positions + positions[::-1]) > 1e-3  # negative control


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


@pytest.mark.parametrize("tokens", [196, 257, 729])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention(compiled: tuple[Variant, ctypes.CDLL], head_dim: int, tokens: int) -> None:
    heads = 2
    qkv = np.random.default_rng(tokens).standard_normal((tokens, 3 * heads * head_dim)).astype(np.float32)
    found = attention_of(*compiled, head_dim)(qkv, heads)
    expected = attention(qkv, heads, head_dim)
    assert relative_error(found, expected) < ATTENTION_BOUND
    swapped = attention(np.roll(qkv, head_dim, axis=1), heads, head_dim)  # negative control: channels of other heads
    assert relative_error(found, swapped) > 5 * ATTENTION_BOUND


def test_small_probabilities_count(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    """A register token takes a third of the sum; what the 728 others hold must not round to nothing."""
    head_dim, tokens = 64, 729
    rng = np.random.default_rng(5)
    qkv = np.zeros((tokens, 3 * head_dim), np.float32)
    qkv[:, 0] = 8.0
    qkv[0, head_dim] = 8 * np.log(tokens / 2) / 8  # its score: as much as half of the others together
    qkv[:, 2 * head_dim :] = 1 + 0.1 * rng.standard_normal((tokens, head_dim))
    qkv[0, 2 * head_dim :] = -1
    found = attention_of(*compiled, head_dim)(qkv, 1)
    expected = attention(qkv, 1, head_dim)
    assert np.abs(expected[1:] - expected[1]).max() < 1e-3 and 0.2 < expected.mean() < 0.5
    assert np.abs(found - expected).max() < 1e-2
