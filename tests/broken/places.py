"""Places that cannot be read or written: `make(tmp_path)` returns the command line, files already in place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, ImageError, UsageError
from tests.broken import BrokenCase

_LOCKS: list[int] = []
"""Descriptors of what another edgevlm would hold."""


def _package(tmp_path: Path) -> Path:
    from tests.edgevlm.tiny_package import write_package

    return write_package(tmp_path / "package")


def _picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _on_package(command: str, *words: Any) -> Callable[[Path], list[Any]]:
    """Returns a maker of `command` on a sound package; a function among the words is called with tmp_path."""

    def make(tmp_path: Path) -> list[Any]:
        return [command, _package(tmp_path), *(word(tmp_path) if callable(word) else word for word in words)]

    return make


def _tiles(*words: str) -> Callable[[Path], list[Any]]:
    return lambda tmp_path: ["tiles", _picture(tmp_path), *words]


def _directory(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory"


def _export(prepare: Callable[[Path], object], *words: str) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm export` to `out`, beside which `prepare` has made something."""

    def make(tmp_path: Path) -> list[Any]:
        from tests.tiny import make_llama

        prepare(tmp_path)
        return ["export", make_llama(tmp_path / "checkpoint"), "-o", tmp_path / "out", *words]

    return make


def _held(directory: Path) -> None:
    _LOCKS.append(os.open(directory, os.O_RDONLY))
    fcntl.flock(_LOCKS[-1], fcntl.LOCK_EX)


def _another_export(tmp_path: Path) -> None:
    (tmp_path / ".out.0a1b2c3d.partial").mkdir()
    _held(tmp_path / ".out.0a1b2c3d.partial")


def _compiled_meanwhile(tmp_path: Path) -> None:
    _package(tmp_path).rename(tmp_path / "out")
    _held(tmp_path / "out")


def _held_package(*words: str) -> Callable[[Path], list[Any]]:
    def make(tmp_path: Path) -> list[Any]:
        _held(_package(tmp_path))
        return ["compile", tmp_path / "package", *words]

    return make


def _asked(*words: Any) -> Callable[[Path], list[Any]]:
    """`run` with a short answer."""
    return _on_package("run", "Hi", "--max-new-tokens", "1", *words)


def _copied(place: Any) -> Callable[[Path], list[Any]]:
    return _on_package("compile", "--device-only", place)


def _a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")


_ROWS: tuple[tuple[str, Callable[[Path], list[Any]], type[EdgeVLMError], str], ...] = (
    ("a picture on the web", _asked("--image", "https://example.org/a.png"), UsageError, "download it"),
    ("a picture on another machine", _asked("--image", "file://server/red.png"), UsageError, "is on server"),
    ("a picture that a URL does not find", _asked("--image", "file:///no%20such.png"), ImageError, "/no such"),
    ("a quoted picture that is not there", _asked("--image", "'none.png'"), ImageError, "'none.png'"),
    ("a folder as a picture", _asked("--image", _directory), ImageError, "is not a file"),
    ("a package on the web", lambda tmp_path: ["inspect", "https://example.org/package"], UsageError, "download it"),
    ("a prompt that is no text", _on_package("run", "caf\udce9"), UsageError, "byte 0xe9"),
    ("a stop text that is no text", _asked("--stop", "caf\udce9"), UsageError, "byte 0xe9"),
    ("a system message that is no text", _on_package("chat", "--system", "\udcff"), UsageError, "byte 0xff"),
    ("a trace in no folder", _asked("--trace", "none/t.json"), UsageError, "does not exist"),
    ("a trace in place of a folder", _asked("--trace", _directory), UsageError, "is a directory"),
    ("a chat's trace in no folder", _on_package("chat", "--trace", "none/t.json"), UsageError, "does not exist"),
    ("a drawing in no folder", _tiles("-o", "none/grid.png"), UsageError, "does not exist"),
    ("a drawing in place of a folder", _tiles("-o", "."), UsageError, "is a directory"),
    ("a drawing to a full disk", _tiles("-o", "/dev/full"), UsageError, "No space left"),
    ("a trace to a full disk", _asked("--trace", "/dev/full"), UsageError, "No space"),
    ("results in place of a folder", _on_package("eval", "--set", "s", "--out", "."), UsageError, "is a directory"),
    ("a plot without kernels", _on_package("bench", "--plot", "roof.png"), UsageError, "no kernels to draw"),
    ("a plot in no folder", _on_package("bench", "--plot", "none/roof.png"), UsageError, "does not exist"),
    ("an export over a file", _export(_a_file), UsageError, "not a directory"),
    ("an export beside another", _export(_another_export), UsageError, "another edgevlm is exporting"),
    ("a forced export beside another", _export(_another_export, "--force"), UsageError, "another edgevlm is exporting"),
    ("a forced export over what is compiled", _export(_compiled_meanwhile, "--force"), UsageError, "is changing"),
    ("a compilation beside another", _held_package(), UsageError, "another edgevlm is changing"),
    ("a device's copy of what is compiled", _held_package("--device-only", "copy"), UsageError, "is changing"),
    ("a device's copy in no folder", _copied("none/copy"), UsageError, "does not exist"),
    ("a device's copy over a folder", _copied(_directory), UsageError, "exists"),
)  # fmt: skip

CASES = [BrokenCase(name, make, error, fragment) for name, make, error, fragment in _ROWS]
