"""The one tokenizer.json of a package against transformers, which reads every file: equal ids, or refused by name."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.chat_template import special_tokens
from edgevlm.errors import EdgeVLMError
from edgevlm.tokenizer import Tokenizer
from export.checkpoints.tokenizer_files import unified
from tests.edgevlm.tokenizers_zoo import byte_level, llama
from tests.tokenizer_strings import make_strings

pytestmark = [pytest.mark.reference, pytest.mark.slow]

N_RANDOM = 400
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
CLASSES = (
    None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer",
    "Qwen2Tokenizer", "Qwen2TokenizerFast", "UnknownTokenizer", "GemmaTokenizer",
)  # fmt: skip


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


def compare(files: dict[str, Any], folder: Path, seed: int) -> str:
    """Returns 'equal', or the refusal's class."""
    from export.reference.language import load_tokenizer

    data = written(files, folder)
    try:
        one = unified(data, files["config.json"]["model_type"], "checkpoint")
    except EdgeVLMError as refusal:
        return type(refusal).__name__
    (folder / "ours.json").write_bytes(one["tokenizer.json"])
    ours = Tokenizer.from_file(folder / "ours.json")
    theirs = load_tokenizer(folder)
    for text in strings(seed):
        assert ours.encode(text, allow_special=True) == theirs(text, add_special_tokens=False).input_ids, text
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.decode_whole(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.backend.encode(text).ids == theirs(text).input_ids, text
    config = json.loads(one["tokenizer_config.json"]) if "tokenizer_config.json" in one else {}
    others = json.loads(one["special_tokens_map.json"]) if "special_tokens_map.json" in one else {}
    known = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    expected = {name: text for name, text in theirs.special_tokens_map.items() if name in known}
    assert special_tokens(config, others) == expected
    return "equal"


@pytest.mark.parametrize(("name", "kind", "change"), CASES, ids=[name for name, *_ in CASES])
def test_files_that_say_more(name: str, kind: str, change: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files = base(kind)
    if name == "qwen2's class":
        files["config.json"]["model_type"] = "qwen2"
    change(files)
    assert compare(files, tmp_path / "files", 3) == "equal"


def test_without_the_other_files_ids_differ(tmp_path: Path) -> None:
    """Negative control: tokenizer.json alone does not know the tokens."""
    from export.reference.language import load_tokenizer

    files = base("bytes")
    only_listed(files)
    written(files, tmp_path)
    alone = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert alone.encode("a <think> b", allow_special=True) != load_tokenizer(tmp_path)("a <think> b").input_ids


def random_files(rng: random.Random) -> dict[str, Any]:
    files = copy.deepcopy(base(rng.choice(("bytes", "first", "always", "normalizer"))))
    files["config.json"]["model_type"] = rng.choice(("llama", "llama", "qwen2", "smolvlm", "idefics3"))
    config = files["tokenizer_config.json"]
    config["tokenizer_class"] = rng.choice(CLASSES)
    if config["tokenizer_class"] is None:
        del config["tokenizer_class"]
    flags = ("lstrip", "rstrip", "normalized", "special", "single_word")
    if rng.random() < 0.5:
        listed = [dict(t) for t in files["tokenizer.json"]["added_tokens"]]
        first = size(files)
        names = [text for text in TEXTS if all(t["content"] != text for t in listed)]
        listed += [{"id": first + i, **token(text)} for i, text in enumerate(rng.sample(names, rng.randint(0, 3)))]
        for entry in listed:
            if rng.random() < 0.3:
                entry[rng.choice(flags)] ^= True
        if rng.random() < 0.2:
            listed.pop(rng.randrange(len(listed)))
        config["added_tokens_decoder"] = {str(t.pop("id")): t for t in listed}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if rng.random() < 0.3:
            config[key] = rng.choice((None, *TEXTS))
        if rng.random() < 0.1 and config.get(key):
            config[key] = {"__type": "AddedToken", **token(config[key], rstrip=True)}
    for key, value in (
        ("additional_special_tokens", rng.sample(TEXTS, 2)), ("extra_special_tokens", rng.sample(TEXTS, 2)),
        ("extra_special_tokens", {"x_token": "<extra>"}), ("image_token", "<image>"), ("add_bos_token", True),
        ("add_prefix_space", rng.random() < 0.5), ("legacy", rng.random() < 0.5),
        ("clean_up_tokenization_spaces", True),
        ("split_special_tokens", True), ("model_max_length", 5),
    ):  # fmt: skip
        if rng.random() < 0.15:
            config[key] = value
    if rng.random() < 0.3:
        special_map(files)
    if rng.random() < 0.3:
        listed_in = rng.sample(TEXTS, 2)
        files["added_tokens.json"] = {text: size(files) + i for i, text in enumerate(listed_in)}
    if rng.random() < 0.1:
        del files["tokenizer_config.json"]
    if rng.random() < 0.2:
        for entry in files["tokenizer.json"]["added_tokens"]:
            entry["normalized"] = rng.random() < 0.5
    return files


def test_random_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    rng = random.Random(20261129)
    outcomes: Counter[str] = Counter()
    for number in range(N_RANDOM):
        files = random_files(rng)
        try:
            outcomes[compare(files, tmp_path / str(number), number)] += 1
        except AssertionError as error:
            raise AssertionError(
                f"case {number}: {json.dumps({k: v for k, v in files.items() if k != 'tokenizer.json'})}: {error}"
            ) from error
    print(outcomes)
    assert outcomes["equal"] > N_RANDOM // 2, outcomes
