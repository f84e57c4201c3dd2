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
from tests.broken.processors import PROCESSORS

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

def _tiny(
    name: str, config: dict[str, Any] | None = None, part: str | None = None, **files: Any
) -> Callable[[Path], Path]:
    """Returns a maker of a whole tiny checkpoint with fields of config.json and of other files (a__json) replaced."""

    def make(tmp_path: Path) -> Path:
        from tests.tiny import MAKERS

        path = MAKERS[name](tmp_path / name)
        for file, fields in {"config.json": config or {}, **{f"{k}.json": v for k, v in files.items()}}.items():
            data = json.loads((path / file).read_text())
            (data[part] if part and file == "config.json" else data).update(fields)
            (path / file).write_text(json.dumps(data))
        return path

    return make


def _tokenizer(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Returns a maker of a composed checkpoint of snapshots whose tokenizer.json `edit` changes."""

    def make(tmp_path: Path) -> Path:
        from tests.fuzz.snapshots import composed

        path = composed(tmp_path / "composed")
        tokenizer = json.loads((path / "language/tokenizer.json").read_text())
        edit(tokenizer)
        (path / "language/tokenizer.json").write_text(json.dumps(tokenizer))
        return path

    return make


VALUES = [
    BrokenCase(
        "a layer more than is stored",
        _tiny("llama", {"num_hidden_layers": 3}),
        UnsupportedModelError,
        "num_hidden_layers of the language model is 3 (config.json), but llama stores 2 layers",
    ),
    BrokenCase(
        "a layer less than is stored",
        _tiny("bluelm_v", {"num_hidden_layers": 1}, "vision_config"),
        UnsupportedModelError,
        "num_hidden_layers of the vision tower is 1",
    ),
    BrokenCase(
        "a BOS id of 400 digits",
        _tiny("llama", generation_config={"bos_token_id": 10**400}),
        PackageError,
        "bos_token_id",
    ),
    BrokenCase(
        "an image token beyond the vocabulary",
        _tiny("bluelm_v", {"image_token_id": 5000, "image_token": "<absent>"}),
        PackageError,
        "has the id 5000 in config.json, but tokenizer.json does not have it",
    ),
    BrokenCase(
        "an epsilon that vanishes in float32",
        _tiny("llama", {"rms_norm_eps": 1e-320}),
        PackageError,
        "rms_norm_eps must be at least 1e-30",
    ),
    BrokenCase(
        "a factor that float32 cannot hold",
        _tiny("llama", {"rope_scaling": {"rope_type": "linear", "factor": 1e300}}),
        PackageError,
        "rope_scaling.factor is 1e+300",
    ),
    BrokenCase(
        "composed: an added token without an id",
        _tokenizer(lambda tokenizer: tokenizer["added_tokens"][0].pop("id")),
        PackageError,
        "is not a tokenizer (missing field `id`",
    ),
    BrokenCase(
        "composed: a vocabulary of texts",
        _tokenizer(lambda tokenizer: tokenizer["model"]["vocab"].update(a="b")),
        PackageError,
        "is not a tokenizer (invalid type: string \"b\"",
    ),
]
"""Values that only the whole of a checkpoint shows to be wrong."""

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
        "is not a tokenizer",
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
        "gives '<image>' the id 276, tokenizer.json 314",
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
    *VALUES,
    *PROCESSORS,
]
