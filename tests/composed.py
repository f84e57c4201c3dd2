"""A small composed checkpoint in files: tower, projector and a GGUF language model of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.safetensors_bytes import file_of
from tests.tiny_gguf import write_model

SPEC = {
    "edgevlm_composed": 1,
    "model_type": "bluelm_v",
    "name": "tiny-composed",
    "vision": "tower",
    "projector": "projector.safetensors",
    "language": "language.gguf",
    "image_token": "<image>",
    "tile_px": 28,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
    "max_tiles": 4,
    "relaxed_alpha": 0.2,
}


def write_composed(path: Path, **fields: Any) -> Path:
    """Writes the directory and returns it; `fields` replace those of composed.json."""
    (path / "tower").mkdir(parents=True)
    (path / "tower" / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 8}))
    (path / "tower" / "model.safetensors").write_bytes(
        file_of({"embeddings.cls_token": np.ones((1, 1, 8), np.float32)})
    )
    (path / "projector.safetensors").write_bytes(file_of({"mlp.0.weight": np.eye(8, dtype=np.float32)}))
    write_model(path / "language.gguf")
    (path / "composed.json").write_text(json.dumps({**SPEC, **fields}))
    return path
