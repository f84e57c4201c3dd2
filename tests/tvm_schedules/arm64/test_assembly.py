"""What the arm64 objects must not contain, and what llvm-mca says of the hot loops."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tvm_schedules.arm64 import assembly, emulator
from tvm_schedules.targets import BY_NAME

pytestmark = pytest.mark.emulated

PIPES = {"neoverse-v2": 4, "neoverse-n2": 2}
"""smmla a cycle at most."""
FORBIDDEN = re.compile(r"\b[xw]18\b|\bz\d+\.[bhsdq]\b|\bp\d+/[mz]\b|\bptrue\b")
"""The register that Android reserves, and SVE."""


def disassembly(path: Path) -> str:
    if shutil.which("llvm-objdump-19") is None:
        pytest.skip("llvm-objdump-19 is missing; `make deps` installs it")
    command = ["llvm-objdump-19", "-d", "--no-show-raw-insn", "--mattr=+all", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("system", ["linux", "android"])
def test_no_reserved_register_and_no_sve(system: str, tmp_path: Path) -> None:
    emulator.qemu()
    text = disassembly(emulator.library() if system == "linux" else emulator.android_library())
    assert len(text.splitlines()) > 50_000 and "smmla" in text and "sdot" in text
    code = [line for line in text.splitlines() if line.startswith(" ")]
    if system == "android":
        assert not [line for line in code if FORBIDDEN.search(line)]
    else:
        # The C part of the Linux library may use x18; the kernels are the same objects as Android's.
        assert not [line for line in code if FORBIDDEN.search(line) and not re.search(r"\b[xw]18\b", line)]


def test_the_search_finds_them(tmp_path: Path) -> None:
    """Negative control."""
    emulator.qemu()
    source, target = tmp_path / "a.s", tmp_path / "a.o"
    source.write_text("add x0, x18, x1\nadd z0.s, z1.s, z2.s\nptrue p0.s\n")
    command = ["clang-19", "--target=aarch64-linux-gnu", "-march=armv9-a", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    code = [line for line in disassembly(target).splitlines() if line.startswith(" ")]
    assert len([line for line in code if FORBIDDEN.search(line)]) == 3


def test_android_needs_three_libraries() -> None:
    """NEEDED, 16 KB pages, no thread-local storage, and only functions of bionic's."""
    emulator.qemu()
    from tvm_schedules.toolchains import bionic_symbols

    path = str(emulator.android_library())
    read = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    dynamic = read(["llvm-readelf-19", "-d", path]).stdout
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) == ["libc.so", "libm.so", "liblog.so"]
    assert "TEXTREL" not in dynamic and "[libedgevlm.so]" in dynamic
    segments = read(["llvm-readelf-19", "-lW", path]).stdout
    assert " TLS " not in segments
    assert {line.split()[-1] for line in segments.splitlines() if line.split()[:1] == ["LOAD"]} == {"0x4000"}
    symbols = read(["llvm-nm-19", "-D", path]).stdout.splitlines()
    undefined = {line.split()[-1] for line in symbols if " U " in line}
    assert undefined and undefined <= {name for names in bionic_symbols().values() for name in names}
    assert all(line.split()[-1].startswith("ev_") for line in symbols if " T " in line)


def assembly_of(function: Any, directory: Path) -> Path:
    from tvm_schedules.codegen import build_object

    path = directory / "kernel.s"
    build_object({"kernel": function}, BY_NAME["i8mm"], path)
    return path


@pytest.mark.parametrize("cpu", PIPES)
@pytest.mark.parametrize(("group", "least"), [(32, 0.50), (128, 0.70)])
def test_gemm_reaches_the_share_of_smmla(group: int, least: float, cpu: str, tmp_path: Path) -> None:
    """The loop over groups, its scaling included: 53 % at g32 and 82 % at g128 on 2026-11-25, V2 and N2 alike."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.gemm.weight_codes_arm64 import gemm

    variant = BY_NAME["i8mm"]
    loop = assembly.innermost_loop(assembly_of(gemm(variant, variant.prefill_tile, 4, group, False), tmp_path), "smmla")
    products = assembly.count(loop, "smmla")
    assert products == group  # 8 rows x 4 columns x group k, 32 products each
    assert assembly.count(loop, "fmla") == 8
    assert products / PIPES[cpu] / assembly.cycles(loop, cpu, tmp_path) >= least


@pytest.mark.parametrize(("cpu", "most"), [("neoverse-v2", 2.2), ("neoverse-n2", 3.6)])
def test_gemv_cycles(cpu: str, most: float, tmp_path: Path) -> None:
    """Cycles per 32 weights of int4 g32: 1.52 on V2 and 3.28 on N2 on 2026-11-25."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.gemm.weight_codes_arm64 import gemm

    variant = BY_NAME["i8mm"]
    loop = assembly.innermost_loop(assembly_of(gemm(variant, variant.decode_tile, 4, 32, False), tmp_path), "sdot")
    assert assembly.count(loop, "sdot") == 32  # 16 columns x 32 k, 16 products each
    assert assembly.cycles(loop, cpu, tmp_path) / 16 <= most
