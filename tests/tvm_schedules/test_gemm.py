"""Integer GEMM against float64 on the same codes: every scheme, tile and variant that this CPU can run."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.tvm_schedules.gemm_problem import K, N, Problem, relative_error, swiglu
from tests.tvm_schedules.kernels import compile_kernels, pointer, x86_variants
from tvm_schedules.targets import Variant

SCHEMES = (
    (4, 32, False), (4, 64, False), (4, 128, False), (4, 32, True), (4, 64, True), (4, 128, True),
    (8, 32, False), (8, 64, False), (8, 128, False),
)  # fmt: skip
TILES = ("prefill", "batch", "decode")


def _name(bits: int, group: int, zero_point: bool, tile: str) -> str:
    return f"gemm_w{bits}g{group}{'z' if zero_point else ''}_{tile}"


@pytest.fixture(scope="module", params=x86_variants())
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


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"w{s[0]}g{s[1]}{'z' if s[2] else ''}")
def test_gemm(compiled: tuple[Variant, ctypes.CDLL], scheme: tuple[int, int, bool], tile: str) -> None:
    variant, library = compiled
    tile_rows = getattr(variant, f"{tile}_tile").rows
    problem = Problem(*scheme, rows=tile_rows * 3, tile_rows=tile_rows, arch=variant.arch)
    kernel = library[_name(*scheme, tile)]
    y = np.zeros((tile_rows * 3, N), np.float32)
    pointers = [pointer(array) for array in problem.arguments]

    def run(*, has_bias: int, accumulate: int) -> None:
        # Two calls with a share of the columns each, as two threads would make them.
        for share in ((0, 4), (4, N // 16)):
            assert kernel(*pointers, pointer(y), N, K, problem.row_tiles, has_bias, accumulate, *share) == 0

    run(has_bias=0, accumulate=0)
    assert relative_error(y, problem.expected()) < 1e-6
    run(has_bias=1, accumulate=1)
    assert relative_error(y, 2 * problem.expected() + problem.bias) < 1e-6


def test_swiglu(compiled: tuple[Variant, ctypes.CDLL]) -> None:
    variant, library = compiled
    rows = variant.prefill_tile.rows
    problem = Problem(4, 32, False, rows, rows, variant.arch)
    y = np.zeros((rows, N // 2), np.float32)
    library.swiglu(*map(pointer, problem.arguments), pointer(y), N, K, 1, 1, 0, 0, N // 16)
    assert relative_error(y, swiglu(problem.expected() + problem.bias)) < 1e-6


def test_notices_wrong_codes(compiled: tuple[Variant, ctypes.CDLL], tmp_path: Path) -> None:
    """Negative control: one code off by one, and scales of swapped groups, leave the tolerance."""
    variant, library = compiled
    problem = Problem(4, 32, False, 1, 1, variant.arch)
    kernel = library[_name(4, 32, False, "decode")]
    y = np.zeros((1, N), np.float32)
    kernel(*map(pointer, problem.arguments), pointer(y), N, K, 1, 0, 0, 0, N // 16)
    wrong = Problem(4, 32, False, 1, 1, variant.arch)
    wrong.w_codes[5, 7] ^= 1
    assert relative_error(y, wrong.expected()) > 1e-5
    swapped = Problem(4, 32, False, 1, 1, variant.arch)
    swapped.w_scales = swapped.w_scales[:, ::-1].copy()
    assert relative_error(y, swapped.expected()) > 1e-2
