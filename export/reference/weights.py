"""Weights of a snapshot as a torch model in fp32, with one copy of them in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import PackageError

INDEX = "model.safetensors.index.json"


def load_model(model_class: Any, source: Path) -> Any:
    """Returns the model of a snapshot directory in fp32, ready to run."""
    return model_from_tensors(model_class, load_config(model_class, source), read_snapshot(source))


def load_config(model_class: Any, source: Path) -> Any:
    """Returns the config of a snapshot directory."""
    return model_class.config_class.from_pretrained(source)


def read_snapshot(source: Path) -> dict[str, Any]:
    """Returns all tensors of a snapshot directory in fp32, under their hub names."""
    return read_tensors(_weight_files(source))


def read_tensors(files: list[Path]) -> dict[str, Any]:
    """Returns all tensors of safetensors files in fp32.

    A file is mapped anew for each tensor: pages of a mapping stay in memory as long as it does, and the whole file
    beside its fp32 copy is 0.5 GB more for SmolVLM-256M.
    """
    from safetensors import safe_open

    tensors: dict[str, Any] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
                tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def model_from_tensors(model_class: Any, config: Any, tensors: Mapping[str, Any]) -> Any:
    """Builds a model from tensors under their hub names; every one must find its place."""
    import torch

    model, info = model_class.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
    )
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    if wrong:
        raise PackageError(f"tensors do not match {model_class.__name__}: {', '.join(map(str, wrong[:4]))}.")
    return model.eval()


def _weight_files(source: Path) -> list[Path]:
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        return [source / name for name in sorted(set(index["weight_map"].values()))]
    return [source / "model.safetensors"]
