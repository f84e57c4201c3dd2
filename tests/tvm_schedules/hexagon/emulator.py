"""The HVX GEMMs under qemu-hexagon: builds them once per session, links them with kernel_caller.c, and calls them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.tvm_schedules.emulated_kernels import EmulatedKernels
from tvm_schedules.targets import HVX_VARIANTS, Variant

HERE = Path(__file__).parent
BUILD = Path(__file__).resolve().parents[3] / "build/hexagon"
SCHEMES = ((4, 32, False), (4, 64, True), (4, 128, False), (8, 32, False), (8, 128, False))
"""(bits, group, zero point)."""
TILES = ("prefill", "batch", "decode")
VARIANTS = {variant.name: variant for variant in HVX_VARIANTS}
EXECUTED = "hvxv66"
"""The newest that Debian's qemu has a CPU model for."""


def tools() -> None:
    """Skips the test when a tool is missing."""
    if any(shutil.which(name) is None for name in ("qemu-hexagon", "clang-19", "ld.lld-19")):
        pytest.skip("qemu-hexagon, clang-19 or ld.lld-19 is missing; `make deps` installs them")
    pytest.importorskip("tvm", reason="apache-tvm is not installed")


def kernel_name(bits: int, group: int, zero_point: bool, tile: str) -> str:
    """Such as gemm_w4g64z_prefill."""
    return f"gemm_w{bits}g{group}{'z' if zero_point else ''}_{tile}"


def compiled(variant: Variant, path: Path, schemes: tuple[tuple[int, int, bool], ...]) -> list[str]:
    """Compiles the GEMMs of `variant` into `path` (.o or .s); returns their names."""
    from tvm_schedules.codegen import build_object
    from tvm_schedules.gemm.weight_codes import gemm

    functions = {
        kernel_name(*scheme, tile): gemm(variant, getattr(variant, f"{tile}_tile"), *scheme)
        for scheme in schemes
        for tile in TILES
    }
    build_object({f"ev_{name}": function for name, function in functions.items()}, variant, path)
    return sorted(functions)


def link(variant: Variant, scratch: Path, target: Path, schemes: tuple[tuple[int, int, bool], ...] = SCHEMES) -> None:
    """Builds the program that serves the GEMMs of `variant`."""
    names = compiled(variant, scratch / "kernels.o", schemes)
    table = scratch / "table.c"
    table.write_text(
        "".join(f"extern int ev_{name}();\n" for name in names)
        + "const struct { const char *name; int (*function)(); } kernel_table[] = {\n"
        + "".join(f'    {{"{name}", ev_{name}}},\n' for name in names)
        + "    {0, 0},\n};\n"
    )
    flags = ["--target=hexagon-unknown-elf", f"-m{variant.name.removeprefix('hvx')}", "-G0", "-O1", "-ffreestanding"]
    objects = [str(scratch / "kernels.o")]
    for source, warnings in ((HERE / "kernel_caller.c", ["-Wall", "-Wextra", "-Werror"]), (table, ["-w"])):
        objects.append(str(scratch / f"{source.stem}.o"))
        command = ["clang-19", *flags, *warnings, "-fno-builtin", "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    linked = target.with_name(f".{os.getpid()}-{target.name}")
    subprocess.run(["ld.lld-19", "-m", "hexagonelf", "-static", *objects, "-o", str(linked)], check=True)
    linked.replace(target)


@functools.cache
def kernel_caller() -> Path:
    """The program with the kernels that qemu can execute."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        link(VARIANTS[EXECUTED], Path(scratch), BUILD / "kernel_caller")
    return BUILD / "kernel_caller"


class Kernels(EmulatedKernels):
    """The GEMMs in an emulated process."""

    def __init__(self, plugin: Path | None = None, environment: dict[str, str] | None = None) -> None:
        """`plugin` counts instructions; `environment` tells it how and where."""
        command = ["qemu-hexagon", *(["-plugin", str(plugin)] if plugin else []), str(kernel_caller())]
        super().__init__(command, "", "qemu-hexagon", environment)
