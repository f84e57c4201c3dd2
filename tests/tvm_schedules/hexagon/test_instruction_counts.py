"""Executed instructions of the HVX GEMMs against the committed counts, and docs/npu.md against both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tvm_schedules.hexagon import emulator, instruction_counts

MOST = 0.02
"""Counts are equal from run to run; this is room for a compiler's whim, not for a change of a schedule."""


@pytest.mark.emulated
def test_no_kernel_executes_more_or_fewer(tmp_path: Path) -> None:
    emulator.tools()
    baseline = json.loads(instruction_counts.BASELINE.read_text())["executed"]
    found = instruction_counts.measure(tmp_path)
    for unit in instruction_counts.UNITS:
        assert set(found[unit]) == set(baseline[unit])
        changed = {
            name: (baseline[unit][name], count)
            for name, count in found[unit].items()
            if abs(count / baseline[unit][name] - 1) > MOST
        }
        assert not changed, (
            f"(before, now): {changed}; when meant: python -m tests.tvm_schedules.hexagon.instruction_counts --write"
        )


def test_the_table_is_the_committed_counts() -> None:
    counts = json.loads(instruction_counts.BASELINE.read_text())
    text = instruction_counts.table(counts["executed"], counts["loops"])
    assert instruction_counts.PAGE.read_text(encoding="utf-8") == instruction_counts.page_with(text)


def test_the_counts_tell_schedules_apart() -> None:
    """A packet holds one to four words; long groups are scaled less often; rows share the unpacking."""
    executed = json.loads(instruction_counts.BASELINE.read_text())["executed"]
    for name, packets in executed["packets"].items():
        assert packets < executed["words"][name] < 4 * packets
    words = executed["words"]
    assert words["gemm_w4g128_prefill"] < 0.5 * words["gemm_w4g32_prefill"]
    assert words["gemm_w4g128_prefill"] / 16 < words["gemm_w4g128_decode"]
