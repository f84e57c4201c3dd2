"""A real language model in fp32 against transformers, with bounds from the parity table's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm.spec import ParityEntry
from export import parity
from export.archs import arch_spec
from export.archspec import ArchSpec
from tests import verify_case
from tests.tolerances import REAL_LOGITS, REAL_RATIO
from tests.weights import smollm2_135m

pytestmark = [pytest.mark.reference, pytest.mark.weights]


@pytest.fixture(scope="module")
def expected() -> Iterator[parity.Expected]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from export.reference.load import load_reference

    yield parity.expect(load_reference(smollm2_135m()))


def entries_of(expected: parity.Expected, directory: Path) -> dict[str, ParityEntry]:
    package = verify_case.build_package(smollm2_135m(), directory)
    found = parity.compare(verify_case.session_of(package), expected, -1)
    return {f"{entry.stage}, {entry.metric}": entry for entry in found}


def test_logits_and_greedy_tokens_of_a_real_model(expected: parity.Expected, tmp_path: Path) -> None:
    entries = entries_of(expected, tmp_path)
    assert {entry.status for entry in entries.values()} == {"pass"}, entries
    assert len(expected.text_ids) == parity.N_TEXT_TOKENS and len(expected.text_greedy) == parity.N_GREEDY
    assert expected.text_logits is not None and expected.text_logits.std() > 1
    max_abs, ratio = entries[f"logits, {parity.MAX_ABS_METRIC}"].value, entries[ratio_of(entries)].value
    assert max_abs is not None and max_abs <= REAL_LOGITS.bound
    assert ratio is not None and ratio <= REAL_RATIO.bound


def test_a_slightly_wrong_theta_fails(
    expected: parity.Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> ArchSpec:
        spec = arch_spec(*arguments)
        assert spec.language is not None
        ropes = tuple((kind, replace(rope, theta=0.9 * rope.theta)) for kind, rope in spec.language.ropes)
        return replace(spec, language=replace(spec.language, ropes=ropes))

    monkeypatch.setattr(verify_case, "arch_spec", wrong)
    entries = entries_of(expected, tmp_path)
    assert entries[ratio_of(entries)].status == "fail"


def ratio_of(entries: dict[str, ParityEntry]) -> str:
    return next(name for name in entries if name.startswith("logits, |error|"))
