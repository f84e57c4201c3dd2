"""Norm and activation quantisation against numpy: same codes, scales and sums."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.tvm_schedules.kernels import compile_kernels, pointer, x86_variants
from tvm_schedules import layouts, reference
from tvm_schedules.targets import Variant

T, K, EPS = 16, 640, 1e-5


@pytest.fixture(scope="module", params=x86_variants())
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, ctypes.CDLL]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.elementwise.quantise_rows import quantise_rows

    functions = {f"{norm}_{group}": quantise_rows(request.param, group, norm) for norm in ("none", "rms", "layer") for group in (32, 128)}  # noqa: E501
    return request.param, compile_kernels(functions, request.param, tmp_path_factory.mktemp("quantise"))


def _normalised(x: np.ndarray, norm: str, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    if norm == "rms":
        wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gamma
    if norm == "layer":
        wide = wide - wide.mean(axis=1, keepdims=True)
        wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gamma + beta
    return wide.astype(np.float32)


@pytest.mark.parametrize("tile_rows", [1, 8])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_quantise_rows(compiled: tuple[Variant, ctypes.CDLL], norm: str, group: int, tile_rows: int) -> None:
    variant, library = compiled
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, K)).astype(np.float32)
    x[3] = 0
    gamma, beta = rng.random(K).astype(np.float32), rng.random(K).astype(np.float32)
    codes, scales = reference.quantise_rows(_normalised(x, norm, gamma, beta), group)
    sums = codes.astype(np.int32).reshape(T, K // group, group).sum(axis=2)
    found_codes = np.zeros((T // tile_rows, K // 4, tile_rows, 4), np.int8)
    found_scales = np.zeros((T // tile_rows, K // group, tile_rows), np.float32)
    found_sums = np.zeros((T // tile_rows, K // group, tile_rows), np.int32)
    outputs = [pointer(found_codes), pointer(found_scales), pointer(found_sums)]
    for share in ((0, 5), (5, T)):
        library[f"{norm}_{group}"](
            pointer(x), pointer(gamma), pointer(beta), *outputs, K, tile_rows, ctypes.c_float(EPS), *share
        )
    expected_scales = layouts.pack_row_scales(scales, tile_rows, variant.arch)[..., 0]
    np.testing.assert_allclose(found_scales, expected_scales, rtol=1e-6, atol=0)
    difference = found_codes.astype(np.int32) - layouts.pack_rows(codes, tile_rows, variant.arch)
    # A value on the edge between two codes may fall either way; none may be further off, and nearly all must agree.
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= codes.size * 1e-3
    own = found_codes.astype(np.int32).transpose(0, 2, 1, 3).reshape(T, K // group, group).sum(axis=2)
    np.testing.assert_array_equal(found_sums, layouts.pack_row_sums(own, tile_rows, variant.arch)[..., 0])
    if norm == "none":
        np.testing.assert_array_equal(found_sums, layouts.pack_row_sums(sums, tile_rows, variant.arch)[..., 0])
