"""Reading the JSON files beside config.json: added tokens, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.spec import GenerationSpec
from export.archs.fields import Fields
from export.checkpoints.paths import parse_object


def read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The parsed file; {} when the checkpoint has none."""
    if name not in files:
        return {}
    return parse_object(files[name], name)


def added_token_id(files: Mapping[str, bytes], token: str) -> int | None:
    """The id of an added token in tokenizer.json; None when there is no such token or file."""
    for entry in read_json(files, "tokenizer.json").get("added_tokens") or ():
        if entry.get("content") == token:
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


def generation_spec(top: Fields, text: Fields, files: Mapping[str, bytes]) -> GenerationSpec:
    """Defaults of generation; ids come from generation_config.json, else config.json, else the tokenizer's eos."""
    generation = read_json(files, "generation_config.json")
    sources = (generation, text.data, top.data)
    eos = next((_ids(source["eos_token_id"]) for source in sources if source.get("eos_token_id") is not None), ())
    if not eos:
        eos = _tokenizer_eos(files)
    return GenerationSpec(
        eos_token_ids=eos,
        bos_token_id=_first_id(sources, "bos_token_id"),
        pad_token_id=_first_id(sources, "pad_token_id"),
        do_sample=bool(generation.get("do_sample") or False),
        temperature=_number(generation, "temperature", 1.0),
        top_k=int(_number(generation, "top_k", 0)),
        top_p=_number(generation, "top_p", 1.0),
        min_p=_number(generation, "min_p", 0.0),
        repetition_penalty=_number(generation, "repetition_penalty", 1.0),
    )


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise PackageError(f"eos_token_id must be an integer or a list of them, found {value!r}")
    return tuple(values)


def _first_id(sources: tuple[Mapping[str, Any], ...], name: str) -> int | None:
    for source in sources:
        if isinstance(source.get(name), int):
            return int(source[name])
    return None


def _tokenizer_eos(files: Mapping[str, bytes]) -> tuple[int, ...]:
    token = read_json(files, "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = added_token_id(files, token) if isinstance(token, str) else None
    return () if found is None else (found,)


def _number(data: Mapping[str, Any], name: str, default: float) -> float:
    value = data.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PackageError(f"generation_config.json: {name} must be a number, found {value!r}")
    return float(value)
