"""Every arm64 kernel of every variant under emulation, against the oracles that the x86-64 kernels are tested with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.tvm_schedules.arm64 import emulator
from tests.tvm_schedules.attention_problem import FORMS, Cache, bound
from tests.tvm_schedules.gemm_problem import N, Problem, relative_error, swiglu
from tvm_schedules import layouts, reference
from tvm_schedules.attention.cache import form_name
from tvm_schedules.kernel_set import CODES, GROUPS, HEAD_DIMS, NORMS, code_name
from tvm_schedules.targets import BY_NAME
from tvm_schedules.tower_kernels import EPILOGUES, TOWER_GROUPS, TOWER_HEAD_DIMS

pytestmark = pytest.mark.emulated

# More than one panel of 512, its end inside the second one; a multiple of every group.
K = 896
EPSILON = 1e-5
VOCABULARY = 40


@pytest.fixture(scope="module", params=emulator.CPUS, ids=lambda variant: f"{variant}-{emulator.CPUS[variant]}")
def kernels(request: pytest.FixtureRequest) -> Iterator[emulator.Kernels]:
    emulator.qemu()
    running = emulator.Kernels(request.param, emulator.CPUS[request.param])
    yield running
    running.close()


@pytest.mark.parametrize("tile", ["prefill", "batch", "decode"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("codes", CODES, ids=lambda c: f"w{c[0]}{'z' if c[1] else ''}")
def test_gemm(kernels: emulator.Kernels, codes: tuple[int, bool], group: int, tile: str) -> None:
    bits, zero_point = codes
    tile_rows = getattr(BY_NAME[kernels.variant], f"{tile}_tile").rows
    rows = 3 * tile_rows
    problem = Problem(bits, group, zero_point, rows, tile_rows, "arm64", k=K)
    name = f"gemm_{code_name(bits, group, zero_point)}"

    def run(y: np.ndarray, *, kernel: str, has_bias: int, accumulate: int) -> np.ndarray:
        for share in ((0, 4), (4, N // 16)):  # as two threads would
            flags = (has_bias, accumulate, *share)
            assert kernels.call(kernel, *problem.arguments, y, N, K, problem.row_tiles, *flags) == 0
        return y

    expected = problem.expected()
    y = run(np.zeros((rows, N), np.float32), kernel=f"{name}_{tile}", has_bias=0, accumulate=0)
    assert relative_error(y, expected) < 1e-6
    run(y, kernel=f"{name}_{tile}", has_bias=1, accumulate=1)
    assert relative_error(y, 2 * expected + problem.bias) < 1e-6
    gated = np.zeros((rows, N // 2), np.float32)
    run(gated, kernel=f"{name}_swiglu_{tile}", has_bias=1, accumulate=0)
    assert relative_error(gated, swiglu(expected + problem.bias)) < 1e-6
    problem.w_codes[5, 7] ^= 1  # negative control: one code off by one
    assert relative_error(run(y, kernel=f"{name}_{tile}", has_bias=0, accumulate=0), problem.expected()) > 1e-5


def test_a_whole_chunk(kernels: emulator.Kernels) -> None:
    """More rows than one carry of 128 holds."""
    problem = Problem(4, 32, False, 136, 8, "arm64", n=32, k=K)
    y = np.zeros((136, 32), np.float32)
    kernels.call("gemm_w4g32_prefill", *problem.arguments, y, 32, K, problem.row_tiles, 0, 0, 0, 2)
    assert relative_error(y, problem.expected()) < 1e-6


def _normalised(x: np.ndarray, norm: str, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    if norm == "layer":
        wide = wide - wide.mean(axis=1, keepdims=True)
    if norm != "none":
        wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPSILON) * gamma
    return (wide + beta if norm == "layer" else wide).astype(np.float32)


@pytest.mark.parametrize("tile_rows", [1, 8])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("norm", NORMS)
def test_quantise(kernels: emulator.Kernels, norm: str, group: int, tile_rows: int) -> None:
    rows = 8
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, K)).astype(np.float32)
    x[3] = 0
    gamma, beta = rng.random(K).astype(np.float32), rng.random(K).astype(np.float32)
    codes, scales = reference.quantise_rows(_normalised(x, norm, gamma, beta), group)
    found = np.zeros((rows // tile_rows, K // 8, tile_rows, 8), np.int8)
    found_scales = np.zeros((rows // tile_rows, K // group, tile_rows, 2), np.float32)
    found_sums = np.zeros(found_scales.shape, np.int32)
    for share in ((0, 5), (5, rows)):
        kernels.call(
            f"quantise_{norm}_g{group}", x, gamma, beta, found, found_scales, found_sums, K, tile_rows, EPSILON, *share
        )
    np.testing.assert_allclose(found_scales, layouts.pack_row_scales(scales, tile_rows, "arm64"), rtol=1e-6, atol=0)
    difference = found.astype(np.int32) - layouts.pack_rows(codes, tile_rows, "arm64")
    # A value on the edge between two codes may fall either way; none may be further off, and nearly all must agree.
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) <= codes.size * 1e-3
    own = found.astype(np.int32).transpose(0, 2, 1, 3).reshape(rows, K // group, group).sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(found_sums, layouts.pack_row_sums(own, tile_rows, "arm64"))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("codes", CODES, ids=lambda c: f"w{c[0]}{'z' if c[1] else ''}")
def test_embed(kernels: emulator.Kernels, codes: tuple[int, bool], group: int) -> None:
    bits, zero_point = codes
    problem = Problem(bits, group, zero_point, 1, 1, "arm64", n=VOCABULARY, k=K)
    ids = np.array([0, 17, 39, 3, 16], np.int32)
    y = np.zeros((len(ids), K), np.float32)
    for share in ((0, 2), (2, 5)):
        kernels.call(
            f"embed_{code_name(bits, group, zero_point)}", *problem.arguments[:3], ids, y, K, *share
        )
    centred = problem.w_codes.astype(np.float32) - np.repeat(problem.zeros, group, axis=1)
    table = centred * np.repeat(problem.w_scales.astype(np.float32), group, axis=1)
    np.testing.assert_array_equal(y, table[ids])


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", FORMS, ids=lambda bits: form_name(*bits))
def test_attention(kernels: emulator.Kernels, bits: tuple[int, int], head_dim: int, window: int) -> None:
    rng = np.random.default_rng(1)
    cache = Cache(kernels.call, bits, head_dim)
    for rows in (70, 1, 4):
        qkv = rng.standard_normal((rows, cache.width)).astype(np.float32)
        queries = cache.append(qkv)
        expected = cache.expected(queries, window)
        total = cache.n_past + rows
        for bounds in ([0, total], [0, 64, total]):
            for tile in ("prefill", "decode"):
                found = cache.attend(qkv, bounds, window, tile)
                assert np.abs(found - expected).max() < bound(bits, head_dim) * np.abs(expected).max()
        wrong = cache.expected(queries[:, ::-1], window)
        assert np.abs(found - wrong).max() > max(0.1, 2 * np.abs(found - expected).max())  # negative control
        cache.n_past = total


@pytest.mark.parametrize("bits", [(32, 32), (8, 8)], ids=lambda bits: form_name(*bits))
def test_drafted_tree(kernels: emulator.Kernels, bits: tuple[int, int]) -> None:
    """Each drafted token sees the committed ones and its own ancestors; a causal mask gives something else."""
    rng = np.random.default_rng(5)
    cache = Cache(kernels.call, bits)
    cache.append(rng.standard_normal((61, cache.width)).astype(np.float32))
    cache.n_past = 61
    tree = np.array([1, 3, 5, 11, 21, 37, 64], np.int32)  # parents -1, 0, 0, 1, 2, 2, -1
    qkv = rng.standard_normal((len(tree), cache.width)).astype(np.float32)
    queries = cache.append(qkv, 60 + np.array([int(mask).bit_count() for mask in tree]))
    expected = cache.expected(queries, 0, tree)
    found = cache.attend(qkv, [0, 64, 68], 0, "decode", tree)
    assert np.abs(found - expected).max() < bound(bits, 64) * np.abs(expected).max()
    assert np.abs(cache.attend(qkv, [0, 68], 0, "decode") - expected).max() > 0.1


def test_limits(kernels: emulator.Kernels) -> None:
    rng = np.random.default_rng(6)
    data = rng.integers(-128, 128, 32).astype(np.int8)
    out = np.zeros((12, 4), np.int32)
    rounds = 5
    kernels.call("limit_dots", data, out, rounds)
    w, total = data[:16].astype(np.int64), np.zeros(4, np.int64)
    for turn in range(rounds):
        x = (data[16:] ^ np.int8(turn)).astype(np.int64)
        if kernels.variant == "i8mm":
            total += 2 * (x.reshape(2, 8) @ w.reshape(2, 8).T).reshape(-1)
        else:
            total += 4 * (x * w).reshape(4, 4).sum(axis=1)
    np.testing.assert_array_equal(out, np.tile(total, (12, 1)))
    words = rng.integers(-1000, 1000, (3, 1024)).astype(np.int32)
    sums = np.zeros(128, np.int32)
    kernels.call("limit_read", words, sums, 3)
    np.testing.assert_array_equal(sums, words.reshape(-1, 128).sum(axis=0))


def test_the_names_above_are_all_there_are() -> None:
    """A kernel that no test of this file calls would go unnoticed."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    emulator.qemu()
    tested = {"limit_dots", "limit_read"}
    for group in GROUPS:
        tested |= {f"quantise_{norm}_g{group}" for norm in NORMS}
        for bits, zero_point in CODES:
            code = code_name(bits, group, zero_point)
            tested.add(f"embed_{code}")
            for tile in ("prefill", "batch", "decode"):
                tested |= {f"gemm_{code}_{tile}", f"gemm_{code}_swiglu_{tile}"}
    for head_dim in HEAD_DIMS:
        tested.add(f"merge_e{head_dim}")
        for bits in FORMS:
            form = f"e{head_dim}_{form_name(*bits)}"
            tested |= {f"append_{form}", f"attend_{form}_prefill", f"attend_{form}_decode"}
    tested |= {"tower_norm", "tower_patches", "tower_statistics"}  # test_tower_kernels.py
    tested |= {f"tower_strip_g{group}" for group in TOWER_GROUPS}
    tested |= {f"tower_gemm_{epilogue}_g{group}" for epilogue in EPILOGUES for group in TOWER_GROUPS}
    tested |= {f"tower_{kernel}_e{head_dim}" for kernel in ("pack", "attend") for head_dim in TOWER_HEAD_DIMS}
    for variant, objects in emulator.kernel_objects().items():
        assert set(objects) == tested, variant


def test_the_emulated_cpus_differ() -> None:
    """Negative control: an i8mm kernel dies on a CPU without i8mm, so a test that passes ran on the right one."""
    emulator.qemu()
    running = emulator.Kernels("i8mm", "cortex-a76")
    problem = Problem(4, 32, False, 8, 8, "arm64", n=32, k=64)
    y = np.zeros((8, 32), np.float32)
    with pytest.raises(AssertionError, match="ended with -4"):
        running.call("gemm_w4g32_prefill", *problem.arguments, y, 32, 64, 1, 0, 0, 0, 2)
    running.close()
