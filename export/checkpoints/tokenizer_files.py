"""One tokenizer.json out of the files that say how a checkpoint's text becomes ids.

Besides tokenizer.json, transformers (5.24) reads tokenizer_config.json, special_tokens_map.json and added_tokens.json:
tokens that only they list, flags that differ, the names of special tokens, and a class that may build the steps anew.
What comes out of it is written down once, at import, so that nothing behind it needs a second rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.tokenizer import read_backend
from edgevlm.tokenizers_library import written
from export.checkpoints.paths import parse_object

CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TOKENIZER = "tokenizer.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "ParakeetTokenizer")
"""Classes that take tokenizer.json as it is, as do those that transformers does not know."""
REBUILDING_CLASSES = frozenset((
    "AlbertTokenizer", "BarthezTokenizer", "BertTokenizer", "BigBirdTokenizer", "BlenderbotTokenizer", "CLIPTokenizer",
    "CamembertTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "DebertaTokenizer",
    "DebertaV2Tokenizer", "FunnelTokenizer", "GPTNeoXTokenizer", "GemmaTokenizer", "HerbertTokenizer", "LukeTokenizer",
    "MBart50Tokenizer", "MBartTokenizer", "MPNetTokenizer", "NllbTokenizer", "NougatTokenizer", "OpenAIGPTTokenizer",
    "PegasusTokenizer", "Qwen3_5Tokenizer", "ReformerTokenizer", "RemBertTokenizer", "RobertaTokenizer",
    "SeamlessM4TTokenizer", "Siglip2Tokenizer", "SplinterTokenizer", "T5Tokenizer", "UdopTokenizer", "WhisperTokenizer",
    "XGLMTokenizer", "XLMRobertaTokenizer", "XLNetTokenizer",
))  # fmt: skip
"""Classes of transformers 5.24 that build a tokenizer's steps anew, beside those of _STEPS."""


def unified(files: Mapping[str, bytes], model_type: str, where: str) -> dict[str, bytes]:
    """Returns `files` with a tokenizer.json that alone gives transformers' ids.

    Raises PackageError when the files contradict each other or are damaged, UnsupportedModelError for what is not read.
    """
    if TOKENIZER not in files:
        return dict(files)
    config = _object(files, CONFIG, where)
    state = parse_object(files[TOKENIZER], f"{where}: {TOKENIZER}")
    if not isinstance(state.get("model"), dict):
        return dict(files)  # refused where it is used
    _check_flags(config, state, where)
    tokens = _Tokens(files, config, state, where)
    rebuilding = _class_of(model_type, config, state, where)
    steps, defaults = _STEPS.get(rebuilding, (None, {}))
    padding = state.get("padding")
    padded = {"pad_token": padding["pad_token"]} if isinstance(padding, dict) and padding.get("pad_token") else {}
    names = {**padded, **defaults, **tokens.names}
    backend = _backend(files[TOKENIZER].decode("utf-8"), where)
    original = written(backend, f"{where}: {TOKENIZER}")
    backend.no_truncation()
    backend.no_padding()
    if steps is not None:
        backend = _backend(json.dumps(_rebuilt(state, steps(state, config), rebuilding, where)), where)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    _add(backend, tokens, names, rebuilding)
    _check_ids(backend, tokens, where)
    result, text = dict(files), _with_special(backend, special)
    if text != original:
        result[TOKENIZER] = text.encode("utf-8")
    texts = {name: None if value is None else _content(value) for name, value in names.items()}
    stored = {**_object(files, SPECIAL_TOKENS, where), **config}
    if any(texts.get(name) != _content(stored.get(name)) for name in NAMES):
        result[CONFIG] = json.dumps({**config, **{name: texts.get(name) for name in NAMES}}, indent=2).encode("utf-8")
    return result


def _object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    return parse_object(files[name], f"{where}: {name}") if name in files else {}


def _check_flags(config: Mapping[str, Any], state: Mapping[str, Any], where: str) -> None:
    if config.get("split_special_tokens"):
        raise UnsupportedModelError(
            f"{where}: {CONFIG} has 'split_special_tokens', with which no prompt has a special token; set it to false"
        )
    model = state.get("model")
    is_bpe = isinstance(model, dict) and (model.get("type") == "BPE" or "merges" in model)
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    if config.get("clean_up_tokenization_spaces") and (forced or not is_bpe):
        raise UnsupportedModelError(
            f"{where}: {CONFIG} has 'clean_up_tokenization_spaces', which takes spaces out of answers and is not "
            "supported; set it to false"
        )


# ---- which class reads the files


def _class_of(model_type: str, config: Mapping[str, Any], state: Mapping[str, Any], where: str) -> str:
    """Returns the class of _STEPS that transformers' AutoTokenizer takes, "" for one that reads tokenizer.json.

    A declared PreTrainedTokenizerFast is taken at its word, where AutoTokenizer would prefer the model type's class.
    """
    declared = config.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise PackageError(f"{where}: {CONFIG}: 'tokenizer_class' is {str(declared)[:60]!r}, expected a class's name")
    name = (declared or "").removesuffix("Fast")
    if model_type == "smolvlm" or declared == "PreTrainedTokenizerFast":
        return ""
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    if name in PLAIN_CLASSES:
        return ""
    if name == "LlamaTokenizer" and "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("decoder")]):
        return ""
    if name in REBUILDING_CLASSES:
        raise UnsupportedModelError(
            f"{where}: {CONFIG} names the tokenizer class {declared!r}, which does not take {TOKENIZER} as it is and "
            "is not supported; where the file alone is right, name PreTrainedTokenizerFast instead"
        )
    return name if name in _STEPS else ""


def _llama_steps(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    is_prefixed = config.get("add_prefix_space") in (None, True)
    scheme = ("always" if config.get("legacy") else "first") if is_prefixed else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if is_prefixed else []
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {"fuse_unk": True, "byte_fallback": True},
    }


def _byte_level(add_prefix_space: Any, use_regex: bool) -> dict[str, Any]:
    flags = {"add_prefix_space": bool(add_prefix_space), "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **flags}


def _qwen2_steps(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    pretokenizers = [split, _byte_level(config.get("add_prefix_space"), use_regex=False)]
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pretokenizers},
        "decoder": _byte_level(True, use_regex=True),
        "model": {"fuse_unk": False, "byte_fallback": False},
    }


def _gpt2_steps(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "normalizer": None,
        "pre_tokenizer": _byte_level(config.get("add_prefix_space"), use_regex=True),
        "decoder": _byte_level(True, use_regex=True),
        "model": {"fuse_unk": False, "byte_fallback": False},
    }


_Steps = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
_END = "<|endoftext|>"
_STEPS: dict[str, tuple[_Steps, dict[str, Any]]] = {
    "LlamaTokenizer": (_llama_steps, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
    "Qwen2Tokenizer": (_qwen2_steps, {"unk_token": _END, "eos_token": _END, "pad_token": _END}),
    "GPT2Tokenizer": (_gpt2_steps, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}),
}
"""Class → the steps that it builds, and the special tokens that it has unless the config names others."""


def _rebuilt(state: Mapping[str, Any], steps: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    model = state.get("model")
    if (
        not isinstance(model, dict)
        or not isinstance(model.get("vocab"), dict)
        or not isinstance(model.get("merges"), list)
    ):
        raise UnsupportedModelError(
            f"{where}: {CONFIG} names the tokenizer class {name}, which needs a BPE with merges, and {TOKENIZER} has "
            "another model; where the file alone is right, name PreTrainedTokenizerFast instead"
        )
    kept = {"type": "BPE", "dropout": None, "unk_token": None, "ignore_merges": False}
    affixes = {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    rebuilt = {**kept, **affixes, **steps["model"], "vocab": model["vocab"], "merges": model["merges"]}
    return {**state, **steps, "model": rebuilt, "added_tokens": [], "truncation": None, "padding": None}


# ---- the tokens beside tokenizer.json


class _Tokens:
    """What the files beside tokenizer.json say of added tokens."""

    def __init__(
        self, files: Mapping[str, bytes], config: Mapping[str, Any], state: Mapping[str, Any], where: str
    ) -> None:
        from tokenizers import AddedToken

        self.where = where
        values = dict(config)
        if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
            values["extra_special_tokens"] = values.pop("additional_special_tokens")
        self.by_id: dict[int, Any] = {}
        self.stated: dict[str, int] = {}
        """Ids that tokenizer_config.json or added_tokens.json give, by text."""
        listed = values.get("added_tokens_decoder")
        if listed is not None:
            if not isinstance(listed, dict):
                raise PackageError(
                    f"{where}: {CONFIG}: 'added_tokens_decoder' is a {type(listed).__name__}, expected an object"
                )
            for key, entry in listed.items():
                token = self._token(entry, f"'added_tokens_decoder' {key}")
                self.by_id[self._id(key)] = token
                self.stated[token.content] = self._id(key)
        else:
            mapped = _object(files, SPECIAL_TOKENS, where)
            extra = (
                list(self._extra(values.get("extra_special_tokens")))
                if isinstance(mapped.get("extra_special_tokens"), list)
                else []
            )
            values |= mapped
            if extra:
                values["extra_special_tokens"] = [
                    *extra,
                    *(t for t in mapped["extra_special_tokens"] if t not in extra),
                ]
            named = {_content(values.get(name)) for name in NAMES}
            named |= {_content(token) for token in self._extra(values.get("extra_special_tokens"))}
            if "additional_special_tokens" in values and "extra_special_tokens" not in values:
                values["extra_special_tokens"] = values.pop("additional_special_tokens")
            for text, token_id in _object(files, ADDED_TOKENS, where).items():
                is_special = text in named
                self.by_id[self._id(token_id)] = AddedToken(text, normalized=not is_special, special=is_special)
                self.stated[text] = self._id(token_id)
            for entry in state.get("added_tokens") or ():
                if isinstance(entry, dict) and "id" in entry:
                    self.by_id[self._id(entry["id"])] = self._token(
                        {k: v for k, v in entry.items() if k != "id"}, TOKENIZER
                    )
        known = {token.content: token for token in self.by_id.values()}
        self.names: dict[str, Any] = {}
        """Special tokens by name; None where the files say that there is none."""
        for name in NAMES:
            if name in values:
                self.names[name] = self._named(values[name], known, name)
        extra_tokens = values.get("extra_special_tokens")
        specific = {
            key: value
            for key, value in values.items()
            if key.endswith("_token") and key not in NAMES and isinstance(value, str)
        }
        if isinstance(extra_tokens, dict):
            specific |= extra_tokens
            extra_tokens = values.get("additional_special_tokens")
        self.specific = [self._token_or_text(value, key) for key, value in specific.items()]
        self.extra = [self._token_or_text(value, "'extra_special_tokens'") for value in self._extra(extra_tokens)]

    def _extra(self, value: Any) -> list[Any]:
        if value is None or isinstance(value, dict):
            return []
        if not isinstance(value, list):
            raise PackageError(
                f"{self.where}: {CONFIG}: 'extra_special_tokens' is a {type(value).__name__}, expected a list"
            )
        return value

    def _named(self, value: Any, known: Mapping[str, Any], name: str) -> Any:
        if value is None:
            return None
        token = self._token_or_text(value, f"{name!r}")
        return known.get(_content(token) or "", token)

    def _token_or_text(self, value: Any, what: str) -> Any:
        return (
            value
            if isinstance(value, str)
            else self._token({**value, "special": True} if isinstance(value, dict) else value, what)
        )

    def _token(self, entry: Any, what: str) -> Any:
        from tokenizers import AddedToken

        fields = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise PackageError(
                f"{self.where}: {CONFIG}: {what} is {str(entry)[:60]!r}, expected a token with a 'content'"
            )
        given = {key: value for key, value in entry.items() if key in fields}
        wrong = [key for key, value in given.items() if key != "content" and not isinstance(value, bool)]
        if wrong:
            raise PackageError(
                f"{self.where}: {CONFIG}: {what} has {wrong[0]!r} {str(given[wrong[0]])[:40]!r}, expected true or false"
            )
        return AddedToken(**given)

    def _id(self, value: Any) -> int:
        text = str(value)
        if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
            raise PackageError(
                f"{self.where}: an added token has the id {text[:40]!r}, expected a number of the vocabulary"
            )
        return int(text)


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if value is None or isinstance(value, str) else str(value)


def _add(backend: Any, tokens: _Tokens, names: Mapping[str, Any], rebuilding: str) -> None:
    """Adds to `backend` what it lacks, in transformers' order, which decides over new ids."""
    from tokenizers import AddedToken

    have = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    found = [token for _, token in sorted(tokens.by_id.items()) if repr(token) not in have]
    texts = {token.content for token in backend.get_added_tokens_decoder().values()}
    texts |= {token.content for token in found}
    named = [value for value in (*(names.get(name) for name in NAMES), *tokens.specific) if value is not None]
    for value in [*named, *tokens.extra]:
        if _content(value) not in texts and value not in found:
            found.append(value)
    special = {_content(value) for value in named}
    ready = []
    for value in found:
        token = AddedToken(value, special=True) if isinstance(value, str) else value
        if not token.special and token.content in special:
            token.special = True
        ready.append(token)
    backend.add_tokens(ready)
    if rebuilding == "Qwen2Tokenizer":
        contents = dict.fromkeys(text for value in [*named, *tokens.extra] if (text := _content(value)))
        backend.add_tokens([AddedToken(text, special=True) for text in contents])


def _with_special(backend: Any, special: set[str]) -> str:
    """Returns the tokenizer as JSON. What was special once stays so in the library, whatever a later flag says."""
    text = written(backend)
    after = backend.get_added_tokens_decoder().values()
    if all(token.special or token.content not in special for token in after):
        return text
    state = json.loads(text)
    for entry in state["added_tokens"]:
        entry["special"] |= entry["content"] in special
    return json.dumps(state, ensure_ascii=False)


def _check_ids(backend: Any, tokens: _Tokens, where: str) -> None:
    for text, stated in tokens.stated.items():
        found = backend.token_to_id(text)
        if text and found != stated:
            raise PackageError(
                f"{where}: {CONFIG} or {ADDED_TOKENS} gives {text!r} the id {stated}, {TOKENIZER} {found}; one of the "
                "files is from another checkpoint"
            )


def _backend(text: str, where: str) -> Any:
    return read_backend(text, f"{where}: {TOKENIZER}")
