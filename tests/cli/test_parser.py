"""Arguments, usage errors and the two shapes of an error."""

from __future__ import annotations

import argparse
import json

import pytest

from edgevlm import __version__
from edgevlm.cli.main import main
from edgevlm.cli.parser import COMMANDS, build_parser, number, size_bytes
from edgevlm.errors import UsageError


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "PACKAGE, PROMPT"),
        (["run", "p", "q", "--imag", "x.png"], "--imag"),
        (["run", "p", "q", "--top-p", "1.5"], "from 0 to 1"),
        (["run", "p", "q", "--temperature", "nan"], "at least 0"),
        (["run", "p", "q", "--max-new-tokens", "0"], "an integer at least 1"),
        (["run", "p", "q", "--memory-budget", "lots"], "1500M or 2G"),
        (["run", "p", "q", "--kv-bits", "k8v8,k3"], "found 'k3'"),
        (["export", "s", "--override", "lm_head"], "PATTERN=SCHEME"),
        (["tiles", "i.png", "--package", "p", "--scheme", "relaxed"], "not allowed with"),
        (["run", "p", " "], "the prompt is empty"),
    ],
)
def test_usage_errors(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == UsageError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err and err.startswith("edgevlm: error: ") and err.count("\n") == 1

    assert main([*words, "--json"]) == UsageError.exit_code
    out, err = capsys.readouterr()
    assert err == ""
    error = json.loads(out)["error"]
    assert error["type"] == "UsageError" and error["exit_code"] == 2 and part in error["message"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"edgevlm {__version__}\n"


def test_spelling_of_options() -> None:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for parser in subparsers.choices.values():
        for action in parser._actions:
            assert all(name == name.lower() and "_" not in name for name in action.option_strings)


@pytest.mark.parametrize(
    ("text", "value"), [("800", 800), ("1500M", 1500 * 2**20), ("2g", 2**31), ("1.5GiB", 3 * 2**29), ("64kb", 2**16)]
)
def test_size(text: str, value: int) -> None:
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["", "M", "-1G", "0", "infG", "nan", "2T"])
def test_size_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size_bytes(text)


def test_number_bounds() -> None:
    assert number(float, 0, 1)("1") == 1.0
    with pytest.raises(argparse.ArgumentTypeError, match=r"an integer from 1 to 4, found '2\.5'"):
        number(int, 1, 4)("2.5")
