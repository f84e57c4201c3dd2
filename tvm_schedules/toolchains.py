"""C compilers for the targets of the build: this machine's own, and clang with lld for arm64 Linux and Android.

Android is built without the NDK: prototypes in bionic/bionic.h, and stub libraries made from the names in
bionic/symbols.txt for the linker to resolve against; neither is shipped. The result needs libc, libm and liblog only.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgevlm.errors import BackendError

OperatingSystem = Literal["linux", "android"]
BIONIC = Path(__file__).parent / "bionic"
HEADERS = (
    "errno.h", "fcntl.h", "linux/futex.h", "math.h", "pthread.h", "sched.h", "stdio.h", "stdlib.h", "string.h",
    "sys/mman.h", "sys/syscall.h", "time.h", "unistd.h",
)  # fmt: skip
_CLANGS = ("clang-19", "clang")
_SYSROOT = Path("/usr/aarch64-linux-gnu")
_GCC_CROSS = Path("/usr/lib/gcc-cross/aarch64-linux-gnu")

# No contraction: a product and a sum are rounded apart everywhere, so that all machines see the same pixels.
C_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-ffp-contract=off", "-Wall", "-Wextra",
)  # fmt: skip
LINK_FLAGS = (
    "-shared", "-Wl,--no-undefined", "-Wl,--gc-sections", "-Wl,-z,max-page-size=16384", "-Wl,-z,relro,-z,now", "-s",
)  # fmt: skip


@dataclass(frozen=True)
class Toolchain:
    """How to compile and link one library: `compiler` with `flags` for both, `link_flags` for the link."""

    compiler: str
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]


def toolchain(arch: str, system: OperatingSystem, scratch: Path) -> Toolchain:
    """The toolchain for a target; `scratch` receives generated headers and stubs and must outlive the link.

    Raises BackendError naming what is missing.
    """
    host = platform.machine().replace("aarch64", "arm64")
    if system == "android":
        if arch != "arm64":
            raise BackendError(f"the Android library is built for arm64 only, not for {arch}")
        return _android(scratch)
    if arch == host:
        return Toolchain("cc", ("-D_GNU_SOURCE",), ("-pthread",))
    if arch == "arm64":
        return _linux_arm64()
    raise BackendError(f"there is no cross toolchain for {arch} on {host}")


def _clang() -> str:
    for name in _CLANGS:
        path = shutil.which(name)
        if path:
            return path
    raise BackendError("clang is missing; `make deps` installs it (clang-19 lld-19)")


def _linux_arm64() -> Toolchain:
    if not _SYSROOT.exists() or not _GCC_CROSS.exists():
        raise BackendError("the arm64 sysroot is missing; `make deps` installs it (gcc-aarch64-linux-gnu)")
    # The kernels' calling convention is Linux's; -mno-outline-atomics keeps libgcc out.
    flags = ("--target=aarch64-linux-gnu", "-march=armv8-a", "-mno-outline-atomics", "-D_GNU_SOURCE")
    return Toolchain(_clang(), flags, ("-fuse-ld=lld", "-pthread"))


def _android(scratch: Path) -> Toolchain:
    clang = _clang()
    include, stubs = scratch / "bionic-include", scratch / "bionic-stubs"
    for name in HEADERS:
        header = include / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#include "bionic.h"\n', encoding="utf-8")
    stubs.mkdir(exist_ok=True)
    target = ("--target=aarch64-linux-android24", "-fuse-ld=lld")
    for library, names in bionic_symbols().items():
        source = stubs / f"{library}.c"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in names), encoding="utf-8")
        subprocess.run(
            [clang, *target, "-fno-builtin", "-w", "-shared", "-nostdlib", f"-Wl,-soname,{library}.so", str(source),
             "-o", str(stubs / f"{library}.so")],
            check=True,
        )  # fmt: skip
    resources = subprocess.run([clang, "-print-resource-dir"], capture_output=True, text=True, check=True).stdout
    flags = (
        "--target=aarch64-linux-android24", "-march=armv8-a", "-mno-outline-atomics", "-nostdlibinc",
        "-isystem", f"{resources.strip()}/include", "-isystem", str(include), "-isystem", str(BIONIC),
    )  # fmt: skip
    link = ("-fuse-ld=lld", "-nostdlib", f"-L{stubs}", "-lc", "-lm", "-llog", "-Wl,-soname,libedgevlm.so",
            "-Wl,--exclude-libs,ALL", "-Wl,--build-id")  # fmt: skip
    return Toolchain(clang, flags, link)


def bionic_symbols() -> dict[str, list[str]]:
    """Library → the functions that the build may take from Android's."""
    symbols: dict[str, list[str]] = {}
    for line in (BIONIC / "symbols.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            library, _, names = line.partition(":")
            symbols.setdefault(library, []).extend(names.split())
    return symbols
