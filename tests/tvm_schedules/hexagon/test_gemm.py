"""The HVX GEMMs against the CPU kernels' oracle under qemu-hexagon (v66), and what v68 and v73 compile to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tvm_schedules.gemm_problem import K, N, Problem, relative_error
from tests.tvm_schedules.hexagon import emulator
from tvm_schedules import layouts

pytestmark = pytest.mark.emulated
VARIANT = emulator.VARIANTS[emulator.EXECUTED]
N_BLOCKS = N // layouts.BLOCK_COLUMNS["hexagon"]


@pytest.fixture(scope="module")
def kernels() -> Iterator[emulator.Kernels]:
    emulator.tools()
    running = emulator.Kernels()
    yield running
    running.close()


def problem_of(scheme: tuple[int, int, bool], tile: str) -> Problem:
    rows = getattr(VARIANT, f"{tile}_tile").rows
    return Problem(*scheme, rows=rows * 3, tile_rows=rows, arch="hexagon")


def product(kernels: emulator.Kernels, scheme: tuple[int, int, bool], tile: str, problem: Problem) -> np.ndarray:
    """y (rows, N), its columns in two shares as two threads would make them."""
    y = np.zeros((len(problem.x_codes), N), np.float32)
    for share in ((0, 2), (2, N_BLOCKS)):
        name = emulator.kernel_name(*scheme, tile)
        assert kernels.call(name, *problem.arguments, y, N, K, problem.row_tiles, 0, 0, *share) == 0
    return y


@pytest.mark.parametrize("tile", emulator.TILES)
@pytest.mark.parametrize("scheme", emulator.SCHEMES, ids=lambda s: f"w{s[0]}g{s[1]}{'z' if s[2] else ''}")
def test_integer_products_are_exact(kernels: emulator.Kernels, scheme: tuple[int, int, bool], tile: str) -> None:
    """With scales of 1 every sum is a whole number below 2^24."""
    problem = problem_of(scheme, tile)
    for scales in (problem.arguments[1], problem.arguments[4]):
        scales[...] = 1
    zeros = np.repeat(problem.zeros.astype(np.int64), scheme[1], axis=1)
    expected = problem.x_codes.astype(np.int64) @ (problem.w_codes.astype(np.int64) - zeros).T
    assert np.abs(expected).max() < 2**24 and expected.std() > 1000
    assert (product(kernels, scheme, tile, problem) == expected).all()


@pytest.mark.parametrize("tile", emulator.TILES)
@pytest.mark.parametrize("scheme", emulator.SCHEMES, ids=lambda s: f"w{s[0]}g{s[1]}{'z' if s[2] else ''}")
def test_scaled_products(kernels: emulator.Kernels, scheme: tuple[int, int, bool], tile: str) -> None:
    problem = problem_of(scheme, tile)
    y = product(kernels, scheme, tile, problem)
    assert relative_error(y, problem.expected()) < 1e-6
    name = emulator.kernel_name(*scheme, tile)
    kernels.call(name, *problem.arguments, y, N, K, problem.row_tiles, 1, 1, 0, N_BLOCKS)
    assert relative_error(y, 2 * problem.expected() + problem.bias) < 1e-6


def test_scales_of_every_size(kernels: emulator.Kernels) -> None:
    """float16 has no instruction here: the smallest, subnormal, and largest scales."""
    scheme = (4, 32, False)
    problem = problem_of(scheme, "decode")
    sizes = np.array([6e-8, 5e-7, 6e-5, 6.1e-5, 1.0, 65504.0], np.float16)
    problem.w_scales[...] = sizes[np.arange(N)[:, None] % len(sizes)]
    problem.arguments[1][...] = layouts.pack_per_group(problem.w_scales, layouts.BLOCK_COLUMNS["hexagon"])
    found, expected = product(kernels, scheme, "decode", problem), problem.expected()
    for first in range(len(sizes)):
        columns = slice(first, None, len(sizes))
        assert relative_error(found[:, columns], expected[:, columns]) < 1e-6


def test_notices_wrong_codes(kernels: emulator.Kernels) -> None:
    """Negative control: one code off by one leaves the tolerance."""
    scheme = (4, 32, False)
    problem = problem_of(scheme, "decode")
    found = product(kernels, scheme, "decode", problem)
    problem.w_codes[5, 7] ^= 1
    assert relative_error(found, problem.expected()) > 1e-5


def test_notices_a_write_behind_a_buffer(kernels: emulator.Kernels) -> None:
    """Negative control: a result that is too short for what the kernel writes ends the process with 66."""
    running = emulator.Kernels()
    problem = problem_of((4, 32, False), "decode")
    y = np.zeros((3, N), np.float32)[:, : N - 32].copy()
    with pytest.raises(AssertionError, match="ended with 66"):
        running.call("gemm_w4g32_decode", *problem.arguments, y, N, K, 3, 0, 0, 0, N_BLOCKS)


@pytest.mark.parametrize("name", ["hvxv68", "hvxv73"])
def test_newer_variants_compile_and_link(name: str, tmp_path: Path) -> None:
    """They scale whole vectors of floats (qf32), where v66 scales one lane after the other."""
    emulator.tools()
    variant = emulator.VARIANTS[name]
    schemes = ((4, 32, False),)
    emulator.link(variant, tmp_path, tmp_path / "program", schemes)
    undefined = subprocess.run(["llvm-nm-19", "-u", tmp_path / "kernels.o"], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in undefined.stdout.splitlines()} <= {"memset", "memcpy"}
    emulator.compiled(variant, tmp_path / "kernels.s", schemes)
    emulator.compiled(VARIANT, tmp_path / "old.s", schemes)
    text, old = ((tmp_path / file).read_text() for file in ("kernels.s", "old.s"))
    assert "vrmpy(" in text and "qf32" in text and "sfmpy" not in text
    assert "vrmpy(" in old and "qf32" not in old and "sfmpy" in old
