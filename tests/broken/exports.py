"""Checkpoints that cannot become packages: they open, but `export` must refuse them before it builds weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edgevlm.errors import PackageError, UnsupportedModelError
from tests import tiny
from tests.broken import BrokenCase
from tests.broken.checkpoints import LFS, PAGE

TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"


def _made(change: Callable[[Path], object], make: Callable[[Path], Path] = tiny.make_llama) -> Callable[[Path], Path]:
    """Returns a maker of a sound tiny checkpoint, but for what `change` does to its directory."""

    def made(tmp_path: Path) -> Path:
        path = make(tmp_path / "checkpoint")
        change(path)
        return path

    return made


def _without(*others: str) -> Callable[[Path], object]:
    """Removes tokenizer.json and puts files of older tokenizers in its place."""

    def change(path: Path) -> None:
        (path / TOKENIZER).unlink()
        for name in others:
            (path / name).write_text("{}")

    return change


def _json(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Edits tokenizer.json."""

    def change(path: Path) -> None:
        tokenizer = json.loads((path / TOKENIZER).read_text())
        edit(tokenizer)
        (path / TOKENIZER).write_text(json.dumps(tokenizer))

    return change


def _tensors(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Edits the weights."""

    def change(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        edit(tensors)
        save_file(tensors, path / WEIGHTS)

    return change


def _no_image_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["content"] != "<image>"]


UP = "model.layers.1.mlp.up_proj.weight"

CASES = [
    BrokenCase(
        "no tokenizer at all", _made(_without()), PackageError, "copy it from the model that this one was trained"
    ),
    BrokenCase(
        "only tokenizer.model",
        _made(_without("tokenizer.model")),
        PackageError,
        "it has tokenizer.model, the slow form",
    ),
    BrokenCase(
        "only vocab.json and merges.txt",
        _made(_without("vocab.json", "merges.txt")),
        PackageError,
        "it has vocab.json and merges.txt, the slow form",
    ),
    BrokenCase(
        "tokenizer.json is a server's error",
        _made(lambda path: (path / TOKENIZER).write_text('{"error": "Invalid credentials"}')),
        PackageError,
        "is JSON, but no tokenizer",
    ),
    BrokenCase(
        "tokenizer.json with a merge of absent tokens",
        _made(_json(lambda tokenizer: tokenizer["model"]["merges"].append(["absent", "pieces"]))),
        PackageError,
        "no tokenizer can be made of tokenizer.json",
    ),
    BrokenCase(
        "tokenizer.json of a larger model",
        _made(_json(lambda tokenizer: tokenizer["model"]["vocab"].update({"far away": 100_000}))),
        PackageError,
        "gives 'far away' the id 100,000, but the model has",
    ),
    BrokenCase(
        "tokenizer.json without the image token",
        _made(_json(_no_image_token), tiny.make_smolvlm),
        PackageError,
        "tokenizer.json does not have it",
    ),
    BrokenCase(
        "a chat template that is a Git LFS pointer",
        _made(lambda path: (path / "chat_template.jinja").write_bytes(LFS)),
        PackageError,
        "chat_template.jinja is not a template, but a Git LFS pointer",
    ),
    BrokenCase(
        "a chat template that is a web page",
        _made(lambda path: (path / "chat_template.jinja").write_bytes(PAGE)),
        PackageError,
        "chat_template.jinja is not a template, but a web page (HTML)",
    ),
    BrokenCase(
        "a chat template that is not text",
        _made(lambda path: (path / "chat_template.jinja").write_bytes(b"{{ \xff }}")),
        PackageError,
        "chat_template.jinja is not UTF-8 text",
    ),
    BrokenCase(
        "a layer without one of its weights",
        _made(_tensors(lambda tensors: tensors.pop(UP))),
        UnsupportedModelError,
        f"has no tensor '{UP}'",
    ),
    BrokenCase(
        "a weight of another size",
        _made(_tensors(lambda tensors: tensors.update({UP: np.ones((8, 8), np.float32)}))),
        UnsupportedModelError,
        "has the shape [8, 8], config.json implies",
    ),
    BrokenCase(
        "a tensor that the architecture does not have",
        _made(
            _tensors(
                lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)})
            )
        ),
        UnsupportedModelError,
        "holds 1 tensor(s): 'model.layers.0.self_attn.q_norm.weight'",
    ),
]
