"""The three standard streams as callers leave them: closed, full, or with bytes that are no text."""

from __future__ import annotations

import io
import os
import sys

from edgevlm.errors import UsageError

NO_OUTPUT = "standard output is closed, so there is no place for the answer; give it one, such as >/dev/null"


def open_closed_streams() -> None:
    """Opens /dev/null in place of standard streams that the caller closed.

    Otherwise the next file that is opened gets the number of one, and what a library prints there lands in the file.
    sys.stdin and sys.stdout stay None, so that who needs them can say so; what goes to stderr is nobody's loss.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def prepare_streams() -> None:
    """Lets a stream meet characters that its encoding lacks. Raises UsageError when stdout is closed."""
    if sys.stdout is None:
        raise UsageError(NO_OUTPUT)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know a character of the answer
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # `is_text` finds the bytes that are no text


def is_text(text: str) -> bool:
    """Tells whether `text` came from bytes that are valid in their encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def require_text(text: str, where: str) -> str:
    """Returns `text`. Raises UsageError, naming the first wrong byte, when it came from bytes that are no text."""
    if is_text(text):
        return text
    at = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    byte = ord(text[at]) - 0xDC00
    raise UsageError(
        f"{where} is not {sys.stdin.encoding if where.startswith('standard') else 'UTF-8'} text: byte 0x{byte:02x} "
        f"behind {text[:at][-20:]!r} is none of a character; convert it first, such as with iconv"
    )


def read_all() -> str:
    """Returns standard input. Raises UsageError when it is closed or no text."""
    if sys.stdin is None:
        raise UsageError("standard input is closed, and the prompt '-' is read from it")
    return require_text(sys.stdin.read(), "standard input")
