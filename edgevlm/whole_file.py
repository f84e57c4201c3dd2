"""Small files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from edgevlm.errors import UsageError


def check_writable(path: Path, what: str) -> None:
    """Raises UsageError for a place where a file cannot be written, before the work for it begins."""
    if path.is_dir():
        raise UsageError(f"cannot write {what} to {path}: it is a directory; give the name of a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {what} to {path}: the folder {path.parent} does not exist")
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise UsageError(f"cannot write {what} to {path}: permission denied")


def write_whole(path: Path, data: bytes, what: str) -> None:
    """Writes beside `path` and renames, so that half a file is never taken for a whole one.

    A device or a pipe, which has no place beside it, is written to. Raises UsageError when that is not possible.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    special = _is_special(path)
    scratch = path if special else path.with_name(f".{path.name[:100]}-{os.getpid()}")
    try:
        scratch.write_bytes(data)
        if not special:
            scratch.replace(path)
    except OSError as error:
        if not special:
            scratch.unlink(missing_ok=True)
        raise UsageError(f"cannot write {what} to {path} ({error.strerror})") from None


def _is_special(path: Path) -> bool:
    """Tells whether `path` is a device or the like."""
    return path.exists() and not path.is_file() and not path.is_dir()
