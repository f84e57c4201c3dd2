"""docs/cli.md is what the parsers say."""

from __future__ import annotations

from pathlib import Path

from edgevlm.cli.docs import render
from edgevlm.cli.parser import COMMANDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: make docs"


def test_page_has_every_command() -> None:
    assert [line for line in render().splitlines() if line.startswith("## edgevlm ")] == [
        f"## edgevlm {name}" for name in COMMANDS
    ]
