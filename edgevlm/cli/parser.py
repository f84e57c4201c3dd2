"""The argument parser: one for the program, one per subcommand, all failing with UsageError."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeAlias, cast

from edgevlm import __version__
from edgevlm.errors import UsageError

COMMANDS = ("export", "compile", "run", "chat", "tiles", "inspect", "verify", "eval", "bench", "tune", "android")
"""Subcommands in the order of the help; each is the module `edgevlm.cli.<name>`."""


class Command(Protocol):
    """What a subcommand's module holds."""

    JSON_FIELDS: Mapping[str, str]
    """Keys of the object printed with --json, and what each means."""

    def add_parser(self, subparsers: Subparsers) -> argparse.ArgumentParser:
        """Declares the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are raised."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}. '{self.prog} --help' lists the arguments.")


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse gives the type no public name


def command_module(name: str) -> Command:
    """Returns the module of subcommand `name`."""
    return cast(Command, importlib.import_module(f"edgevlm.cli.{name}"))


def build_parser() -> Parser:
    """Returns the parser of the whole program."""
    parser = Parser(
        prog="edgevlm",
        description="Export vision-language models to small packages and run them offline.",
    )
    parser.add_argument("--version", action="version", version=f"edgevlm {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        module = command_module(name)
        added = module.add_parser(subparsers)
        added.add_argument("--json", action="store_true", help="print one JSON object on stdout, errors too")
        added.add_argument("--debug", action="store_true", help="show log messages, and the traceback of an error")
        added.set_defaults(run=module.run)
    return parser


def number(kind: type[int] | type[float], low: float, high: float | None = None) -> Callable[[str], float | int]:
    """Returns an argparse type for a number of at least `low` and at most `high`."""
    bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
    word = "an integer" if kind is int else "a number"

    def convert(text: str) -> float | int:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {word} {bounds}, found {text!r}") from None
        if not value >= low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {word} {bounds}, found {text}")
        return value

    return convert


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def size_bytes(text: str) -> int:
    """Parses a memory size such as 1500M, 2G or 800000000 (bytes)."""
    cleaned = text.upper().removesuffix("B").removesuffix("I")
    unit = cleaned[-1:] if cleaned[-1:].isalpha() else ""
    try:
        value = float(cleaned.removesuffix(unit)) * _UNITS[unit]
        if not 0 < value < float("inf"):
            raise ValueError(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected a size such as 1500M or 2G, found {text!r}") from None
    return int(value)
