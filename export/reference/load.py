"""Opens any checkpoint in transformers: which loader for which model type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from export.checkpoints.hub import hub_snapshot
from export.reference.bluelm_v import load_bluelm_v, load_composed
from export.reference.idefics3 import load_idefics3
from export.reference.language import load_gguf, load_language
from export.reference.model import Parts, Reference
from export.reference.towers import load_dinov2, load_siglip


def load_reference(source: str | Path, *, chat_template: str | None = None, tie_embeddings: bool = False) -> Reference:
    """Loads a snapshot directory, a GGUF file, a composed checkpoint or a Hub id `org/name[@revision]`.

    `chat_template` replaces the checkpoint's own; `tie_embeddings` lets the embedding be the head's table.

    Raises:
        PackageError: `source` is a local path without a config.
        UnsupportedModelError: no reference is known for the model type.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parts = _load(source)
    if chat_template is not None and parts.tokenizer is not None:
        parts.tokenizer.chat_template = chat_template
    if tie_embeddings and parts.language is not None:
        parts.language.set_input_embeddings(_embedding_of(parts.language.get_output_embeddings()))
    return Reference(parts)


def _embedding_of(head: Any) -> Any:
    import torch

    return torch.nn.Embedding.from_pretrained(head.weight.data, freeze=True)


def _load(source: str | Path) -> Parts:
    path = Path(source)
    if path.suffix == ".gguf":
        return load_gguf(path)
    if path.is_dir() and (path / "composed.json").is_file() and not (path / "config.json").is_file():
        path = path / "composed.json"
    if path.suffix == ".json" and path.is_file():
        return load_composed(path)
    if not path.is_dir():
        path = _downloaded(str(source))
    if not (path / "config.json").is_file():
        raise PackageError(f"no config.json in {path.name}: not a Hugging Face snapshot.")
    config = json.loads((path / "config.json").read_text())
    model_type = str(config.get("model_type", ""))
    if model_type not in _LOADERS:
        raise UnsupportedModelError(
            f"no transformers reference for model type '{model_type}'; known: {', '.join(sorted(_LOADERS))}."
        )
    return _LOADERS[model_type](path, config)


def _downloaded(source: str) -> Path:
    """The snapshot of a Hub id that opening the checkpoint has downloaded."""
    name, _, revision = source.partition("@")
    return hub_snapshot(name, revision or None, cached_only=True)


_LOADERS: dict[str, Callable[[Path, Mapping[str, Any]], Parts]] = {
    "llama": load_language,
    "qwen2": load_language,
    "dinov2": load_dinov2,
    "siglip": load_siglip,
    "siglip_vision_model": load_siglip,
    "idefics3": load_idefics3,
    "smolvlm": load_idefics3,
    "bluelm_v": load_bluelm_v,
}
