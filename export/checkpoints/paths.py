"""Which files of a checkpoint directory may be opened, and reading its small ones."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from edgevlm.errors import PackageError
from export.checkpoints.file_kinds import HEAD_BYTES, other_kind

MAX_JSON_BYTES = 256 << 20
"""The largest tokenizer.json files on the Hub have about 35 MB."""


def safe_join(directory: Path, relative: str, named_by: str) -> Path:
    """The path of `relative` in `directory`, which must stay in there after links are followed.

    One layout may lead out of the directory: the Hugging Face cache, where `models--org--name/snapshots/<revision>/`
    holds links to `models--org--name/blobs/`.

    Raises PackageError for an absolute path, a `..`, a backslash, a link that leaves, or a name that is not a file.
    """
    parts = PurePosixPath(relative).parts
    if (
        not relative
        or "\0" in relative
        or "\\" in relative
        or relative.startswith("/")
        or ".." in parts
        or ":" in relative
        or any("\ud800" <= character <= "\udfff" for character in relative)
    ):
        raise PackageError(
            f"{named_by} names the file {relative!r}: only relative paths inside its own directory are read."
        )
    path = directory.joinpath(*parts)
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise PackageError(f"{named_by} needs the file {relative!r}, but {path} does not exist.") from None
    except (OSError, RuntimeError) as error:
        raise PackageError(f"{path} cannot be opened: {error}.") from None
    allowed = [directory.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in allowed):
        raise PackageError(f"{path} is a link to {real}, outside the checkpoint; copy the file in instead.")
    return path


def safe_file(directory: Path, relative: str, named_by: str) -> Path:
    """`safe_join` for a regular file (not a directory, pipe or device)."""
    path = safe_join(directory, relative, named_by)
    if not path.is_file():
        raise PackageError(f"{path} is not a regular file; {named_by} needs one.")
    return path


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The whole file; PackageError when it is larger than `limit` or cannot be read."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise PackageError(f"{path} has {size:,} bytes; at most {limit:,} are read for such a file.")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.") from None


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""As JSON writes half of a character beyond U+FFFF; two halves are a whole."""


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parsed JSON that must be an object; duplicate keys are refused, since readers disagree on which one counts."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _not_json(content, where, error) from None
    except RecursionError:
        raise PackageError(f"{where} is not usable: its JSON is nested too deeply.") from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise PackageError(f"{where} is not usable: {error}.") from None
    except _DuplicateKeyError as error:
        raise PackageError(f"{where} has the key {error.args[0]!r} twice.") from None
    if not isinstance(value, dict):
        raise PackageError(f"{where} must hold a JSON object, found {type(value).__name__}.")
    if _SURROGATE.search(content) and not _is_text(value):
        raise PackageError(f"{where} has half a character (a lone \\ud800 to \\udfff), which is no text.")
    return value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _not_json(content: bytes, where: str, error: UnicodeDecodeError | json.JSONDecodeError) -> PackageError:
    kind = None if content.lstrip().startswith((b"{", b"[")) else other_kind(content[:HEAD_BYTES])
    if kind is not None:
        return PackageError(f"{where} is not JSON, but {kind}.")
    if isinstance(error, UnicodeDecodeError):
        return PackageError(f"{where} is not UTF-8 text (byte {error.start}).")
    return PackageError(f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.")


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return result
