"""Reading the JSON files beside config.json: picture processing, added tokens, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.manifest_values import MAX_VOCAB
from edgevlm.spec import GenerationSpec, Resample
from export.archs.fields import Fields, is_finite, not_implemented, shown
from export.checkpoints.paths import parse_object

RESAMPLES: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as preprocessor_config.json has them."""


def read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The parsed file; {} when the checkpoint has none."""
    if name not in files:
        return {}
    return parse_object(files[name], name)


class ImageProcessing(Fields):
    """The picture part of preprocessor_config.json, or of processor_config.json as transformers v5 saves it."""

    def __init__(self, files: Mapping[str, bytes], model_type: str) -> None:
        data, self.file = read_json(files, "preprocessor_config.json"), "preprocessor_config.json"
        if not data:
            data, self.file = read_json(files, "processor_config.json").get("image_processor") or {}, "processor_config"
        if not data:
            raise PackageError(
                f"a {model_type} checkpoint needs preprocessor_config.json (or processor_config.json with "
                "'image_processor'), which was not found beside config.json"
            )
        super().__init__(data)

    def where(self, name: str) -> str:
        return f"{self.file}: {self.path}{name}"

    def edge(self, name: str, default: int | None = None) -> int:
        """`longest_edge` of a size object."""
        size = self.get(name, {} if default is None else {"longest_edge": default})
        value = size.get("longest_edge") if isinstance(size, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise PackageError(f"{self.where(name)}.longest_edge must be a positive integer, found {value!r}")
        return value

    def resample(self, default: int) -> Resample:
        value = self.get("resample", default)
        if type(value) is not int or value not in RESAMPLES:
            raise not_implemented("resample", value, self.where("resample"), RESAMPLES.values())
        return RESAMPLES[value]

    def channels(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        return channel_values(self.get(name, default), self.where(name))


def channel_values(value: Any, where: str) -> tuple[float, float, float]:
    """Three floats, one a colour."""
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_is_number, value)):
        raise PackageError(f"{where} must be three finite numbers, found {shown(value)}")
    return float(value[0]), float(value[1]), float(value[2])


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
    if not all(type(item) is int for item in values):
        raise PackageError(f"eos_token_id must be an integer or a list of them, found {shown(value)}")
    return tuple(values)


def _first_id(sources: tuple[Mapping[str, Any], ...], name: str) -> int | None:
    """The first id that is given; a negative one is none, as in transformers."""
    for source in sources:
        value = source.get(name)
        if type(value) is int and value >= 0:
            if value >= MAX_VOCAB:
                raise PackageError(f"{name} is {shown(value)}, which is no token id")
            return value
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
    if not _is_number(value):
        raise PackageError(f"generation_config.json: {name} must be a finite number, found {shown(value)}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
