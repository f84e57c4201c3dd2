"""Checkpoints whose text files say more than tokenizer.json: what each adds, and strings that show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.edgevlm.tokenizers_zoo import byte_level, llama
from tests.tokenizer_strings import make_strings

TEXTS = (
    "<think>",
    "<extra>",
    "<image>",
    "<|im_end|>",
    "<tool>",
    "spaced word",
    "</s>",
    "<s>",
    "<unk>",
    "<|endoftext|>",
)


def base(kind: str) -> dict[str, Any]:
    backend = byte_level() if kind == "bytes" else llama(kind)
    return {
        "config.json": {"model_type": "llama"},
        "tokenizer.json": json.loads(backend.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
    }


def token(text: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": text, **plain, **flags}


def size(files: dict[str, Any]) -> int:
    tokenizer = files["tokenizer.json"]
    return 1 + max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])])


def only_listed(files: dict[str, Any]) -> None:
    """The example: tokens that only tokenizer_config.json lists."""
    first = size(files)
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in files["tokenizer.json"]["added_tokens"]}
    decoder |= {str(first): token("<think>", special=False), str(first + 1): token("<extra>")}
    files["tokenizer_config.json"]["added_tokens_decoder"] = decoder


def other_flags(files: dict[str, Any]) -> None:
    only_listed(files)
    for entry in files["tokenizer_config.json"]["added_tokens_decoder"].values():
        entry["lstrip"] = entry["rstrip"] = True


def listed_in_added_tokens(files: dict[str, Any]) -> None:
    files["added_tokens.json"] = {"<think>": size(files), "<extra>": size(files) + 1}
    files["tokenizer_config.json"]["additional_special_tokens"] = ["<extra>"]


def special_map(files: dict[str, Any]) -> None:
    files["special_tokens_map.json"] = {
        "bos_token": token("<|im_end|>", rstrip=True), "pad_token": "<extra>", "additional_special_tokens": ["<tool>"],
    }  # fmt: skip


def extra_special(files: dict[str, Any]) -> None:
    files["tokenizer_config.json"]["extra_special_tokens"] = {"image_token": "<extra>", "tool_token": "<tool>"}
    files["tokenizer_config.json"]["video_token"] = "<think>"


def sections(files: dict[str, Any]) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    files["tokenizer.json"] |= {"truncation": truncation, "padding": padding}
    files["tokenizer_config.json"] |= {"add_bos_token": False, "add_eos_token": True, "add_prefix_space": False}


def of_class(name: str | None, **more: Any) -> Callable[[dict[str, Any]], None]:
    def change(files: dict[str, Any]) -> None:
        only_listed(files)
        files["tokenizer_config.json"] |= {"tokenizer_class": name, **more}
        if name is None:
            del files["tokenizer_config.json"]["tokenizer_class"]

    return change


CASES: list[tuple[str, str, Callable[[dict[str, Any]], None]]] = [
    (f"{kind}, {change.__name__}", kind, change)
    for kind in ("bytes", "first", "normalizer")
    for change in (only_listed, other_flags, listed_in_added_tokens, special_map, extra_special, sections)
] + [
    ("llama's class on another pipeline", "normalizer", of_class("LlamaTokenizer")),
    ("llama's class, legacy", "first", of_class("LlamaTokenizerFast", legacy=True)),
    ("llama's class, no prefix", "first", of_class("LlamaTokenizer", add_prefix_space=False)),
    ("llama's class on bytes", "bytes", of_class("LlamaTokenizer")),
    ("gpt2's class", "bytes", of_class("GPT2Tokenizer", add_prefix_space=True)),
    ("qwen2's class", "bytes", of_class("Qwen2Tokenizer", eos_token="<|im_end|>", bos_token=None)),
]


def written(files: dict[str, Any], folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    data = {name: json.dumps(content).encode() for name, content in files.items()}
    for name, content in data.items():
        (folder / name).write_bytes(content)
    return data


def strings(seed: int, count: int = 60) -> list[str]:
    return [*TEXTS, "a <think> b", " <extra>  c", *make_strings(TEXTS, count, seed)]
