"""The demo model through the NPU's emulator: the same tokens as the simulation's, near fp32 (slow: minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.npu.compile import NpuOptions, compile_npu
from export.pipeline import ExportOptions, export_package
from tests.weights import demo_checkpoint

pytest.importorskip("onnxruntime_qnn", reason="needs pip install 'edgevlm[qnn]'")

from tests.benchmarks import npu_demo

N_TOKENS = 8
MIN_COSINE = 0.9995
MAX_KL_OVER_CPU = 1.5
NEAR_TIE = 0.05
"""Where tokens part, the two candidates' logits must lie this close, in standard deviations of the row."""


@pytest.mark.slow
def test_a_picture_through_the_emulator(tmp_path: Path) -> None:
    checkpoint = demo_checkpoint()
    package = export_package(checkpoint, tmp_path / "package", ExportOptions(verify=False))
    exact = ExportOptions(scheme="fp32", vision_scheme="fp32", verify=False)
    teacher = export_package(checkpoint, tmp_path / "teacher", exact)
    compile_npu(package, NpuOptions(socs=("SM8650",), context=256))
    image = npu_demo.ROOT / "assets/blue-rectangle.png"
    found = npu_demo.compare(package, teacher, image, "What color is the shape? Describe the picture.", N_TOKENS)
    print(found)
    for parting in found["partings"].values():
        assert parting is None or abs(parting["logit_gap"]) < NEAR_TIE * parting["logit_spread"]
    for backend in ("qnn-sim", "qnn"):
        assert found["vision_cosine_to_fp32"][backend]["mean"] >= MIN_COSINE
        assert found["kl_over_cpu_int4"][backend] <= MAX_KL_OVER_CPU
