"""Commands that cannot be carried out: `make(tmp_path)` returns the command line, files already in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import BackendError, ContextFullError, EdgeVLMError, ImageError, PackageError, UsageError
from tests.broken import BrokenCase


def _package(tmp_path: Path, vision: bool = True) -> Path:
    from tests.edgevlm.tiny_package import write_package

    return write_package(tmp_path / "package", vision=vision)


def _picture(tmp_path: Path, height_px: int = 40, width_px: int = 40) -> Path:
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.new("RGB", (width_px, height_px), (200, 30, 30)).save(path)
    return path


def _run(*words: Any, vision: bool = True) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm run` on a sound package; a function among the words is called with tmp_path."""

    def make(tmp_path: Path) -> list[Any]:
        package = _package(tmp_path, vision)
        return ["run", package, *(word(tmp_path) if callable(word) else word for word in words)]

    return make


def _words(*words: str) -> Callable[[Path], list[Any]]:
    return lambda tmp_path: list(words)


def _words_of(command: str, *words: str) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm COMMAND` on a sound package."""
    return lambda tmp_path: [command, _package(tmp_path, True), *words]


def _text(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return make


def _eval(*words: str, damaged: bool = False, vision: bool = True) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm eval` on a sound package and a small set, whose picture was changed if `damaged`."""

    def make(tmp_path: Path) -> list[Any]:
        from tests.edgevlm.question_sets import questions, write_set

        directory = write_set(tmp_path / "set", questions())
        if damaged:
            (directory / "wide.png").write_bytes((directory / "small.png").read_bytes())
        return ["eval", _package(tmp_path, vision), "--set", directory, *words]

    return make


_PICTURE = ("--image", _picture)

_ROWS: tuple[tuple[str, Callable[[Path], list[Any]], type[EdgeVLMError], str], ...] = (
    ("no command", _words(), UsageError, "COMMAND"),
    ("an unknown command", _words("serve"), UsageError, "invalid choice: 'serve'"),
    ("a missing argument", _words("run", "package"), UsageError, "PROMPT"),
    ("an abbreviated option", _words("run", "package", "Hello", "--temp", "1"), UsageError, "--temp"),
    ("top-p above 1", _words("run", "package", "Hello", "--top-p", "1.5"), UsageError, "from 0 to 1"),
    ("temperature is not a number", _words("run", "package", "Hello", "--temperature", "hot"), UsageError, "'hot'"),
    ("temperature of 1e-9", _run("Hello", "--temperature", "1e-9"), UsageError, "temperature"),
    ("no new tokens", _words("run", "package", "Hello", "--max-new-tokens", "0"), UsageError, "at least 1"),
    ("a memory size without meaning", _words("run", "p", "Hello", "--memory-budget", "lots"), UsageError, "2G"),
    ("an override without a scheme", _words("export", "model", "--override", "lm_head"), UsageError, "PATTERN=SCHEME"),
    ("two tilings", _words("tiles", "x.png", "--package", "p", "--scheme", "relaxed"), UsageError, "not allowed"),
    ("an empty prompt", _run(" \n"), UsageError, "the prompt is empty"),
    ("an empty stop text", _run("Hello", "--stop", ""), UsageError, "stop"),
    ("an unknown backend", _run("Hello", "--backend", "gpu"), UsageError, "expected one of"),
    ("a context beyond the model's", _run("Hello", "--context", "100000"), UsageError, "context"),
    ("no such package", _words("run", "nothing", "Hello"), PackageError, "no such package"),
    ("a picture for a language model", _run("Hello", *_PICTURE, vision=False), UsageError, "takes no pictures"),
    ("no such picture", _run("Hello", "--image", "none.png"), ImageError, "does not exist"),
    ("a text instead of a picture", _run("Hi", "--image", _text("a.txt", b"hello")), ImageError, "a.txt"),
    ("a prompt longer than the context", _run("word " * 400), ContextFullError, "the context is 512"),
    ("150 pictures", _run("Hello", *_PICTURE * 150), ContextFullError, "image tokens"),
    ("a question set that was changed", _eval(damaged=True), UsageError, "digest"),
    ("a folder that is no question set", _eval("--set", "."), UsageError, "set.json"),
    ("questions for a language model", _eval(vision=False), UsageError, "takes no pictures"),
    ("a tiling that there is not", _eval("--tiling", "mosaic"), UsageError, "fixed:RxC"),
    ("a comparison with no results", _eval("--against", "none.json"), UsageError, "none.json"),
    ("more threads than CPUs", _run("Hello", "--threads", "100000"), UsageError, "the CPUs of this machine"),
    ("more threads than a number holds", _run("Hello", "--threads", "9" * 20), UsageError, "threads is 9999"),
    ("no threads", _words("run", "package", "Hello", "--threads", "0"), UsageError, "at least 1"),
    ("more threads than CPUs, in chat", _words_of("chat", "--threads", "100000"), UsageError, "the CPUs of"),
    ("more threads than CPUs, for questions", _eval("--threads", "100000"), UsageError, "the CPUs of this machine"),
    ("more threads than CPUs, to measure", _words_of("bench", "--threads", "100000"), UsageError, "the CPUs of"),
    ("top-k below 0", _run("Hello", "--top-k", "-1"), UsageError, "0"),
    ("a repetition penalty of 0", _run("Hello", "--repetition-penalty", "0"), UsageError, "repetition"),
    ("a seed below 0", _run("Hello", "--seed", "-1"), UsageError, "seed"),
    ("not enough memory allowed", _run("Hello", "--memory-budget", "1M"), BackendError, "1"),
)

CASES = [BrokenCase(name, make, error, fragment) for name, make, error, fragment in _ROWS]
