"""Executed instructions of the arm64 kernels against the committed counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tvm_schedules.arm64 import emulator, instruction_counts

pytestmark = pytest.mark.emulated

MOST = 0.02
"""Counts are equal from run to run; this is room for a compiler's whim, not for a change of a schedule."""


@pytest.mark.parametrize("variant", emulator.CPUS)
def test_no_kernel_executes_more_or_fewer(variant: str, tmp_path: Path) -> None:
    emulator.qemu()
    baseline = json.loads(instruction_counts.BASELINE.read_text())[variant]
    found = instruction_counts.measure(variant, tmp_path)
    assert set(found) == set(baseline)
    changed = {
        name: (baseline[name], count) for name, count in found.items() if abs(count / baseline[name] - 1) > MOST
    }
    assert not changed, (
        f"(before, now): {changed}; when meant: python -m tests.tvm_schedules.arm64.instruction_counts --write"
    )


def test_better_instructions_are_fewer() -> None:
    """The counts can tell schedules apart: i8mm does a prefill in a fraction of NEON's instructions."""
    baseline = json.loads(instruction_counts.BASELINE.read_text())
    counts = [baseline[variant]["gemm_w4g32_prefill"] for variant in ("i8mm", "dotprod", "neon")]
    assert counts[0] < 0.8 * counts[1] and counts[1] < 0.6 * counts[2]
