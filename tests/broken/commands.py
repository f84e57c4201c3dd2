"""Commands that cannot be carried out: `make(tmp_path)` returns the command line, files already in place."""

from __future__ import annotations

import json
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


def _edited(file: str, old: str, new: str) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm eval` on a small set, in one of whose files a text is replaced."""

    def make(tmp_path: Path) -> list[Any]:
        words = _eval()(tmp_path)
        path = tmp_path / "set" / file
        path.write_text(path.read_text().replace(old, new), encoding="utf-8")
        return words

    return make


def _results(text: bytes) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm eval --against` a file of these bytes."""

    def make(tmp_path: Path) -> list[Any]:
        (tmp_path / "there.json").write_bytes(text)
        return _eval("--against", "there.json")(tmp_path)

    return make


def _tokenizer(**fields: Any) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm run` on a package without a template, whose tokenizer.json has other fields."""

    def make(tmp_path: Path) -> list[Any]:
        from edgevlm.package import open_package
        from tests.edgevlm.tiny_package import write_manifest

        package = _package(tmp_path, vision=False)
        manifest = open_package(package).manifest
        tokenizer = json.loads((package / "tokenizer.json").read_text())
        (package / "tokenizer.json").write_text(json.dumps({**tokenizer, **fields}))
        (package / "tokenizer_config.json").write_text("{}")
        write_manifest(package, manifest)
        return ["run", package, "Hello"]

    return make


_ABSENT_TOKEN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
"""The library reads it, and would panic at the first text."""
_ABSENT_UNKNOWN = {"type": "WordLevel", "vocab": {"Hi": 0}, "unk_token": "[UNK]"}
"""The library raises at the first word that is not in the vocabulary."""
_LONG_PIECE = {"type": "Unigram", "unk_id": 0, "vocab": [["Hi", 0.0], ["x" * 10**6, -1.0]]}
"""The library would overflow the stack when it frees the vocabulary."""
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
    ("a set card with a key twice", _edited("set.json", '{"name"', '{"name": "x", "name"'), UsageError, "stands twice"),
    ("a set of NaN questions", _edited("set.json", '"n_questions": 6', '"n_questions": NaN'), UsageError, "NaN is not"),
    ("a question with half a character", _edited("questions.jsonl", "kind 1", "\\ud800"), UsageError, "surrogate"),
    ("a picture with a NUL in its name", _edited("questions.jsonl", "wide.png", "\\u0000"), UsageError, "lies outside"),
    ("a question nested without end", _edited("questions.jsonl", '"yes"', "[" * 9999), UsageError, "too deeply"),
    ("results that are not UTF-8", _results(b'{"format": "\xff"}'), UsageError, "no UTF-8 text at byte 12"),
    ("results with a score of 1e999", _results(b'{"format": 1, "score": 1e999}'), UsageError, "too large for a number"),
    ("a tokenizer that adds an absent token", _tokenizer(post_processor=_ABSENT_TOKEN), PackageError, "[X]"),
    ("a token of a million characters", _tokenizer(model=_LONG_PIECE), PackageError, "1,000,000 characters"),
    ("a tokenizer without its unknown token", _tokenizer(model=_ABSENT_UNKNOWN), PackageError, "tokenizer.json"),
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
