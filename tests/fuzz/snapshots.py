"""Sound checkpoints to break: those of tests/tiny.py with every optional file, in shards, and composed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.safetensors_bytes import pack

TEMPLATE = "chat_template.jinja"


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns the header of a safetensors file and its data."""
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    return header, content[8 + size :]


def with_header(header: bytes, data: bytes) -> bytes:
    """Returns the file with another header."""
    return pack(header, data)


def llama(path: Path) -> Path:
    """A language model with all the small files that a checkpoint can have."""
    tiny.make_llama(path, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                        "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
                    head_dim=16, attention_bias=False, mlp_bias=False)  # fmt: skip
    _json(path / "special_tokens_map.json", {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    _json(path / "added_tokens.json", {"<|im_end|>": 2, "<|im_start|>": 1})
    _json(path / "chat_template.json", {"chat_template": tiny.CHATML})
    (path / TEMPLATE).unlink()
    _json(
        path / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.7,
         "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.05},
    )  # fmt: skip
    return path


def qwen2(path: Path) -> Path:
    tiny.make_qwen2(path, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0},
                    layer_types=["full_attention", "full_attention"])  # fmt: skip
    return path


def shards(path: Path) -> Path:
    """A language model whose tensors lie in two files with an index."""
    tiny.make_llama(path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, path / file, metadata={"format": "pt"})
    total = sum(value.nbytes for value in tensors.values())
    weight_map = {name: file for file, held in files.items() for name in held}
    _json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return path


def composed(path: Path) -> Path:
    """The parts of a tiny bluelm_v in files of their own, with an update of one weight."""
    whole = tiny.make_bluelm_v(path / "whole")
    config = json.loads((whole / "config.json").read_text())
    tensors = load_file(whole / "model.safetensors")
    shutil.rmtree(whole)
    parts = {"vision_tower.": {}, "projector.": {}, "language_model.": {}}
    for name, value in tensors.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = value
    tiny.write_snapshot(path / "tower", config["vision_config"], parts["vision_tower."], {})
    texts = tiny.text_files(tiny.CHATML)
    tiny.write_snapshot(path / "language", config["text_config"], parts["language_model."], texts)
    save_file(parts["projector."], path / "projector.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    rows, columns = tensors[name].shape
    update = {f"{name}.up": np.full((rows, 2), 0.1, np.float32), f"{name}.down": np.full((2, columns), 0.1, np.float32)}
    save_file(update, path / "low_rank.safetensors")
    spec = {"edgevlm_composed": 1, "model_type": "bluelm_v", "name": "tiny", "vision": "tower", "language": "language",
            "projector": "projector.safetensors", "low_rank": "low_rank.safetensors", "image_token": "<image>",
            "tile_px": 40, "max_tiles": 16, "relaxed_alpha": 0.1, "scale_factor": 2,
            "image_mean": config["image_mean"], "image_std": config["image_std"]}  # fmt: skip
    _json(path / "composed.json", spec)
    return path


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


MAKERS: dict[str, Callable[[Path], Path]] = {
    **tiny.MAKERS,
    "llama": llama,
    "qwen2": qwen2,
    "shards": shards,
    "composed": composed,
}
