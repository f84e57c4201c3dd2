"""A composed checkpoint: one small JSON that names a vision tower, a projector and a language model in other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from edgevlm.manifest_values import MAX_VOCAB
from edgevlm.strict_json import from_json
from export.checkpoints.gguf_model import open_gguf
from export.checkpoints.low_rank import LowRankUpdated
from export.checkpoints.paths import parse_object, read_bytes, safe_file, safe_join
from export.checkpoints.safetensors_file import SafetensorsFile
from export.checkpoints.snapshot import open_snapshot
from export.checkpoints.source import Contents, TensorInfo, TensorSource

COMPOSED_NAME = "composed.json"


@dataclass(frozen=True)
class ComposedFile:
    """The JSON file; paths are relative to its directory and stay inside it."""

    edgevlm_composed: Literal[1]
    model_type: Literal["bluelm_v"]
    name: str
    vision: str
    """Directory: a Hugging Face snapshot of a vision transformer."""
    projector: str
    """A safetensors file."""
    language: str
    """A GGUF file or a Hugging Face snapshot directory."""
    image_token: str
    tile_px: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    max_tiles: int = 16
    relaxed_alpha: float = 0.1
    scale_factor: int = 2
    """Side of the blocks of patches that become one image token."""
    low_rank: str | None = None
    """A safetensors file of updates to tower and language model (`low_rank.py`), or none."""


class Prefixed:
    """Several sources side by side, each under its own prefix."""

    def __init__(self, parts: Mapping[str, TensorSource]) -> None:
        self._parts = parts
        self._info = {prefix + name: info for prefix, part in parts.items() for name, info in part.tensors().items()}

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of all parts."""
        return self._info

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of one tensor, out of its part."""
        prefix = next(prefix for prefix in self._parts if name.startswith(prefix))
        return self._parts[prefix].read_rows(name.removeprefix(prefix), start, stop)


def open_composed(path: Path) -> Contents:
    """Checks all named files and returns them as one checkpoint of type `bluelm_v`.

    The image token becomes a special token of the tokenizer, with the first id that is free. Raises PackageError for
    an unknown key, a wrong value or a path that leaves the directory.
    """
    try:
        spec = from_json(ComposedFile, parse_object(read_bytes(path), str(path)), path.name)
    except ValueError as error:
        raise PackageError(f"{path} is not a composed checkpoint: {error}.") from None
    _check_values(spec, path)
    directory = path.parent
    vision = open_snapshot(_part(directory, spec.vision, path))
    projector = SafetensorsFile(safe_file(directory, spec.projector, str(path)))
    language_path = _part(directory, spec.language, path)
    language = open_snapshot(language_path) if language_path.is_dir() else open_gguf(language_path)
    files = dict(language.files)
    files.pop("preprocessor_config.json", None)  # how pictures are processed stands in composed.json
    if "tokenizer.json" not in files:
        raise PackageError(
            f"{language_path} has no tokenizer.json, which the image token must be added to; {language.tokenizer_hint}"
        )
    files["tokenizer.json"], image_token_id = add_special_token(
        files["tokenizer.json"], spec.image_token, f"{language_path}: tokenizer.json"
    )
    config = {
        "architectures": ["BlueLMVForConditionalGeneration"],
        "model_type": spec.model_type,
        "vision_config": vision.config,
        "text_config": language.config,
        "image_token": spec.image_token,
        "image_token_id": image_token_id,
        "tile_px": spec.tile_px,
        "max_tiles": spec.max_tiles,
        "relaxed_alpha": spec.relaxed_alpha,
        "scale_factor": spec.scale_factor,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
    }
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    parts = {"vision_tower.": vision.source, "projector.": projector, "language_model.": language.source}
    source: TensorSource = Prefixed(parts)
    if spec.low_rank is not None:
        source = LowRankUpdated(source, safe_file(directory, spec.low_rank, str(path)))
    return Contents(spec.name, config, files, source)


def add_special_token(tokenizer_json: bytes, token: str, where: str) -> tuple[bytes, int]:
    """The tokenizer with `token` as a special token, and its id: the one it has, else the first free one."""
    tokenizer = parse_object(tokenizer_json, where)
    added, model = tokenizer.get("added_tokens"), tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(added, list) or not isinstance(vocab, dict):
        raise PackageError(f"{where} has no 'added_tokens' list or no 'model.vocab' object.")
    for entry in added:
        if not isinstance(entry, dict) or not _is_token_id(entry.get("id")):
            raise PackageError(f"{where} has an entry of 'added_tokens' without a token id.")
        if entry.get("content") == token:
            if not entry.get("special"):
                raise PackageError(f"{where} has {token!r} as an ordinary token, so that it cannot mark images.")
            return tokenizer_json, int(entry["id"])
    if token in vocab:
        raise PackageError(f"{where} has {token!r} as an ordinary token, so that it cannot mark images.")
    if not all(map(_is_token_id, vocab.values())):
        raise PackageError(f"{where} has an entry of 'model.vocab' without a token id.")
    index = 1 + max([*vocab.values(), *(entry["id"] for entry in added)], default=-1)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added.append({"id": index, "content": token, **flags})
    return json.dumps(tokenizer, ensure_ascii=False).encode(), index


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_VOCAB


def _part(directory: Path, relative: str, named_by: Path) -> Path:
    path = safe_join(directory, relative, str(named_by))
    return path if path.is_dir() else safe_file(directory, relative, str(named_by))


def _check_values(spec: ComposedFile, path: Path) -> None:
    wrong = {
        "name": not spec.name or "/" in spec.name or "\\" in spec.name or spec.name.startswith("."),
        "image_token": not spec.image_token.strip(),
        "tile_px": not 1 <= spec.tile_px <= 4096,
        "max_tiles": not 1 <= spec.max_tiles <= 1024,
        "scale_factor": not 1 <= spec.scale_factor <= 8,
        "relaxed_alpha": not 0 <= spec.relaxed_alpha < 1,
        "image_mean": not all(0 <= value <= 1 for value in spec.image_mean),
        "image_std": not all(0 < value <= 1 for value in spec.image_std),
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            raise PackageError(f"{path}: '{field}' has the value {getattr(spec, field)!r}, which is not possible.")
