"""The AVX-VNNI variant: its instructions by disassembly, its code through the EVEX form where the CPU has that."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tvm_schedules.attention_problem import Cache, bound
from tests.tvm_schedules.gemm_problem import K, N, Problem, relative_error
from tests.tvm_schedules.kernels import argument_of, compile_kernels, host_variants
from tvm_schedules.targets import BY_NAME, Variant

AVXVNNI = BY_NAME["avxvnni"]
EVEX = replace(AVXVNNI, mattr=("+avx512vnni", "+avx512vl"))
"""The same kernels: LLVM encodes 256-bit vpdpbusd as EVEX when AVX-512 VNNI is what it has."""
GEMMS = ((4, 32, "prefill"), (4, 32, "decode"), (8, 128, "batch"))


def kernels(variant: Variant) -> dict[str, Any]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm_schedules.gemm.weight_codes import gemm
    from tvm_schedules.kernel_set import attention_kernels

    functions = {
        f"gemm_w{bits}g{group}_{tile}": gemm(variant, getattr(variant, f"{tile}_tile"), bits, group, False)
        for bits, group, tile in GEMMS
    }
    attention = attention_kernels(variant, 64)
    return functions | {name: attention[name] for name in ("append_e64_k8v8", "attend_e64_k8v8_prefill", "merge_e64")}


def dot_products(variant: Variant, directory: Path) -> list[tuple[str, str]]:
    """(bytes, operands) of every VNNI instruction in the variant's kernels."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is missing")
    from tvm_schedules.codegen import build_object

    build_object(kernels(variant), variant, directory / "kernels.o")
    command = ["objdump", "-d", "-w", str(directory / "kernels.o")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*(?:\{vex\} )?vpdp(?:busd|wssd)\s+(.*)$", text, re.M)


def test_vex_encoded_on_256_bits(tmp_path: Path) -> None:
    """Three-byte VEX (c4) with ymm operands; the EVEX form begins with 62: the negative control."""
    found = dot_products(AVXVNNI, tmp_path)
    assert len(found) > 100
    assert all(code.startswith("c4 ") and "ymm" in operands for code, operands in found)
    assert all("zmm" not in operands and "xmm" not in operands for _, operands in found)
    evex = dot_products(EVEX, tmp_path)
    assert len(evex) > 100 and all(code.startswith("62 ") and "ymm" in operands for code, operands in evex)


@pytest.mark.skipif(
    "avx512vnni" not in {variant.name for variant in host_variants()}, reason="this CPU has no AVX-512 VNNI"
)
def test_the_code_computes(tmp_path: Path) -> None:
    library = compile_kernels(kernels(EVEX), EVEX, tmp_path)

    def call(kernel: str, *arguments: Any) -> None:
        library[kernel](*map(argument_of, arguments))

    for bits, group, tile in GEMMS:
        rows = getattr(EVEX, f"{tile}_tile").rows
        problem = Problem(bits, group, False, rows * 2, rows, EVEX.arch)
        y = np.zeros((rows * 2, N), np.float32)
        call(f"gemm_w{bits}g{group}_{tile}", *problem.arguments, y, N, K, problem.row_tiles, 0, 0, 0, N // 16)
        assert relative_error(y, problem.expected()) < 1e-6
        problem.w_codes[1, 2] ^= 1  # negative control
        assert relative_error(y, problem.expected()) > 1e-6
    cache = Cache(call, (8, 8), 64)
    qkv = np.random.default_rng(1).standard_normal((70, cache.width)).astype(np.float32)
    expected = cache.expected(cache.append(qkv), 0)
    found = cache.attend(qkv, [0, 64, 70], 0)
    assert np.abs(found - expected).max() < bound((8, 8), cache.head_dim) * np.abs(expected).max()
