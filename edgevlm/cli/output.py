"""What the command line prints: answers and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgevlm.errors import BackendError

if TYPE_CHECKING:
    from edgevlm.spec import ParityEntry


def drop(stream: IO[str]) -> None:
    """Sends the rest of a stream nowhere: the interpreter flushes it once more on exit and must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class OutputError(BackendError):
    """stdout takes no more: its disk is full."""


def answer(text: str, end: str = "\n") -> None:
    """Prints a part of the answer at once. Raises OutputError when it cannot be written."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror})") from None


def json_object(value: dict[str, Any]) -> None:
    """Prints the one JSON object of `--json`."""
    answer(json.dumps(value, ensure_ascii=False, indent=2))


def note(text: str = "", end: str = "\n") -> None:
    """Prints a line beside the answer, where it can be."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):  # told by who writes there
            sys.stdout.flush()  # what was said before comes first
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def printable(text: str) -> str:
    """Returns `text` with control characters, which a hostile file can put into a message, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as text in columns; the first row is the heading, numbers stand on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell == "" or cell.lstrip("-+")[:1].isdigit()


def size(n_bytes: int) -> str:
    """Returns a size as '123.4 MB' or '56.7 kB' (powers of ten)."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def shown_path(path: Path) -> str:
    """Returns `path` relative to the working directory when it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def counted(n: int, noun: str) -> str:
    """Returns '1 tile', '2 tiles'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def parity_table(entries: Sequence[ParityEntry]) -> str:
    """Returns the numbers of the checks as a table; below it what is known of failed ones, and what was not run."""
    rows = [("stage", "against", "metric", "value", "bound", "status")]
    remarks: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.status == "unverified":
            remarks.setdefault((f"unverified against {entry.against}", entry.detail), []).append(entry.stage)
            continue
        value, bound = ("" if x is None else f"{x:.6g}" for x in (entry.value, entry.bound))
        rows.append((entry.stage, entry.against, entry.metric, value, bound, entry.status))
        if entry.status == "fail" and entry.detail:
            remarks.setdefault(("failed", entry.detail), []).append(entry.stage)
    parts = [table(rows)] if len(rows) > 1 else []
    for (what, detail), stages in remarks.items():
        named = ", ".join(dict.fromkeys(stages))
        parts.append(f"{what}: {named} ({detail})")
    return "\n".join(parts)
