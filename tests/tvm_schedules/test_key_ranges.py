"""Keys centred and levelled at compile time: exact in a float cache, finer codes in an 8-bit one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules import compile as compilation
from tvm_schedules.key_ranges import KeyRange, best_exponents, level, measure_keys, row_factors, score_error
from tvm_schedules.matrices import Matrix

HEADS, KV_HEADS, HEAD_DIM, K = 4, 2, 64, 64
WIDE_PAIRS = {3: 16.0, 20: 8.0}
"""Pair of rotated channels → how much wider its keys are made than they were drawn."""


def matrix(rows: int, seed: int) -> Matrix:
    rng = np.random.default_rng(seed)
    scales = (rng.random((rows, K // 32)) * 1e-3 + 1e-4).astype(np.float16)
    return Matrix("m", rng.integers(0, 16, (rows, K)).astype(np.uint8), scales, None, 4, 32)


def values(of: Matrix) -> np.ndarray:
    return (of.codes.astype(np.float64) - 8) * np.repeat(of.scales.astype(np.float64), 32, axis=1)


def test_levelled_projections_have_the_same_products() -> None:
    """q k of each pair of channels is the same number: what one side gains the other loses, without rounding."""
    query, key = matrix(HEADS * HEAD_DIM, 1), matrix(KV_HEADS * HEAD_DIM, 2)
    exponents = np.random.default_rng(3).integers(-6, 7, (KV_HEADS, HEAD_DIM // 2)).astype(np.int32)
    found, new_query, new_key = level(KeyRange(np.zeros((KV_HEADS, HEAD_DIM), np.float32), exponents), query, key)
    factors = row_factors(found, HEADS)
    np.testing.assert_array_equal(values(new_query), values(query) * factors[: HEADS * HEAD_DIM, None])
    np.testing.assert_array_equal(values(new_key), values(key) * factors[HEADS * HEAD_DIM :, None])
    shared = np.repeat(factors[HEADS * HEAD_DIM :].reshape(KV_HEADS, HEAD_DIM), HEADS // KV_HEADS, axis=0)
    np.testing.assert_array_equal(factors[: HEADS * HEAD_DIM], 1 / shared.reshape(-1))
    halves = found.factors.reshape(KV_HEADS, 2, HEAD_DIM // 2)
    np.testing.assert_array_equal(halves[:, 0], halves[:, 1])  # RoPE mixes the two channels of a pair
    assert 0 < np.count_nonzero(found.exponents != exponents) < found.exponents.size  # some would have rounded
    assert (np.abs(found.exponents) <= np.abs(exponents)).all()


def test_scales_without_room_stay_as_they_are() -> None:
    """The smallest fp16 number cannot be halved, nor the largest doubled."""
    query, key = matrix(HEADS * HEAD_DIM, 1), matrix(KV_HEADS * HEAD_DIM, 2)
    tiny_key = replace(key, scales=np.full_like(key.scales, 2.0**-24))
    large_query = replace(query, scales=np.full_like(query.scales, 65504))
    wide = KeyRange(np.zeros((KV_HEADS, HEAD_DIM), np.float32), np.full((KV_HEADS, HEAD_DIM // 2), 3, np.int32))
    for pair in ((query, tiny_key), (large_query, key)):
        found, new_query, new_key = level(wide, *pair)
        assert not found.exponents.any()
        np.testing.assert_array_equal(new_query.scales, pair[0].scales)
        np.testing.assert_array_equal(new_key.scales, pair[1].scales)


def test_exponents_have_the_least_error() -> None:
    """Against every choice of three pairs, and against leaving them alone or making all equally wide."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        widths = np.abs(rng.standard_normal((50, 3))) * np.exp(2 * rng.standard_normal(3))
        weights = np.exp(2 * rng.standard_normal(3))

        def error(exponents: Sequence[int]) -> float:
            return score_error(widths, weights, np.array(exponents))  # noqa: B023

        found = error(best_exponents(widths, weights).tolist())
        # A common exponent of all three changes nothing, so one of them may stay 0.
        choices = itertools.product(range(-10, 11), repeat=2)
        least = min(error((0, *pair)) for pair in choices)
        assert least * 0.999 <= found < 1.3 * least
        assert found <= error((0, 0, 0))
    level_all = np.rint(np.log2(widths.mean(axis=0) / widths.mean())).astype(int)
    assert error(level_all.tolist()) >= least


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A tiny Qwen2, which has biases, with a few wide pairs of key channels in each layer."""
    directory = tmp_path_factory.mktemp("ranges")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_qwen2(directory / "checkpoint", **sizes)
    factors = np.ones(HEAD_DIM // 2, np.float32)
    factors[list(WIDE_PAIRS)] = list(WIDE_PAIRS.values())
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".k_proj." in name]:
        tensors[name] = np.ascontiguousarray((tensors[name].T * np.tile(factors, 2)).T)
    save_file(tensors, path, metadata={"format": "pt"})
    return open_package(export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False)))


def test_wide_pairs_are_found(package: Package) -> None:
    for found in measure_keys(package, probes.text()[:2000]):
        widest = np.argsort(found.exponents[0])[-len(WIDE_PAIRS) :]
        assert set(widest.tolist()) == set(WIDE_PAIRS)
        assert found.exponents[0].max() - np.median(found.exponents[0]) >= 2


@pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")
def test_the_engine_computes_the_same_floats_and_finer_codes(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    text = probes.text()[:2000]
    ids = np.random.default_rng(3).integers(0, package.manifest.decoder.vocab_size, 200)
    n_layers = package.manifest.decoder.num_hidden_layers

    def logits(bits: int) -> np.ndarray:
        session = NativeSession(open_package(package.path), context=256, kv_bits=[(bits, bits)] * n_layers)
        found = np.stack([session.prefill([ids], np.arange(200)), session.step(5, 200)])
        session.close()
        return found

    compilation.compile_package(package.path, host_arch(), text)
    levelled = {bits: logits(bits) for bits in (16, 8)}

    def only_centred(package: Package, text: str) -> list[KeyRange]:
        return [replace(found, exponents=found.exponents * 0) for found in measure_keys(package, text)]

    monkeypatch.setattr(compilation, "measure_keys", only_centred)
    compilation.compile_package(package.path, host_arch(), text)
    np.testing.assert_array_equal(logits(16), levelled[16])
    error = {name: np.linalg.norm(found - levelled[16]) for name, found in (("no", logits(8)), ("yes", levelled[8]))}
    assert 0 < error["yes"] < 0.6 * error["no"]
