"""Integer GEMM against float64 on the same codes: every scheme, tile and variant that this CPU can run."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.tvm_schedules.kernels import by_tile, compile_kernels, host_variants, pointer
from tvm_schedules import layouts, reference
from tvm_schedules.targets import Variant

SCHEMES = ((4, 32, False), (4, 64, True), (4, 128, False), (8, 32, False), (8, 128, False))
TILES = ("prefill", "batch", "decode")
N, K = 128, 384


def _name(bits: int, group: int, zero_point: bool, tile: str) -> str:
    return f"gemm_w{bits}g{group}{'z' if zero_point else ''}_{tile}"


@pytest.fixture(scope="module", params=host_variants(), ids=lambda variant: variant.name)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, ctypes.CDLL]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.gemm.weight_codes import gemm

    variant: Variant = request.param
    functions = {
        _name(*scheme, tile): gemm(variant, getattr(variant, f"{tile}_tile"), *scheme)
        for scheme in SCHEMES
        for tile in TILES
    }
    functions["swiglu"] = gemm(variant, variant.prefill_tile, 4, 32, False, swiglu=True)
    return variant, compile_kernels(functions, variant, tmp_path_factory.mktemp("gemm"))


class Problem:
    """Codes of one product, in the oracle's order and in the kernel's."""

    def __init__(self, bits: int, group: int, zero_point: bool, rows: int, tile_rows: int) -> None:
        rng = np.random.default_rng(bits * group + rows)
        self.w_codes = rng.integers(0, 2**bits, (N, K)).astype(np.uint8)
        self.w_scales = (rng.random((N, K // group)) * 0.01).astype(np.float16)
        middle = np.full((N, K // group), 2 ** (bits - 1), np.uint8)
        self.zeros = rng.integers(0, 16, middle.shape).astype(np.uint8) if zero_point else middle
        self.x_codes, self.x_scales = reference.quantise_rows(
            rng.standard_normal((rows, K)).astype(np.float32), group
        )
        sums = self.x_codes.astype(np.int32).reshape(rows, K // group, group).sum(axis=2, dtype=np.int32)
        pack = layouts.pack_int4_x86 if bits == 4 else layouts.pack_int8_x86
        self.bias = rng.standard_normal(N).astype(np.float32)
        self.arguments = (
            pack(self.w_codes), layouts.pack_per_group(self.w_scales), layouts.pack_per_group(self.zeros),
            layouts.pack_rows(self.x_codes, tile_rows), by_tile(self.x_scales, tile_rows), by_tile(sums, tile_rows),
            self.bias,
        )
        self.row_tiles = rows // tile_rows

    def expected(self) -> np.ndarray:
        return reference.gemm_codes(self.x_codes, self.x_scales, self.w_codes, self.w_scales, self.zeros)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"w{s[0]}g{s[1]}{'z' if s[2] else ''}")
def test_gemm(compiled: tuple[Variant, ctypes.CDLL], scheme: tuple[int, int, bool], tile: str) -> None:
    variant, library = compiled
    tile_rows = getattr(variant, f"{tile}_tile").rows
    problem = Problem(*scheme, rows=tile_rows * 3, tile_rows=tile_rows)
    kernel = library[_name(*scheme, tile)]
    y = np.zeros((tile_rows * 3, N), np.float32)
    pointers = [pointer(array) for array in problem.arguments]

    def run(*, has_bias: int, accumulate: int) -> None:
        # Two calls with a share of the columns each, as two threads would make them.
        for share in ((0, 4), (4, N // 16)):
            assert kernel(*pointers, pointer(y), N, K, problem.row_tiles, has_bias, accumulate, *share) == 0

    run(has_bias=0, accumulate=0)
    assert _error(y, problem.expected()) < 1e-6
    run(has_bias=1, accumulate=1)
    assert _error(y, 2 * problem.expected() + problem.bias) < 1e-6


def test_swiglu(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    variant, library = compiled
    rows = variant.prefill_tile.rows
    problem = Problem(4, 32, False, rows, rows)
    y = np.zeros((rows, N // 2), np.float32)
    library.swiglu(*map(pointer, problem.arguments), pointer(y), N, K, 1, 1, 0, 0, N // 16)
    blocks = (problem.expected().astype(np.float64) + problem.bias).reshape(rows, -1, 2, 16)
    gate, up = blocks[:, :, 0], blocks[:, :, 1]
    assert _error(y, (gate / (1 + np.exp(-gate)) * up).reshape(rows, -1)) < 1e-6


def test_notices_wrong_codes(compiled: tuple[Variant, ctypes.CDLL], tmp_path: Path) -> None:
    """Negative control: one code off by one, and scales of swapped groups, leave the tolerance."""
    _, library = compiled
    problem = Problem(4, 32, False, 1, 1)
    kernel = library[_name(4, 32, False, "decode")]
    y = np.zeros((1, N), np.float32)
    kernel(*map(pointer, problem.arguments), pointer(y), N, K, 1, 0, 0, 0, N // 16)
    wrong = Problem(4, 32, False, 1, 1)
    wrong.w_codes[5, 7] ^= 1
    assert _error(y, wrong.expected()) > 1e-5
    swapped = Problem(4, 32, False, 1, 1)
    swapped.w_scales = swapped.w_scales[:, ::-1].copy()
    assert _error(y, swapped.expected()) > 1e-2
