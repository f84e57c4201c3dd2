"""A GGUF model in one file or in several: `NAME-00001-of-00003.gguf` and its neighbours, read as one.

The first piece has the metadata, each piece has `split.no` (from 0) and `split.count`, and all of them together have
`split.tensors.count` tensors. Source: llama.cpp b11549, tools/gguf-split and src/llama-model-loader.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgevlm.errors import PackageError
from export.checkpoints.gguf_container import GGUFFile
from export.checkpoints.paths import safe_file

_PIECE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def open_gguf_file(path: Path) -> GGUFFile:
    """The file at `path`, with the tensors of all its pieces where it is one of several; any piece may be given.

    Raises PackageError when a piece is missing, has another number or count than its name says, or is of another model.
    """
    given = GGUFFile(path)
    count = given.integer(_COUNT) or 1
    if count == 1:
        return given
    paths = _paths(given, count)
    pieces = [given if other == path else GGUFFile(safe_file(path.parent, other.name, str(path))) for other in paths]
    for index, piece in enumerate(pieces):
        _check_piece(piece, index, count)
    first = pieces[0]
    for piece in pieces[1:]:
        first.add_tensors(piece)
    stated = first.integer(_TENSORS)
    if stated is not None and stated != len(first.tensors()):
        raise PackageError(
            f"{first.path} states {stated:,} tensors in all pieces ({_TENSORS!r}), but the {count} pieces hold "
            f"{len(first.tensors()):,}; they are not of one model, or a piece is damaged."
        )
    return first


def piece_paths(path: Path) -> list[Path]:
    """The paths of all pieces of the file at `path`, in order: itself where it is not split."""
    given = GGUFFile(path)
    count = given.integer(_COUNT) or 1
    return [path] if count == 1 else _paths(given, count)


def model_name(path: Path) -> str:
    """The name of a GGUF file without its ending, and without a piece's number."""
    match = _PIECE.fullmatch(path.name)
    return match[1] if match else path.stem


def _paths(given: GGUFFile, count: int) -> list[Path]:
    path = given.path
    match = _PIECE.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        expected = f"NAME-{(given.integer(_NUMBER) or 0) + 1:05d}-of-{count:05d}.gguf"
        raise PackageError(
            f"{path} is one of the {count} pieces of a split GGUF file, which are found by their names: expected "
            f"{expected}. Give all pieces the names that they had."
        )
    paths = [path.with_name(f"{match[1]}-{index + 1:05d}-of-{count:05d}.gguf") for index in range(count)]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise PackageError(
            f"{path} is one of the {count} pieces of a split GGUF file, but beside it is no {shown}. Download all "
            "pieces into one directory."
        )
    return paths


def _check_piece(piece: GGUFFile, index: int, count: int) -> None:
    for key, expected in ((_NUMBER, index), (_COUNT, count)):
        found = piece.integer(key)
        if found != expected:
            raise PackageError(
                f"{piece.path} has {key!r} {found}, but its name says {expected}; the pieces are mixed up. Download "
                "them again."
            )
