"""Reading the JSON files beside config.json: added tokens, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.generation_defaults import settled, wrong_default
from edgevlm.manifest_values import MAX_VOCAB
from edgevlm.spec import GenerationSpec
from export.archs.fields import Fields, shown
from export.archs.generation_fields import TRANSFORMERS_TOP_K, not_applied
from export.checkpoints.paths import parse_object

GENERATION_FILE = "generation_config.json"


def read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The parsed file; {} when the checkpoint has none."""
    if name not in files:
        return {}
    return parse_object(files[name], name)


def added_token_id(files: Mapping[str, bytes], token: str) -> int | None:
    """The id of an added token in tokenizer.json; None when there is no such token or file."""
    added = read_json(files, "tokenizer.json").get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and entry.get("content") == token:
            if type(entry.get("id")) is not int:
                raise PackageError(f"tokenizer.json: the added token {token!r} has no id, but {shown(entry.get('id'))}")
            return int(entry["id"])
    return None


def check_image_token(files: Mapping[str, bytes], token: str, token_id: int) -> None:
    """Raises PackageError when tokenizer.json gives the image token another id than config.json."""
    found = added_token_id(files, token)
    if found is not None and found != token_id:
        raise PackageError(
            f"config.json says the image token is {token_id}, tokenizer.json gives {token!r} the id {found}; "
            "one of the two files is from another checkpoint"
        )


class _Generation(Fields):
    """generation_config.json."""

    def where(self, name: str) -> str:
        return f"{GENERATION_FILE}: {name}"


def generation_spec(top: Fields, text: Fields, files: Mapping[str, bytes]) -> GenerationSpec:
    """Defaults of generation; ids come from generation_config.json, else config.json, else the tokenizer's eos.

    Raises PackageError for a value of another type, or one that no answer can be made with.
    """
    generation = _Generation(read_json(files, GENERATION_FILE))
    sources = (generation, text, top)
    eos, strange = _eos_ids(sources, text)
    spec = GenerationSpec(
        eos_token_ids=eos or _tokenizer_eos(files),
        bos_token_id=_first_id(sources, "bos_token_id"),
        pad_token_id=_first_id(sources, "pad_token_id"),
        do_sample=generation.flag("do_sample", False),
        temperature=generation.number("temperature", 1.0),
        top_k=_whole(generation, "top_k", TRANSFORMERS_TOP_K),
        top_p=generation.number("top_p", 1.0),
        min_p=generation.number("min_p", 0.0),
        repetition_penalty=generation.number("repetition_penalty", 1.0),
        not_applied=(*not_applied(generation.data), *strange),
    )
    if (wrong := wrong_default(spec)) is not None:
        raise PackageError(f"{GENERATION_FILE}: {wrong}")
    return settled(spec)


def _eos_ids(sources: tuple[Fields, ...], text: Fields) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The first source's ids of the vocabulary, and a remark on each that is none: transformers never meets those."""
    n_vocabulary = text.integer("vocab_size") if text.get("vocab_size") is not None else None
    strange: list[str] = []
    for source in sources:
        value = source.get("eos_token_id", [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise PackageError(
                f"{source.where('eos_token_id')} must be an integer or a list of them, found {shown(value)}"
            )
        known = tuple(item for item in ids if item >= 0 and (n_vocabulary is None or item < n_vocabulary))
        strange += [f"eos_token_id {shown(item)} (no token has it)" for item in ids if item not in known]
        if known:
            return known, tuple(dict.fromkeys(strange))
    return (), tuple(dict.fromkeys(strange))


def _first_id(sources: tuple[Fields, ...], name: str) -> int | None:
    """The first source's id; a negative one says that there is none."""
    for source in sources:
        value = source.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise PackageError(f"{source.where(name)} must be an integer, found {shown(value)}")
            if value >= MAX_VOCAB:
                raise PackageError(f"{source.where(name)} is {shown(value)}, which is no token id")
            return value if value >= 0 else None
    return None


def _whole(fields: Fields, name: str, default: int) -> int:
    """An integer, also where it is written as 50.0."""
    whole = fields.get(name, default)
    if isinstance(whole, int) and not isinstance(whole, bool):
        return whole
    value = fields.number(name)
    if not value.is_integer():
        raise PackageError(f"{fields.where(name)} must be an integer, found {value:g}")
    return int(value)


def _tokenizer_eos(files: Mapping[str, bytes]) -> tuple[int, ...]:
    token = read_json(files, "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = added_token_id(files, token) if isinstance(token, str) else None
    return () if found is None else (found,)
