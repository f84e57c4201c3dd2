"""A Hugging Face snapshot directory: config.json, safetensors (one file or shards with an index), tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.spec import MANIFEST_NAME
from export.checkpoints.chat_files import named_templates
from export.checkpoints.paths import parse_object, read_bytes, safe_file
from export.checkpoints.safetensors_file import SafetensorsFile
from export.checkpoints.source import TOKENIZER_HINT, Contents, TensorInfo
from export.checkpoints.tokenizer_files import unified

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARRIED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)

TEXT_MODEL_TYPES = ("llama", "qwen2", "idefics3", "smolvlm", "bluelm_v")
"""Types whose tokenizer is used; those of towers are not looked at."""


class Shards:
    """Tensors of several safetensors files under one set of names."""

    def __init__(self, owners: Mapping[str, SafetensorsFile]) -> None:
        self._owners = owners
        self._info = {name: file.tensors()[name] for name, file in owners.items()}

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of all files."""
        return self._info

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of one tensor, out of the file that has it."""
        return self._owners[name].read_rows(name, start, stop)


def open_snapshot(directory: Path) -> Contents:
    """Checks every header in the directory and returns its contents; no tensor data is read.

    Raises PackageError when a file is missing, damaged or outside the directory, UnsupportedModelError when the
    weights are stored in a form that is not read.
    """
    config, files = read_small_files(directory)
    return Contents(snapshot_name(directory), config, files, _open_weights(directory), _tokenizer_hint(directory))


def read_small_files(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The parsed config.json and the files that a package carries; raises as `open_snapshot`."""
    files = {
        name: read_bytes(safe_file(directory, name, str(directory)))
        for name in CARRIED_FILES
        if (directory / name).exists() or (directory / name).is_symlink()
    }
    if "config.json" not in files:
        raise PackageError(
            f"{directory} has no config.json, so it is not a Hugging Face snapshot{_found(directory, _OTHER_FORMS)}."
        )
    for name, content in files.items():
        if name.endswith(".json") and name != "config.json":
            parse_object(content, str(directory / name))
    config = parse_object(files["config.json"], str(directory / "config.json"))
    check_config(config, str(directory / "config.json"))
    if config["model_type"] in TEXT_MODEL_TYPES:
        files = unified(files, config["model_type"], str(directory))
    files |= {name: read_bytes(safe_file(directory, name, str(directory))) for name in named_templates(directory)}
    return config, files


def _tokenizer_hint(directory: Path) -> str:
    """What to do about a tokenizer.json that is not there, by the files of older tokenizers that are."""
    make = "make one with transformers: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
    for names in (("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
        if all((directory / name).is_file() for name in names):
            return f"it has {' and '.join(names)}, the slow form of a tokenizer: {make}"
    return TOKENIZER_HINT


def snapshot_name(directory: Path) -> str:
    """The directory's name, or the repository's when it lies in the Hub's cache (models--org--name/snapshots/…)."""
    real = directory.resolve()
    if real.parent.name == "snapshots":
        return real.parent.parent.name.rpartition("--")[2]
    return real.name


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config without a model_type, and weights that were quantised by another tool."""
    if not isinstance(config.get("model_type"), str):
        if isinstance(config.get("error"), str):
            raise PackageError(f"{where} is a server's answer ({config['error'][:60]!r}). Download the file again.")
        raise PackageError(f"{where} has no 'model_type'.")
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unnamed") if isinstance(quantisation, dict) else "unnamed"
        raise UnsupportedModelError(
            f"{where} states weights quantised with {method!r}; use the model's bf16, fp16 or fp32 release."
        )


def _open_weights(directory: Path) -> Shards:
    if (directory / WEIGHTS).exists() or (directory / WEIGHTS).is_symlink():
        file = SafetensorsFile(safe_file(directory, WEIGHTS, str(directory)))
        return Shards(dict.fromkeys(file.tensors(), file))
    if (directory / INDEX).exists() or (directory / INDEX).is_symlink():
        return _open_shards(directory, safe_file(directory, INDEX, str(directory)))
    found = (
        _found(directory, (*_OTHER_FORMS, *_OTHER_WEIGHTS))
        or ": it has no safetensors file (a GGUF file is given by its own path)"
    )
    raise PackageError(f"{directory} has no weights that can be read ({WEIGHTS} or {INDEX}){found}.")


_OTHER_FORMS: tuple[tuple[str, str], ...] = (
    ("*.gguf", "it holds {0!r}; give that file itself"),
    (MANIFEST_NAME, "it is an exported package already"),
    ("adapter_config.json", "it holds an adapter (LoRA) without its model; merge it into the base model and save that"),
    ("consolidated*.safetensors", "{0!r} has Mistral's own names; take the release for transformers"),
    ("consolidated*.pth", "{0!r} has Meta's own names; take the release for transformers"),
    ("snapshots", "it is a repository in the Hub's cache; give the directory under 'snapshots'"),
)
_OTHER_WEIGHTS: tuple[tuple[str, str], ...] = (
    ("*-?????-of-?????.safetensors", f"it has {{0!r}}, but no {INDEX}, which says where each tensor is"),
    ("*.safetensors", f"it has {{0!r}}, but no {INDEX}; name the file {WEIGHTS} if it is the whole model"),
    ("*.bin", "{0!r} is a pickle, which runs code when it is read; convert it to safetensors"),
    ("*.pt", "{0!r} is a pickle, which runs code when it is read; convert it to safetensors"),
    ("*.pth", "{0!r} is a pickle, which runs code when it is read; convert it to safetensors"),
    ("*.h5", "{0!r} is for Keras; convert it to safetensors"),
    ("*.msgpack", "{0!r} is for Flax; convert it to safetensors"),
    ("*.onnx", "{0!r} is an exported graph; give the checkpoint that it was made from"),
)
"""(pattern of names, what to say of the first such file); the first pattern that a directory has is told."""


def _found(directory: Path, others: tuple[tuple[str, str], ...]) -> str:
    """What the directory has instead of a snapshot's files, as the end of a sentence; empty when it has none of it."""
    for pattern, text in others:
        names = sorted((path.name for path in directory.glob(pattern)), key=lambda name: ("mmproj" in name, name))
        if names:
            return ": " + text.format(names[0])
    return ""


def _open_shards(directory: Path, index_path: Path) -> Shards:
    weight_map = parse_object(read_bytes(index_path), str(index_path)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise PackageError(f"{index_path} must have a 'weight_map' from tensor names to file names.")
    if not weight_map:
        raise PackageError(f"{index_path} names no tensor at all.")
    files = {shard: safe_file(directory, shard, str(index_path)) for shard in sorted(set(weight_map.values()))}
    opened = {shard: SafetensorsFile(path) for shard, path in files.items()}
    for name, shard in weight_map.items():
        if name not in opened[shard].tensors():
            raise PackageError(f"{index_path} says that tensor {name!r} is in {shard}, but it is not there.")
    for shard, file in opened.items():
        for name in file.tensors():
            if weight_map.get(name) != shard:
                raise PackageError(
                    f"{directory / shard} holds tensor {name!r}, which {index_path.name} does not place there."
                )
    return Shards({name: opened[shard] for name, shard in weight_map.items()})
