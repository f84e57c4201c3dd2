"""File names as people give them: typed, dragged into a terminal (quoted or escaped), or copied as a file:// URL."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from edgevlm.errors import UsageError

_URL = re.compile(r"file:/|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)?$", re.IGNORECASE | re.DOTALL)


def input_path(text: str) -> Path:
    """Returns the file that `text` names for reading.

    A name that exists as it stands is meant. Otherwise a file:// URL is decoded, ~ is the home, and quotes and
    backslashes are those of a shell. Raises UsageError for a URL of another kind.
    """
    literal = _at_home(text)
    if os.path.lexists(literal):
        return Path(literal)
    if _URL.match(text):
        return _of_url(text)
    unquoted = _unquoted(text)
    if unquoted is None:
        return Path(literal)
    if _URL.match(unquoted):
        return _of_url(unquoted)
    found = _at_home(unquoted)
    return Path(found) if text[:1] in "'\"" or os.path.lexists(found) else Path(literal)


def output_path(text: str) -> Path:
    """Returns the file that `text` names for writing: as it stands, but for ~ and file:// URLs."""
    path = _of_url(text) if _URL.match(text) else Path(_at_home(text))
    if "\0" in str(path):
        raise UsageError(f"{text!r}: a file's name has no zero byte")
    return path


def input_file(text: str) -> Path:
    """`input_path` as the type of an argument."""
    return _argument(input_path, text)


def output_file(text: str) -> Path:
    """`output_path` as the type of an argument."""
    return _argument(output_path, text)


def source_argument(text: str) -> str:
    """A checkpoint's place or Hub id: only a file:// URL and ~ are read in another way than as they stand."""
    return str(_argument(output_path, text)) if text.startswith(("file:", "~")) else text


def _argument(kind: Callable[[str], Path], text: str) -> Path:
    try:
        return kind(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_home(text: str) -> str:
    """Returns `text` with ~ as the home; that of an unknown user stays as it is."""
    return text if "\0" in text else os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises there


def _of_url(text: str) -> Path:
    # ? and # belong to the name: not every program that makes such a URL escapes them
    parts = _FILE_URL.match(text)
    if parts is None:
        raise UsageError(f"{text}: only files are read, nothing is fetched; download it and give the file")
    if parts["host"] not in (None, "", "localhost"):
        raise UsageError(f"{text}: this file is on {parts['host']}; give one of this machine, such as file:///home/me/a.png")
    return Path(unquote(parts["path"] or "/", errors="surrogateescape"))


def _unquoted(text: str) -> str | None:
    """Returns the one word that a shell makes of `text`; None when there are several or a quote is open."""
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    return words[0] if len(words) == 1 else None
