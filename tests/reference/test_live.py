"""Every architecture, tiny and random, live against transformers; and the faults that the comparison must notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgevlm.package import Package
from edgevlm.spec import ParityEntry
from export import parity, probes
from export.reference.load import load_reference
from export.reference.model import Reference
from tests import tiny
from tests.parity_table import tower_entries
from tests.tolerances import TINY_FEATURES, TINY_LOGITS
from tests.verify_case import build_package, copy_with_config, image_token_id, session_of, with_processor

pytestmark = pytest.mark.reference

WHOLE = ("idefics3", "smolvlm", "bluelm_v")
LANGUAGE = ("llama", "qwen2", *WHOLE)
CASES = {name: (name, {}) for name in LANGUAGE} | {"bluelm_v, a token each patch": ("bluelm_v", {"scale_factor": 1})}
"""Name → maker of tests/tiny.py and what it is told."""
TOWERS = ("dinov2", "siglip")
RANDOM_SIZES = [tuple(size) for size in np.random.RandomState(7).randint(1, 900, (40, 2)).tolist()]


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint on both sides."""

    source: Path
    package: Package
    reference: Reference
    expected: parity.Expected


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    maker, over = CASES[request.param]
    directory = tmp_path_factory.mktemp(maker)
    source = tiny.MAKERS[maker](directory / "source", **over)
    reference = load_reference(source)
    yield Case(source, build_package(source, directory / "package"), reference, parity.expect(reference))


def status(entries: list[ParityEntry]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in entries:
        found.setdefault(entry.stage, set()).add(entry.status)
    return found


def test_features_logits_and_greedy_tokens(case: Case) -> None:
    entries = parity.compare(session_of(case.package), case.expected, image_token_id(case.package))
    assert all(found == {"pass"} for found in status(entries).values()), entries
    assert len(case.expected.text_greedy) == 32


def test_errors_are_those_of_rounding(case: Case) -> None:
    session, expected = session_of(case.package), case.expected
    if expected.features is not None and expected.pixel_values is not None:
        found = parity.difference(session.encode(expected.pixel_values), expected.features)
        assert found.max_abs <= TINY_FEATURES.bound
    assert expected.text_logits is not None
    rows = np.concatenate(list(parity.chain_logits(session, np.asarray(expected.text_ids))))
    assert parity.difference(rows, expected.text_logits).max_abs <= TINY_LOGITS.bound


def test_prompt_ids(case: Case) -> None:
    assert status(parity.check_prompt_ids(case.package, case.reference)) == {"prompt ids": {"pass"}}


def test_pixels_and_grids(case: Case) -> None:
    if not case.reference.has_vision:
        pytest.skip("a language model")
    entries = parity.check_pictures(case.package, case.reference, [*probes.PICTURE_SIZES, *RANDOM_SIZES])
    assert all(entry.status == "pass" for entry in entries), entries


def test_a_dropped_thumbnail_fails(case: Case) -> None:
    if not case.reference.has_vision:
        pytest.skip("a language model")
    wrong = with_processor(case.package, thumbnail="none")
    assert {"fail"} in status(parity.check_pictures(wrong, case.reference)).values()
    assert status(parity.check_prompt_ids(wrong, case.reference)) == {"prompt ids": {"fail"}}


def test_a_wrong_rope_theta_fails(case: Case, tmp_path: Path) -> None:
    change = {"text": {"rope_theta": 2345.0}} if case.reference.has_vision else {"rope_theta": 2345.0}
    wrong = build_package(copy_with_config(case.source, tmp_path / "wrong", **change), tmp_path / "package")
    entries = parity.compare(session_of(wrong), case.expected, image_token_id(wrong))
    assert "fail" in status(entries)["logits"]


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_stored_head_is_used_whatever_the_flag_says(name: str, tmp_path: Path) -> None:
    """A tied flag beside another head: transformers does not tie then. The control ties, as this program once did."""
    pytest.importorskip("torch")
    where: dict[str, Any] = {"text": {"tie_word_embeddings": False}} if name == "bluelm_v" else {}
    untied = tiny.MAKERS[name](tmp_path / "untied", **(where or {"tie_word_embeddings": False}))
    flag = {"text": {"tie_word_embeddings": True}} if name == "bluelm_v" else {"tie_word_embeddings": True}
    source = copy_with_config(untied, tmp_path / "source", **flag)
    expected = parity.expect(load_reference(source))
    right = build_package(source, tmp_path / "package")
    entries = parity.compare(session_of(right), expected, image_token_id(right))
    assert all(found == {"pass"} for found in status(entries).values()), entries
    tensors = load_file(source / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if "lm_head" not in key}, source / "model.safetensors")
    tied = build_package(source, tmp_path / "tied")
    assert "fail" in status(parity.compare(session_of(tied), expected, image_token_id(tied)))["logits"]


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tiny.MAKERS[name](tmp_path / "source")
    entries = tower_entries(source, parity.expect(load_reference(source)), tmp_path / "graphs")
    assert status(entries) == {"vision features": {"pass"}}, entries


def test_a_wrong_tower_fails(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tiny.make_siglip(tmp_path / "source")
    expected = parity.expect(load_reference(source))
    wrong = copy_with_config(source, tmp_path / "wrong", hidden_act="gelu")
    assert status(tower_entries(wrong, expected, tmp_path / "graphs")) == {"vision features": {"fail"}}
