"""Every spelling of a config is read as transformers reads it, or refused by name: a silent difference fails."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError
from tests.reference import config_dialects as dialects
from tests.tolerances import TINY_FEATURES, TINY_LOGITS

pytestmark = pytest.mark.reference

BOUNDS = {"features": TINY_FEATURES.bound, "logits": TINY_LOGITS.bound}
QUICK, MANY = range(0, 60), range(1000, 1600)
EQUAL_SHARE = 0.8
"""Of the cases that transformers answers, at least this share is answered by us: 0.897 of 378 in MANY (2026-11-29)."""
ALONE = (
    (r"drawn at random: \['lm_head\.weight'\]$", "an untied model without a head takes the embedding, and says so"),
    (r"unsupported operand type\(s\) for //", "a size may be a pair of equal numbers, for every tower"),
    (
        r"error for field '(?!rms_norm|layer_norm|hidden_act|num_|.*_size)",
        "odd types of fields that nobody reads",
    ),
    (r"error for field '(rms|layer)_norm_eps'", "a whole number is a number"),
    (r"validator 'validate_(layer_type|rope)'", "layer_types of a llama, rope_scaling beside text_config: not read"),
    (r"AttributeError: 'Idefics3Config' object|KeyError: \"Missing required keys", "rope_scaling beside text_config"),
    (r"list index out of range", "dtype of an odd type"),
    (r"not asked$", "a huge number in a field that nobody computes by"),
)
"""Why we may answer what transformers does not, by its reason; any other reason fails."""


def run(numbers: Iterable[int], directory: Path) -> tuple[Counter[str], list[str]]:
    """How often what happened, and what is wrong."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bases = dialects.make_bases(directory)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for number in numbers:
        case = dialects.draw(number, bases)
        place = directory / f"case{number}"
        source = dialects.snapshot(case, bases, place)
        mine = dialects.ours(source, place / "out")
        other = dialects.theirs(case, source)
        outcome, fault = judge(case, mine, other)
        counts[outcome] += 1
        wrong += fault
        shutil.rmtree(place)
    return counts, wrong


def judge(
    case: dialects.Case, mine: dialects.Values | EdgeVLMError, other: dialects.Values | str
) -> tuple[str, list[str]]:
    """What happened in one case, and the fault if it is one."""
    if isinstance(mine, EdgeVLMError):
        named = "config.json" in str(mine) or "tensor" in str(mine)
        fault = [] if named else [f"{case}: the refusal names no field: {mine}"]
        return ("refused by both" if isinstance(other, str) else "refused by us"), fault
    if isinstance(other, str):
        known = any(re.search(reason, other) for reason, _ in ALONE)
        return "answered by us alone", [] if known else [f"{case}: we answer where transformers says: {other}"]
    for name, values in mine.items():
        if values.shape != other[name].shape or not np.abs(values - other[name]).max() <= BOUNDS[name]:
            return "different", [f"{case}: {name} differ"]
    return "equal", []


def check(numbers: range, directory: Path) -> None:
    counts, wrong = run(numbers, directory)
    print(dict(counts))
    assert not wrong, "\n".join(wrong)
    assert counts["equal"] >= EQUAL_SHARE * (counts["equal"] + counts["refused by us"]), counts
    assert counts["equal"] >= len(numbers) / 3, counts


def test_some_dialects(tmp_path: Path) -> None:
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_many_dialects(tmp_path: Path) -> None:
    assert len(MANY) >= 500
    check(MANY, tmp_path)
