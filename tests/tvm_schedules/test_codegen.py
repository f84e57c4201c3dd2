"""What every object file of the kernels must be like, whatever it computes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tvm_schedules.targets import VARIANTS


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.arch == "x86_64"], ids=lambda variant: variant.name)
def test_x86_kernels_align_their_stack(variant, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Vectors that LLVM spills then never lie across two cache lines: a matter of up to a factor of two."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    from tvm_schedules.codegen import build_object
    from tvm_schedules.gemm.weight_codes import gemm

    kernels = {"ev_gemm": gemm(variant, variant.prefill_tile, 4, 32, False, swiglu=True)}
    build_object(kernels, variant, tmp_path / "kernel.o")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", tmp_path / "kernel.o"], capture_output=True, text=True, check=True
    ).stdout
    body = re.search(r"<ev_gemm>:\n(.*?)\n\n", listing + "\n\n", re.DOTALL)
    assert body is not None
    assert re.search(r"and +\$0xffffffffffffffc0,%rsp", body.group(1))
    spills = re.findall(r"vmov\w+ +%[yz]mm\d+,(?:0x([0-9a-f]+))?\(%rsp\)", body.group(1))
    assert all(int(offset or "0", 16) % 32 == 0 for offset in spills)
