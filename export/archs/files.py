"""Reading the JSON files beside config.json: picture processing, added tokens, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.generation_defaults import settled, wrong_default
from edgevlm.manifest_values import MAX_VOCAB
from edgevlm.spec import GenerationSpec, Resample
from export.archs.fields import Fields, is_finite, not_implemented, shown
from export.archs.generation_fields import TRANSFORMERS_TOP_K, not_applied
from export.checkpoints.paths import parse_object

GENERATION_FILE = "generation_config.json"
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
    three = value if isinstance(value, (list, tuple)) and len(value) == 3 else [None]
    if not all(isinstance(x, (int, float)) and is_finite(x) for x in three):
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
