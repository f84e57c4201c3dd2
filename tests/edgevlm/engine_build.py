"""The engine's plain C files as a library without kernels: all that pictures, plans and samplers need, in a second."""

from __future__ import annotations

import subprocess
from pathlib import Path

import edgevlm

ENGINE = Path(edgevlm.__file__).parent / "engine"
FLAGS = ("-std=c11", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ENGINE}")
NO_KERNELS = """
#include "kernels.h"
const ev_variant ev_variant_table[1] = {{.name = "none"}};
const int32_t ev_variant_count = 0;
"""


def compile_c(target: Path, sources: list[Path], *flags: str, compiler: str = "cc") -> Path:
    """Compiles and links `sources` into `target` with warnings as errors."""
    command = [*compiler.split(), *FLAGS, *flags, "-o", str(target), *map(str, sources)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return target


def build_engine(directory: Path, *flags: str) -> Path:
    """Returns the shared library of all of the engine's files, with an empty table of kernels."""
    table = directory / "no_kernels.c"
    table.write_text(NO_KERNELS)
    return compile_c(directory / "libengine.so", [*sorted(ENGINE.glob("*.c")), table], "-O2", "-shared", *flags)
