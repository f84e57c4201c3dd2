"""Reading config.json: class defaults for sparse files, both RoPE dialects, refusals by field name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from export.archspec import Activation, RopeSpec

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
ROPE_KINDS = ("default", "linear", "llama3")
_SHOWN = 80
MAX_SIZE = (1 << 24) - 1
"""Largest size or count that is read; the phone's reader and the engine's plan have the same limit."""
MAX_LAYERS = 1024
"""The engine's limit; the largest models published have about 130."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Numbers that stay finite in float32 when they, or what is divided by them, are multiplied by any position."""
MAX_PATCHES = 1 << 14
"""Of a tile; published towers have up to 6,400, and attention's memory grows with the square."""


class Fields:
    """One object of config.json. A field that is absent takes the default of its HF config class.

    So does one that is null, unless `not_null` is asked: transformers' classes take null for some fields only.
    """

    def __init__(self, data: Mapping[str, Any], path: str = "") -> None:
        self.data = data
        self.path = path

    def where(self, name: str) -> str:
        return f"config.json: {self.path}{name}"

    def child(self, name: str) -> Fields:
        value = self.data.get(name)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise PackageError(f"{self.where(name)} must be an object, found {type(value).__name__}")
        return Fields(value, f"{self.path}{name}.")

    def get(self, name: str, default: Any = None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def not_null(self, *names: str) -> None:
        """Raises PackageError for a field that is there as null where its HF config class takes no null."""
        for name in names:
            if name in self.data and self.data[name] is None:
                raise PackageError(f"{self.where(name)} is null; leave the field out for its default, or give a value")

    def integer(self, name: str, default: int | None = None, at_most: int = MAX_SIZE) -> int:
        return self._size(name, self.get(name, default), at_most)

    def _size(self, name: str, value: Any, at_most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise PackageError(f"{self.where(name)} must be a positive integer, found {shown(value)}")
        if value > at_most:
            raise UnsupportedModelError(f"{self.where(name)} is {shown(value)}; at most {at_most:,} is implemented")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
            raise PackageError(f"{self.where(name)} must be a finite number, found {shown(value)}")
        if abs(value) > LARGEST:
            raise PackageError(f"{self.where(name)} is {shown(value)}; numbers up to {LARGEST:g} can be computed with")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value < SMALLEST:
            must = "be above 0" if value <= 0 else f"be at least {SMALLEST:g}"
            raise PackageError(f"{self.where(name)} must {must}, found {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise PackageError(f"{self.where(name)} must be true or false, found {value!r}")
        return value

    def side(self, name: str, default: int | None = None) -> int:
        """A square size, written as one integer or as two equal ones."""
        value = self.get(name, default)
        if isinstance(value, (list, tuple)):
            if len(value) != 2 or value[0] != value[1]:
                raise UnsupportedModelError(f"{self.where(name)} is {shown(value)}; only square sizes are implemented")
            value = value[0]
        return self._size(name, value, MAX_SIZE)

    def activation(self, default: str, name: str = "hidden_act") -> Activation:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise not_implemented("activation", value, self.where(name), ACTIVATIONS)
        return ACTIVATIONS[value]

    def require(self, name: str, default: Any, implemented: Collection[Any]) -> Any:
        """Returns the value when it is one of `implemented`; refuses any other by the field's name."""
        value = self.get(name, default)
        if value not in implemented:
            raise not_implemented(name, value, self.where(name), implemented)
        return value


def not_implemented(what: str, value: Any, where: str, implemented: Collection[Any]) -> UnsupportedModelError:
    known = ", ".join(str(item) for item in implemented)
    return UnsupportedModelError(f"{what} {shown(value)} ({where}) is not implemented; implemented: {known}")


def is_finite(value: float) -> bool:
    """Whether `value` is a finite float, or an integer that one can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value of a file for an error message, cut to one line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a huge integer"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def head_dim(fields: Fields, hidden: int, heads: int) -> int:
    """`head_dim` as given, else hidden / heads."""
    given = fields.get("head_dim")
    if given is not None:
        return fields.integer("head_dim")
    if hidden % heads:
        raise PackageError(
            f"{fields.where('hidden_size')} {hidden} is not a multiple of num_attention_heads {heads}, "
            "and head_dim is not given"
        )
    return hidden // heads


def square_grid(fields: Fields, image_px: int, patch: int) -> int:
    """Patches a side of a tile; what the last whole patch leaves over is not seen, as in the convolution.

    Raises PackageError for a patch that is larger than the tile, UnsupportedModelError for too many patches.
    """
    grid = image_px // patch
    if grid == 0:
        raise PackageError(f"{fields.where('patch_size')} is {patch}, more than the tile's {image_px} pixels")
    if grid * grid > MAX_PATCHES:
        raise UnsupportedModelError(
            f"{fields.where('patch_size')} is {patch}: a tile of {image_px} pixels has {grid}x{grid} patches; "
            f"at most {MAX_PATCHES:,} are implemented"
        )
    return grid


def rope_spec(fields: Fields, context: int) -> RopeSpec:
    """RoPE from `rope_theta` + `rope_scaling` (transformers v4) or `rope_parameters` (v5).

    Which of several spellings counts is transformers' choice (5.24, modeling_rope_utils.py): a `rope_scaling` that is
    not empty replaces `rope_parameters` whole; `rope_theta` inside the chosen object stands above the one beside it;
    `rope_type` above `type`; an `original_max_position_embeddings` beside the object above the one in it.

    Raises UnsupportedModelError for a kind, a partial rotation or per-layer parameters that are not implemented.
    """
    fields.not_null("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    source = "rope_scaling" if fields.child("rope_scaling").data else "rope_parameters"
    parameters = fields.child(source)
    parameters.not_null(*parameters.data)
    if any(isinstance(value, Mapping) for value in parameters.data.values()):
        raise not_implemented(source, sorted(parameters.data), fields.where(source), ["one set for all layers"])
    type_name = "rope_type" if "rope_type" in parameters.data else "type"
    kind = parameters.get(type_name, "default")
    if kind not in ROPE_KINDS:
        raise not_implemented("rope kind", kind, parameters.where(type_name), ROPE_KINDS)
    theta = parameters.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    if theta < 1:
        raise UnsupportedModelError(
            f"{fields.where('rope_theta')} is {theta:g}; implemented: 1 or more, where wavelengths grow along a head"
        )
    for holder in (fields, parameters):
        holder.require("partial_rotary_factor", 1.0, (1.0,))
    if kind == "default":
        return RopeSpec(theta=theta)
    factor = parameters.positive("factor")
    if kind == "linear":
        return RopeSpec(theta=theta, kind="linear", factor=factor)
    low, high = parameters.positive("low_freq_factor"), parameters.positive("high_freq_factor")
    if high <= low:
        raise PackageError(
            f"{parameters.where('high_freq_factor')} {high:g} must be above low_freq_factor {low:g}: llama3's rule "
            "divides by their difference"
        )
    name = "original_max_position_embeddings"
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=fields.integer(name, parameters.integer(name, context)),
    )


def tied(fields: Fields, default: bool = False) -> bool:
    """`tie_word_embeddings` of the object whose class owns the head; graphs/head.py compares it with what is stored."""
    fields.not_null("tie_word_embeddings")
    return fields.flag("tie_word_embeddings", default)
