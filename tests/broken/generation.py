"""Generation defaults without a meaning: `make(tmp_path)` returns the command line that meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import PackageError
from tests.broken import BrokenCase


def _checkpoint(text: str) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm export` on a checkpoint whose generation_config.json is `text`."""

    def make(tmp_path: Path) -> list[Any]:
        from tests.tiny import make_llama

        checkpoint = make_llama(tmp_path / "checkpoint")
        (checkpoint / "generation_config.json").write_text(text)
        return ["export", checkpoint, "-o", tmp_path / "out"]

    return make


def _package(number: str, **generation: float) -> Callable[[Path], list[Any]]:
    """Returns a maker of `edgevlm run` on a package whose manifest says so; 123.5 stands as `number` there."""

    def make(tmp_path: Path) -> list[Any]:
        from tests.edgevlm.tiny_package import write_package

        manifest = write_package(tmp_path / "package") / "edgevlm.json"
        content = json.loads(manifest.read_text())
        content["generation"] |= generation
        manifest.write_text(json.dumps(content).replace("123.5", number))
        return ["run", tmp_path / "package", "Hello"]

    return make


def _fields(**fields: Any) -> Callable[[Path], list[Any]]:
    return _checkpoint(json.dumps(fields))


_ROWS: tuple[tuple[str, Callable[[Path], list[Any]], str], ...] = (
    ("temperature of NaN", _fields(temperature=float("nan")), "temperature must be a finite number, found nan"),
    ("temperature beyond all floats", _checkpoint('{"temperature": 1e999}'), "temperature must be a finite"),
    ("temperature below 0", _fields(temperature=-0.5), "temperature is -0.5"),
    ("temperature as a word", _fields(temperature="hot"), "temperature must be a finite number"),
    ("top_k of half a token", _fields(top_k=0.5), "top_k must be an integer"),
    ("top_k as a list", _fields(top_k=[50]), "top_k must be a finite number"),
    ("top_p below 0", _fields(top_p=-0.1), "top_p is -0.1"),
    ("top_p of NaN", _fields(top_p=float("nan")), "top_p must be a finite number"),
    ("min_p above 1", _fields(min_p=2), "min_p is 2"),
    ("repetition_penalty of 0", _fields(repetition_penalty=0), "repetition_penalty is 0"),
    ("repetition_penalty without end", _checkpoint('{"repetition_penalty": 1e999}'), "repetition_penalty must be a"),
    ("do_sample as a word", _fields(do_sample="yes"), "do_sample must be true or false"),
    ("eos_token_id as nested lists", _fields(eos_token_id=[[1, 2]]), "eos_token_id must be an integer"),
    ("eos_token_id as a text", _fields(eos_token_id="</s>"), "eos_token_id must be an integer"),
    ("bos_token_id as a text", _fields(bos_token_id="<s>"), "bos_token_id must be an integer"),
    ("pad_token_id of half a token", _fields(pad_token_id=0.5), "pad_token_id must be an integer"),
    ("generation defaults as a list", _checkpoint("[]"), "must hold a JSON object"),
    ("a package's temperature of NaN", _package("NaN", temperature=123.5), "NaN is not a number"),
    ("a package's temperature without end", _package("1e999", temperature=123.5), "1e999 is too large for a number"),
    ("a package's top_p below 0", _package("-1.0", top_p=123.5), "generation.top_p is -1"),
    ("a package's min_p above 1", _package("3", min_p=123.5), "generation.min_p is 3"),
    ("a package's repetition_penalty of 0", _package("0", repetition_penalty=123.5), "generation.repetition_penalty"),
)

CASES = [BrokenCase(name, make, PackageError, fragment) for name, make, fragment in _ROWS]
