"""A `tokenizers` tokenizer.json and its companions, rebuilt from a GGUF file's metadata.

Ids follow llama.cpp (src/llama-vocab.cpp, b11549), and are compared with it and with transformers' GGUF conversion
(5.24) in tests/export/test_checkpoint_gguf_tokenizer.py. Where others differ:

- transformers' GGUF conversion has no row for `smollm`, so that it keeps runs of digits together; SmolLM2's own
  tokenizer.json splits them into single digits, as llama.cpp and this module do.
- transformers' conversion of SPM vocabularies adds no space before text that starts with one; llama.cpp and Llama 2's
  own tokenizer.json do.
- A byte without a token (SmolLM2 has none for 0xF1, for one) is dropped by all; llama.cpp and this module do not
  merge across the gap, transformers' conversion and SmolLM2's own tokenizer.json do.
- Qwen2's own tokenizer.json first normalises text to NFC; GGUF does not record it, and neither llama.cpp nor
  transformers' conversion do it.
- llama.cpp looks for the longest special token first, `tokenizers` for the leftmost; they differ where the texts of
  two special tokens overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.tokenizers_library import tokenizers_errors
from export.checkpoints.gguf_container import GGUFFile

UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 0, 1, 2, 3, 4, 5, 6
"""Values of tokenizer.ggml.token_type."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "codeshell": (r"\p{N}", _GPT2),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama-bpe": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "stablelm2": (_QWEN2,),
}
"""tokenizer.ggml.pre → regular expressions that are applied one after the other (llm_tokenizer_bpe's switch)."""

SPM_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""Special tokens of an SPM vocabulary that does not name them (llama-vocab.cpp, load)."""

WHOLE_WORDS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3")
"""Where a word that is a token is taken without merging, and BOS is added by default."""

END_TOKENS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
"""Control tokens that end a turn whatever the metadata says (llama.cpp's end-of-generation list, where it concerns
the architectures that are read)."""


def tokenizer_files(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json as bytes.

    Raises UnsupportedModelError for another tokenizer or pre-tokenizer, PackageError for metadata that do not fit.
    """
    vocabulary = Vocabulary(file, config["vocab_size"])
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file, vocabulary)
    elif kind == "llama":
        tokenizer = _sentencepiece(file, vocabulary)
    else:
        raise UnsupportedModelError(f"{file.path} has the tokenizer {kind!r}; 'gpt2' (BPE) and 'llama' (SPM) are read.")
    content = json.dumps(tokenizer, ensure_ascii=False).encode()
    _check(file, content)
    settings = _tokenizer_config(file, vocabulary, config)
    generation = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    generation["eos_token_id"] = _end_ids(file, vocabulary)
    generation |= _sampling(file)
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode(),
        "generation_config.json": (json.dumps(generation, indent=2) + "\n").encode(),
    }


class Vocabulary:
    """Tokens with their types, checked for length and uniqueness."""

    def __init__(self, file: GGUFFile, n_rows: int) -> None:
        self._file = file
        tokens = file.strings("tokenizer.ggml.tokens")
        if not tokens:
            raise PackageError(f"{file.path} has no 'tokenizer.ggml.tokens'.")
        if len(tokens) > n_rows:
            raise PackageError(f"{file.path} has {len(tokens):,} tokens, but an embedding table of {n_rows:,} rows.")
        self.tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if self.ids[token] != index)
            raise PackageError(f"{file.path} has the token {twice!r} twice.")
        types = file.numbers("tokenizer.ggml.token_type")
        self.types: list[int] = [NORMAL] * len(tokens) if types is None else types
        wrong = next((kind for kind in self.types if type(kind) is not int or not UNDEFINED <= kind <= BYTE), None)
        if wrong is not None:
            raise PackageError(
                f"{file.path}: 'tokenizer.ggml.token_type' holds {wrong!r}; expected integers to {BYTE}."
            )
        if len(self.types) != len(tokens):
            raise PackageError(f"{file.path} has {len(tokens):,} tokens, but {len(self.types):,} token types.")

    def special_id(self, key: str) -> int | None:
        """The id under `tokenizer.ggml.<key>_token_id`, checked to be a token; None when there is none."""
        return special_id(self._file, key, len(self.tokens))

    def added(self) -> list[dict[str, Any]]:
        """Entries of tokenizer.json's `added_tokens`: those matched as a whole before the text is split."""
        return [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED or token in END_TOKENS,
            }
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) or token in END_TOKENS
        ]


def special_id(file: GGUFFile, key: str, n_tokens: int) -> int | None:
    """The id under `tokenizer.ggml.<key>_token_id`, or llama.cpp's for SPM vocabularies that state none.

    Raises PackageError for an id outside the tokens.
    """
    name = f"tokenizer.ggml.{key}_token_id"
    index = file.integer(name)
    if index is not None and not 0 <= index < n_tokens:
        raise PackageError(f"{file.path}: '{name}' is {index}, outside the {n_tokens:,} tokens.")
    if index is None and file.text("tokenizer.ggml.model") == "llama":
        index = SPM_IDS.get(key)
        return index if index is not None and index < n_tokens else None
    return index


def _byte_level(file: GGUFFile, vocabulary: Vocabulary) -> dict[str, Any]:
    pre = file.text("tokenizer.ggml.pre") or "default"
    if pre not in SPLITS:
        raise UnsupportedModelError(f"{file.path} has the pre-tokenizer {pre!r}; known are {', '.join(SPLITS)}.")
    lines = file.strings("tokenizer.ggml.merges")
    if lines is None:
        raise PackageError(f"{file.path} has no 'tokenizer.ggml.merges'.")
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in SPLITS[pre]
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _tokenizer(
        vocabulary,
        [_merge(file, line) for line in lines],
        model={"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre in WHOLE_WORDS_FIRST},
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits, to_bytes, *_drop_absent_bytes(vocabulary)]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        post_processor=_post_processor(file, vocabulary),
    )


def byte_alphabet() -> list[str]:
    """The character that stands for each byte value in a byte-level vocabulary (GPT-2's bytes_to_unicode)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


def _drop_absent_bytes(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """A step that cuts at bytes without a token and drops them, as llama.cpp does.

    Left alone, the BPE model drops them too, but then merges what stood on their two sides.
    """
    absent = "".join(character for character in byte_alphabet() if character not in vocabulary.ids)
    if not absent:
        return []
    escaped = "".join(f"\\x{{{ord(character):x}}}" for character in absent)
    return [{"type": "Split", "pattern": {"Regex": f"[{escaped}]"}, "behavior": "Removed", "invert": False}]


def _merge(file: GGUFFile, line: str) -> list[str]:
    at = line.find(" ", 1)
    if at < 0:
        raise PackageError(f"{file.path}: the merge {line!r} is not two pieces with a space between them.")
    return [line[:at], line[at + 1 :]]


def _sentencepiece(file: GGUFFile, vocabulary: Vocabulary) -> dict[str, Any]:
    scores = file.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        found = "none" if scores is None else f"{len(scores):,}"
        raise PackageError(f"{file.path} needs one score per token ({len(vocabulary.tokens):,}), found {found}.")
    if any(math.isnan(score) for score in scores):
        raise PackageError(f"{file.path}: 'tokenizer.ggml.scores' holds a value that is not a number.")
    missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in vocabulary.ids]
    if missing:
        raise UnsupportedModelError(
            f"{file.path} has no token for the byte {missing[0]}, so that some text has no ids."
        )
    unknown = vocabulary.special_id("unknown") or 0
    prefix = _adds_space_prefix(file)
    to_bar = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    to_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    prepend = {"type": "Prepend", "prepend": "▁"}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])]
    return _tokenizer(
        vocabulary,
        _merges_from_scores(vocabulary, scores),
        model={
            "unk_token": vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
        normalizer={"type": "Sequence", "normalizers": [*([prepend] if prefix else []), to_bar]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        post_processor=_post_processor(file, vocabulary),
    )


def _merges_from_scores(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """All ways to make a token of two tokens, best score first: SPM merges by score, BPE by rank.

    Control, unknown and byte tokens are left out, so that plain text can never turn into one of them.
    """
    usable = {
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind not in (UNKNOWN, CONTROL, BYTE)
    }
    merges = []
    for token, score in zip(vocabulary.tokens, scores, strict=True):
        if token in usable:
            halves = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += [(score, left, right) for left, right in halves if left in usable and right in usable]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [[left, right] for _, left, right in merges]


def _tokenizer(
    vocabulary: Vocabulary, merges: list[list[str]], *, model: dict[str, Any], **parts: Any
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **model,
            "vocab": vocabulary.ids,
            "merges": merges,
        },
    }


def _post_processor(file: GGUFFile, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """BOS and EOS around a text where the file asks for them."""
    first = ["bos"] if _adds_bos(file) else []
    last = ["eos"] if file.flag("tokenizer.ggml.add_eos_token") else []
    texts = {}
    for key in (*first, *last):
        index = vocabulary.special_id(key)
        if index is None:
            raise PackageError(f"{file.path} asks for a {key.upper()} token, but has no id for it.")
        texts[key] = vocabulary.tokens[index]
    if not texts:
        return None

    def framed(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": texts[key], "type_id": type_id}} for key in keys] for keys in (first, last)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    tokens = {text: {"id": text, "ids": [vocabulary.ids[text]], "tokens": [text]} for text in texts.values()}
    pair = [*framed("A", 0), *framed("B", 1)]
    return {"type": "TemplateProcessing", "single": framed("A", 0), "pair": pair, "special_tokens": tokens}


def _adds_bos(file: GGUFFile) -> bool:
    flag = file.flag("tokenizer.ggml.add_bos_token")
    if flag is not None:
        return flag
    return file.text("tokenizer.ggml.model") == "llama" or file.text("tokenizer.ggml.pre") in WHOLE_WORDS_FIRST


def _adds_space_prefix(file: GGUFFile) -> bool:
    flag = file.flag("tokenizer.ggml.add_space_prefix")
    return True if flag is None else flag


def _tokenizer_config(file: GGUFFile, vocabulary: Vocabulary, config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds_bos(file),
        "add_eos_token": bool(file.flag("tokenizer.ggml.add_eos_token")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = vocabulary.special_id(key)
        if index is not None:
            settings[f"{name}_token"] = vocabulary.tokens[index]
    template = file.text("tokenizer.chat_template")
    if template is not None:
        settings["chat_template"] = template
    return settings


def _end_ids(file: GGUFFile, vocabulary: Vocabulary) -> list[int]:
    """Ids that end a turn: EOS first, then end-of-turn and end-of-message ids, then those known by their text."""
    stated = [vocabulary.special_id(key) for key in ("eos", "eot", "eom")]
    known = [vocabulary.ids[token] for token in END_TOKENS if token in vocabulary.ids]
    listed = file.numbers("tokenizer.ggml.eos_token_ids") or []
    if any(type(index) is not int or not 0 <= index < len(vocabulary.tokens) for index in listed):
        raise PackageError(f"{file.path}: 'tokenizer.ggml.eos_token_ids' holds an id that is no token.")
    found = list(dict.fromkeys(index for index in (*stated, *listed, *known) if index is not None))
    if not found:
        raise PackageError(f"{file.path} names no end-of-sequence token ('tokenizer.ggml.eos_token_id').")
    return found


def _sampling(file: GGUFFile) -> dict[str, Any]:
    """The sampling that the file proposes, as generation_config.json says it; {} when it proposes no temperature.

    The sampler's other settings (mirostat, XTC, the order of its steps) have no counterpart here and are left alone.
    """
    temperature = file.number("general.sampling.temp")
    if temperature is None:
        return {}
    found: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        found["temperature"] = temperature
    for ours, key in (("top_p", "top_p"), ("min_p", "min_p"), ("repetition_penalty", "penalty_repeat")):
        value = file.number(f"general.sampling.{key}")
        if value is not None:
            found[ours] = value
    top_k = file.integer("general.sampling.top_k")
    if top_k is not None:
        found["top_k"] = max(top_k, 0)
    return found


def _check(file: GGUFFile, content: bytes) -> None:
    from tokenizers import Tokenizer

    with tokenizers_errors(f"{file.path}: its tokenizer", "cannot be built", ""):
        Tokenizer.from_str(content.decode())
