"""Every arm64 kernel of the vision tower under emulation, against the oracles of the x86-64 kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.tvm_schedules.arm64 import emulator
from tests.tvm_schedules.gemm_problem import relative_error
from tests.tvm_schedules.tower_problem import ATTENTION_BOUND, Attention, N, Product, attention, gelu
from tvm_schedules import layouts, reference
from tvm_schedules.targets import BY_NAME
from tvm_schedules.tower_kernels import LINEAR_ROWS, TOWER_GROUPS, TOWER_HEAD_DIMS

pytestmark = pytest.mark.emulated

EPS = 1e-6


@pytest.fixture(scope="module", params=emulator.CPUS, ids=lambda variant: f"{variant}-{emulator.CPUS[variant]}")
def kernels(request: pytest.FixtureRequest) -> Iterator[emulator.Kernels]:
    emulator.qemu()
    running = emulator.Kernels(request.param, emulator.CPUS[request.param])
    yield running
    running.close()


def rows_of(kernels: emulator.Kernels) -> int:
    return BY_NAME[kernels.variant].prefill_tile.rows


@pytest.mark.parametrize("group", TOWER_GROUPS)
def test_product(kernels: emulator.Kernels, group: int) -> None:
    rows, k = LINEAR_ROWS, 640  # more than one panel
    problem = Product(group, rows * 5, rows, "arm64", k=k)
    y = np.zeros(rows * 5 * N, np.float32)
    for accumulate in (0, 1):
        for first, last in ((0, 2), (2, 5)):
            for begin, end in ((0, 4), (4, N // 16)):
                corner = y[first * rows * N + begin * 16 :]
                bounds = (N, k, N, accumulate, first, last, begin, end)
                kernels.call(f"tower_gemm_add_g{group}", *problem.arguments, corner, *bounds)
        found = y.reshape(-1, N)
        assert relative_error(found, (1 + accumulate) * problem.expected()) < 1e-6
    problem.w_codes[3, 5] ^= 1  # negative control
    assert relative_error(found, 2 * problem.expected()) > 1e-6


@pytest.mark.parametrize("group", TOWER_GROUPS)
@pytest.mark.parametrize("form", ["gelu", "gelu_tanh"])
def test_gelu_strip(kernels: emulator.Kernels, form: str, group: int) -> None:
    rows = LINEAR_ROWS
    problem = Product(group, rows * 2, rows, "arm64", k=384)
    strip = np.zeros((rows, 64), np.float32)
    kernels.call(f"tower_gemm_{form}_g{group}", *problem.arguments, strip, N, 384, 64, 0, 1, 2, 4, 8)
    values = problem.expected()[rows:, 64:128]
    assert np.abs(strip - gelu(values, form)).max() < 2e-6 * max(1.0, np.abs(values).max())
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[form]
    assert np.abs(strip - gelu(values, other)).max() > 1e-4  # negative control


@pytest.mark.parametrize("group", TOWER_GROUPS)
def test_strip(kernels: emulator.Kernels, group: int) -> None:
    """Four rows of a GELU to codes in the next linear's order."""
    rows, k = LINEAR_ROWS, 256
    x = np.random.default_rng(group).standard_normal((rows, k)).astype(np.float32)
    codes, scales = reference.quantise_rows(x, group)
    sums = codes.astype(np.int32).reshape(rows, k // group, group).sum(axis=2, dtype=np.int32)
    found = np.zeros((1, k // 8, rows, 8), np.int8)
    found_scales = np.zeros((1, k // group, rows, 2), np.float32)
    found_sums = np.zeros(found_scales.shape, np.int32)
    nothing = np.zeros(0, np.float32)
    kernels.call(
        f"tower_strip_g{group}", x, nothing, nothing, found, found_scales, found_sums, k, rows, 0.0, 0, rows
    )
    assert np.abs(found.astype(np.int32) - layouts.pack_rows(codes, rows, "arm64")).max() <= 1
    assert np.count_nonzero(found != layouts.pack_rows(codes, rows, "arm64")) <= 2
    np.testing.assert_allclose(found_scales, layouts.pack_row_scales(scales, rows, "arm64"), rtol=1e-6, atol=0)
    own = found.astype(np.int32).transpose(0, 2, 1, 3).reshape(rows, k // group, group).sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(found_sums, layouts.pack_row_sums(own, rows, "arm64"))
    assert np.abs(own - sums).max() <= 2


def test_patches_and_norm(kernels: emulator.Kernels) -> None:
    rng = np.random.default_rng(3)
    rows, k, n = rows_of(kernels), 3 * 14 * 14, 64
    n_rows = rows * 2 - 3
    x = rng.standard_normal((rows * 2, k)).astype(np.float32)
    w = rng.standard_normal((n, k)).astype(np.float32)
    positions = rng.standard_normal((n_rows, n)).astype(np.float32)
    packed = np.ascontiguousarray(w.reshape(n // 16, 16, k).transpose(0, 2, 1))
    y = np.zeros((n_rows, n), np.float32)
    kernels.call("tower_patches", x, packed, positions, y, n, k, 2, n_rows)
    expected = x[:n_rows].astype(np.float64) @ w.astype(np.float64).T + positions
    assert relative_error(y, expected) < 1e-6
    assert relative_error(y, expected[::-1]) > 1e-3  # negative control
    x, normed = (rng.standard_normal((9, 192)) * 3 + 5).astype(np.float32), np.zeros((9, 192), np.float32)
    gamma, beta = rng.random(192).astype(np.float32), rng.random(192).astype(np.float32)
    for share in ((0, 4), (4, 9)):
        kernels.call("tower_norm", x, gamma, beta, normed, 192, EPS, *share)
    wide = x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gamma + beta
    assert np.abs(normed - expected).max() < 3e-6
    assert np.abs(normed - expected[:, ::-1]).max() > 0.1  # negative control


@pytest.mark.parametrize("tokens", [196, 257])
@pytest.mark.parametrize("head_dim", TOWER_HEAD_DIMS)
def test_attention(kernels: emulator.Kernels, head_dim: int, tokens: int) -> None:
    heads = 2
    qkv = np.random.default_rng(tokens).standard_normal((tokens, 3 * heads * head_dim)).astype(np.float32)
    found = Attention(kernels.call, rows_of(kernels), head_dim)(qkv, heads)
    assert relative_error(found, attention(qkv, heads, head_dim)) < ATTENTION_BOUND
    swapped = attention(np.roll(qkv, head_dim, axis=1), heads, head_dim)  # negative control: channels of other heads
    assert relative_error(found, swapped) > 5 * ATTENTION_BOUND
