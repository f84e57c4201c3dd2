"""Every broken input ends with its message and exit code, and docs/broken-inputs.md says the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from edgevlm.cli.main import main
from tests.broken import BrokenCase
from tests.broken.make_docs import HEAD, PAGE, cases, modules, row, trigger

PAGE_PYTHON = (3, 11)
"""argparse and json word some messages differently in other versions."""
ALL = [(module, case) for module in modules() for case in cases(module)]


def rows_of_page() -> dict[str, set[str]]:
    """Returns the page's rows by heading, numbers left out: offsets differ between library versions."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {text.splitlines()[0]: {without_numbers(line) for line in text.splitlines()[1:]} for text in sections}


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


@pytest.mark.parametrize(("module", "case"), ALL, ids=[f"{module}-{case.name}" for module, case in ALL])
def test_case(module: str, case: BrokenCase, tmp_path: Path) -> None:
    answer = trigger(module, case, tmp_path)
    assert answer.exit_code == case.error.exit_code
    assert case.fragment in answer.message
    assert len(answer.message) < 700, "one sentence"
    if sys.version_info[:2] == PAGE_PYTHON:
        assert any(without_numbers(row(case, answer)) in rows for rows in rows_of_page().values()), "run: make docs"


def test_page_has_no_other_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(HEAD)
    n_rows = sum(line.startswith("| ") for line in page.splitlines()) - len(modules())
    assert n_rows == len(ALL) >= 40


def test_a_sound_input_is_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.edgevlm.tiny_package import write_package

    assert main(["inspect", str(write_package(tmp_path / "package")), "--hash"]) == 0
    assert "hashes" in capsys.readouterr().out
