"""Reading config.json: class defaults for sparse files, both RoPE dialects, refusals by field name."""

from __future__ import annotations

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


class Fields:
    """One object of config.json. A field that is absent or null takes the default of its HF config class."""

    def __init__(self, data: Mapping[str, Any], path: str = "") -> None:
        self.data = data
        self.path = path

    def where(self, name: str) -> str:
        return f"config.json: {self.path}{name}"

    def child(self, name: str) -> Fields:
        value = self.data.get(name) or {}
        if not isinstance(value, Mapping):
            raise PackageError(f"{self.where(name)} must be an object, found {type(value).__name__}")
        return Fields(value, f"{self.path}{name}.")

    def get(self, name: str, default: Any = None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise PackageError(f"{self.where(name)} must be a positive integer, found {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PackageError(f"{self.where(name)} must be a number, found {value!r}")
        return float(value)

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
                raise UnsupportedModelError(f"{self.where(name)} is {list(value)}; only square sizes are implemented")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise PackageError(f"{self.where(name)} must be a positive integer, found {value!r}")
        return value

    def activation(self, default: str, name: str = "hidden_act") -> Activation:
        value = self.get(name, default)
        if value not in ACTIVATIONS:
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
    return UnsupportedModelError(f"{what} {value!r} ({where}) is not implemented; implemented: {known}")


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


def rope_spec(fields: Fields, context: int) -> RopeSpec:
    """RoPE from `rope_theta` + `rope_scaling` (transformers v4) or `rope_parameters` (v5).

    Raises UnsupportedModelError for a kind, a partial rotation or per-layer parameters that are not implemented.
    """
    source = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    parameters = fields.child(source)
    if any(isinstance(value, Mapping) for value in parameters.data.values()):
        raise not_implemented(source, sorted(parameters.data), fields.where(source), ["one set for all layers"])
    type_name = "rope_type" if "rope_type" in parameters.data else "type"
    kind = parameters.get(type_name, "default")
    if kind not in ROPE_KINDS:
        raise not_implemented("rope kind", kind, parameters.where(type_name), ROPE_KINDS)
    theta = parameters.number("rope_theta", fields.number("rope_theta", 10000.0))
    for holder in (fields, parameters):
        holder.require("partial_rotary_factor", 1.0, (1.0,))
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind == "linear":
        return RopeSpec(theta=theta, kind="linear", factor=parameters.number("factor"))
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=parameters.number("factor"),
        low_freq_factor=parameters.number("low_freq_factor"),
        high_freq_factor=parameters.number("high_freq_factor"),
        original_max_position_embeddings=parameters.integer("original_max_position_embeddings", context),
    )


def tied(top: Fields, text: Fields, default: bool) -> bool:
    """`tie_word_embeddings` at the top level first, then in the text config, then the class default."""
    return top.flag("tie_word_embeddings", text.flag("tie_word_embeddings", default))
