"""README's parity table is that of tests/golden/parity.json, and what it says is that every check passed."""

from __future__ import annotations

import json

import pytest

from tests import tiny
from tests.parity_table import BEGIN, END, GOLDEN, README, replace_table, table


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(GOLDEN.read_text())


def test_readme_has_the_recorded_table(record: dict) -> None:
    page = README.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0] == table(record), "run `make parity`"
    assert replace_table(page, table(record)) == page


def test_every_architecture_and_both_real_models_pass(record: dict) -> None:
    rows = record["rows"]
    assert {row["architecture"] for row in rows if row["checkpoint"] == "tiny, random"} == set(tiny.MAKERS)
    assert {"SmolLM2-135M-Instruct", "Qwen2.5-Coder-0.5B-Instruct"} <= {row["checkpoint"] for row in rows}
    assert all(row["passed"] for row in rows)
    assert all(row["n_same_greedy"] == row["n_greedy"] and row["n_same_argmax"] == row["n_rows"] for row in rows)
