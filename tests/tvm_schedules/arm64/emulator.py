"""The arm64 kernels and engine under qemu-aarch64: builds what a test runs, once per session, and calls it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.tvm_schedules.emulated_kernels import EmulatedKernels

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
SYSROOT = "/usr/aarch64-linux-gnu"
CPUS = {"i8mm": "max", "dotprod": "cortex-a76", "neon": "cortex-a53"}
"""Variant → the least CPU of qemu's that has it."""


def qemu() -> str:
    """qemu-aarch64; skips the test when a tool of the emulated tests is missing."""
    path = shutil.which("qemu-aarch64")
    if path is None or shutil.which("clang-19") is None or not Path(SYSROOT).exists():
        pytest.skip("qemu-aarch64, clang-19 or the arm64 sysroot is missing; `make deps` installs them")
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    return path


@functools.cache
def library() -> Path:
    """libedgevlm-arm64.so for Linux, built from the kept objects."""
    from tvm_schedules.build import build_library

    return build_library("arm64", ROOT / "build/arm64", cache=ROOT / "build/objects")


@functools.cache
def android_library() -> Path:
    """libedgevlm.so for Android."""
    from tvm_schedules.build import build_library

    return build_library("arm64", ROOT / "build/arm64", "android", cache=ROOT / "build/objects")


@functools.cache
def kernel_objects() -> dict[str, dict[str, Path]]:
    """Variant → kernel → object file."""
    from tvm_schedules import build

    return build.kernel_objects(build.built_variants("arm64", records=False), ROOT / "build/objects")


@functools.cache
def kernel_caller() -> Path:
    """The program of kernel_caller.c with all kernels of all variants."""
    from tvm_schedules import build
    from tvm_schedules.targets import BY_NAME

    objects = kernel_objects()
    table = build.table_source([(BY_NAME[name], sorted(kernels)) for name, kernels in objects.items()])
    target = ROOT / "build/arm64/kernel_caller"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "table.c"
        source.write_text(table)
        files = [str(path.resolve()) for kernels in objects.values() for path in kernels.values()]
        compile_program([HERE / "kernel_caller.c", source], target, [*files, "-static"])
    return target


def compile_program(sources: list[Path], target: Path, more: list[str], include: Path | None = None) -> None:
    """Compiles C for arm64 Linux against the engine's headers, or those in `include`."""
    headers = include or ROOT / "edgevlm/engine"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{headers}"]
    link([*flags, *map(str, sources), *more, "-pthread"], target)


def link(arguments: list[str], target: Path) -> None:
    """Runs clang for arm64 Linux; test workers that do so at the same time each write a file of their own first."""
    scratch = target.with_name(f".{os.getpid()}-{target.name}")
    command = ["clang-19", "--target=aarch64-linux-gnu", "-fuse-ld=lld", *arguments, "-o", str(scratch)]
    subprocess.run(command, check=True)
    scratch.replace(target)


@functools.cache
def stand_ins() -> Path:
    """A directory with libc.so, libm.so and liblog.so that hand Android's libraries to glibc."""
    directory = ROOT / "build/arm64/bionic"
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "errno.c"
    source.write_text("#include <errno.h>\nint *__errno(void) { return &errno; }\n")
    for name in ("libc", "libm", "liblog"):
        link(["-shared", "-fPIC", str(source), "-lm", f"-Wl,-soname,{name}.so"], directory / f"{name}.so")
    return directory


class Kernels(EmulatedKernels):
    """The kernels of one variant in an emulated process."""

    def __init__(self, variant: str, cpu: str, plugin: Path | None = None, counts: Path | None = None) -> None:
        """`plugin` counts instructions into the file `counts`."""
        self.variant, self.cpu = variant, cpu
        command = [qemu(), "-cpu", cpu, *(["-plugin", str(plugin)] if plugin else []), str(kernel_caller())]
        super().__init__(command, f"{variant}/", cpu, {"COUNTS": str(counts)} if counts else None)
