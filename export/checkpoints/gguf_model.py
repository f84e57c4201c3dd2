"""A GGUF language model under Hugging Face's names: config.json fields and tensor names, for `llama` and `qwen2`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BackendError, PackageError, UnsupportedModelError
from export.checkpoints.gguf_container import GGUFFile
from export.checkpoints.gguf_keys import check_keys, check_kind
from export.checkpoints.gguf_rope import ROPE_FACTORS, rope_scaling, rope_theta
from export.checkpoints.gguf_split import model_name, open_gguf_file
from export.checkpoints.gguf_tokenizer import special_id, tokenizer_files
from export.checkpoints.source import Contents, TensorInfo

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_output.bias": "self_attn.o_proj.bias",
    **{f"attn_{x}.{kind}": f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")},
}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)")


class GGUFModel:
    """The tensors of a GGUF file renamed; llama.cpp's reordering of Q and K rows is undone."""

    def __init__(self, file: GGUFFile, config: Mapping[str, Any]) -> None:
        self._file = file
        self._names = _rename(file, config)
        self._heads: dict[str, int] = {}
        if config["model_type"] == "llama":
            for name in self._names:
                if ".q_proj." in name:
                    self._heads[name] = config["num_attention_heads"]
                elif ".k_proj." in name:
                    self._heads[name] = config["num_key_value_heads"]

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors under Hugging Face's names."""
        stored = self._file.tensors()
        return {name: stored[original] for name, original in self._names.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of one tensor, dequantised, in Hugging Face's order."""
        original = self._names[name]
        if name not in self._heads:
            return self._file.read_rows(original, start, stop)
        n_rows = self._file.tensors()[original].shape[0]
        return undo_rope_permutation(self._file.read_rows(original, 0, n_rows), self._heads[name])[start:stop]


def open_gguf(path: Path) -> Contents:
    """Checks the file and returns its contents under Hugging Face's names.

    Raises PackageError for a damaged file, UnsupportedModelError for another architecture, tensor type or tokenizer.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise BackendError("reading GGUF needs the 'gguf' package: pip install 'edgevlm[export]'.") from None
    file = open_gguf_file(path)
    config = gguf_config(file)
    model = GGUFModel(file, config)
    files = {"config.json": (json.dumps(config, indent=2) + "\n").encode(), **tokenizer_files(file, config)}
    return Contents(model_name(path), config, files, model)


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The fields of a config.json, out of the metadata; every field that changes the computation is read or refused."""
    check_kind(file)
    arch = file.text("general.architecture")
    if arch not in CLASSES:
        raise UnsupportedModelError(
            f"{file.path} holds the architecture {arch!r}; GGUF files are read for {', '.join(CLASSES)}."
        )
    check_keys(file, arch)
    tensors = file.tensors()
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise PackageError(f"{file.path} has no two-dimensional tensor 'token_embd.weight'.")
    hidden = _needed(file, f"{arch}.embedding_length")
    layers = _needed(file, f"{arch}.block_count")
    heads = _needed(file, f"{arch}.attention.head_count", layers)
    head_dim = _size(file, f"{arch}.attention.key_length", hidden // heads)
    if _size(file, f"{arch}.attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{file.path} has values and keys of different head sizes, which is not supported.")
    if _size(file, f"{arch}.rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{file.path} rotates only a part of each head, which is not supported for GGUF files."
        )
    kv_heads = _size(file, f"{arch}.attention.head_count_kv", heads, layers)
    if heads % kv_heads or head_dim % 2:
        raise PackageError(
            f"{file.path} states {heads} heads, {kv_heads} key heads and head size {head_dim}, which do not fit."
        )
    rows, width = tensors["token_embd.weight"].shape
    if width != hidden:
        raise PackageError(
            f"{file.path} states embedding_length {hidden}, but 'token_embd.weight' has {width} columns."
        )
    if _size(file, f"{arch}.vocab_size", rows) != rows:
        raise PackageError(
            f"{file.path} states vocab_size {file.integer(f'{arch}.vocab_size'):,}, but 'token_embd.weight' has "
            f"{rows:,} rows."
        )
    epsilon = file.number(f"{arch}.attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise PackageError(f"{file.path} has no '{arch}.attention.layer_norm_rms_epsilon'.")
    config: dict[str, Any] = {
        "architectures": [CLASSES[arch]],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _needed(file, f"{arch}.feed_forward_length", layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": rows,
        "max_position_embeddings": _needed(file, f"{arch}.context_length"),
        "rms_norm_eps": epsilon,
        "rope_theta": rope_theta(file, arch),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float32",
    }
    if arch == "llama":
        config["attention_bias"] = _has_attention_bias(file)
        config["mlp_bias"] = False
    else:
        config["use_sliding_window"] = False
    scaling = rope_scaling(file, arch, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    for field, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        index = special_id(file, key, rows)
        if index is not None:
            config[field] = index
    return config


def undo_rope_permutation(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows (heads * E, …) from llama.cpp's order, where the two halves of a rotated pair are neighbours, to HF's.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute, inverted.
    """
    half = weight.shape[0] // heads // 2
    pairs = weight.reshape(heads, half, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _has_attention_bias(file: GGUFFile) -> bool:
    found = {name.split(".")[2] for name in file.tensors() if name.startswith("blk.") and name.endswith(".bias")}
    if found and found != {"attn_q", "attn_k", "attn_v", "attn_output"}:
        raise UnsupportedModelError(
            f"{file.path} has biases on {', '.join(sorted(found))} only, which 'llama' does not have."
        )
    return bool(found)


def _rename(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    n_layers = config["num_hidden_layers"]
    for original in file.tensors():
        if original == ROPE_FACTORS:
            continue
        match = _BLOCK.fullmatch(original)
        if original in _TOP_NAMES:
            names[_TOP_NAMES[original]] = original
        elif match and match[2] in _BLOCK_NAMES and int(match[1]) < n_layers:
            names[f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}"] = original
        else:
            raise UnsupportedModelError(
                f"{file.path} holds the tensor {original!r}, which {config['model_type']!r} with {n_layers} layers "
                "does not have."
            )
    _check_complete(file, n_layers, biased="qkv" if config["model_type"] == "qwen2" else "")
    head_dim = config["head_dim"]
    for suffix, count in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
        for name, original in names.items():
            rows = (file.tensors()[original].shape or (1,))[0]
            if f".self_attn.{suffix}_proj." in name and rows != count * head_dim:
                raise PackageError(
                    f"{file.path}: tensor {original!r} has {rows} rows, expected {count} heads of {head_dim}."
                )
    return names


def _check_complete(file: GGUFFile, n_layers: int, biased: str) -> None:
    """Raises PackageError naming the first tensor that is missing, where layers are as many as the metadata say."""
    stored = file.tensors()
    block = [name for name in _BLOCK_NAMES if name.endswith(".weight")] + [f"attn_{letter}.bias" for letter in biased]
    needed = itertools.chain(
        ("token_embd.weight", "output_norm.weight"),
        (f"blk.{layer}.{name}" for layer in range(n_layers) for name in block),
    )
    missing = next((name for name in needed if name not in stored), None)
    if missing is not None:
        raise PackageError(
            f"{file.path} has no tensor {missing!r}, which a model with {n_layers} layers needs; it is not complete."
        )


def _needed(file: GGUFFile, key: str, layers: int = 1) -> int:
    """A positive integer that must be there; of a list with one a layer, the number that all of them are."""
    value = file.count(key, layers)
    if value is None or value <= 0:
        raise PackageError(f"{file.path} has no '{key}' (found {value!r}); it is not a complete language model.")
    return value


def _size(file: GGUFFile, key: str, default: int, layers: int = 1) -> int:
    """`_needed`, with a default for a key that is absent."""
    return default if key not in file.metadata else _needed(file, key, layers)
