"""The one tokenizer.json of a package against transformers, which reads every file: equal ids, or refused by name."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgevlm.chat_template import special_tokens
from edgevlm.errors import EdgeVLMError
from edgevlm.tokenizer import Tokenizer
from export.checkpoints.tokenizer_files import unified
from tests.golden.make_texts import case_files
from tests.tokenizer_file_cases import CASES, TEXTS, base, only_listed, size, special_map, strings, token, written

pytestmark = [pytest.mark.reference, pytest.mark.slow]

N_RANDOM = 150
CLASSES = (
    None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer",
    "Qwen2Tokenizer", "Qwen2TokenizerFast", "UnknownTokenizer", "GemmaTokenizer",
)  # fmt: skip


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
    # The library does not leave away special tokens that it looks for in normalised text; a package's do not differ.
    odd = any(t["special"] and t["normalized"] for t in files["tokenizer.json"]["added_tokens"])
    for text in strings(seed):
        assert ours.encode(text, allow_special=True) == theirs(text, add_special_tokens=False).input_ids, text
        ids = theirs(text, add_special_tokens=False).input_ids
        assert odd or ours.decode_whole(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True), text
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
    files = case_files(name, kind, change)
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
