"""Compiles single kernels for the variants that this CPU can run, for the tests of this folder."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tvm_schedules.targets import VARIANTS, Variant

CPU_FLAG_NAMES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
"""Feature names that /proc/cpuinfo spells differently."""


def host_variants() -> list[Variant]:
    """Variants whose features this CPU reports (x86-64)."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [v for v in VARIANTS if v.arch == "x86_64" and all(CPU_FLAG_NAMES.get(f, f) in flags for f in v.features)]


def x86_variants() -> list[Any]:
    """Parameters of a fixture: every x86-64 variant; one that this CPU cannot run is skipped, with what it lacks."""
    runs = host_variants()
    parameters = []
    for variant in VARIANTS:
        if variant.arch != "x86_64":
            continue
        marks = () if variant in runs else (pytest.mark.skip(f"this CPU has no {variant.features[-1]}"),)
        parameters.append(pytest.param(variant, id=variant.name, marks=marks))
    return parameters


def compile_kernels(functions: Mapping[str, Any], variant: Variant, directory: Path) -> ctypes.CDLL:
    """Builds `functions` into a library of their own and checks that it needs nothing of TVM's."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.codegen import build_object

    stem = directory / variant.name
    build_object(functions, variant, stem.with_suffix(".o"))
    undefined = subprocess.run(["nm", "-u", stem.with_suffix(".o")], capture_output=True, text=True, check=True).stdout
    assert set(undefined.replace(" U ", "").split()) <= {"memset", "memcpy"}  # what a compiler may call anywhere
    subprocess.run(["cc", "-shared", "-o", stem.with_suffix(".so"), stem.with_suffix(".o")], check=True)
    return ctypes.CDLL(str(stem.with_suffix(".so")))


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """The array's memory, which the kernel may write."""
    if not array.flags.c_contiguous:
        raise ValueError("kernels take contiguous arrays")
    return ctypes.c_void_p(array.ctypes.data)


def argument_of(value: Any) -> Any:
    """The ctypes argument of an array, a float or an int."""
    if isinstance(value, np.ndarray):
        return pointer(value)
    return ctypes.c_float(value) if isinstance(value, float) else value
