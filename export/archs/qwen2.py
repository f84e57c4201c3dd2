"""Qwen2 and Qwen2.5 language models: llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from export.archs.fields import Fields, not_implemented, shown, tied
from export.archs.files import generation_spec
from export.archs.llama import IGNORE, LlamaDefaults, language_names, language_spec
from export.archspec import ArchSpec, NameMap

QWEN2 = LlamaDefaults(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
)
"""Class defaults of transformers' Qwen2Config (5.24)."""
SLIDING_WINDOW, MAX_WINDOW_LAYERS = 4096, 28
"""The same class's, for a config that uses a window and leaves these out."""


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    fields = Fields(config)
    language = language_spec(fields, tied=tied(fields), defaults=QWEN2, biases=True)
    _check_layer_types(fields, len(language.layer_kinds))
    return ArchSpec(
        model_type="qwen2",
        names=NameMap(language=language_names("model.", "lm_head"), ignore=IGNORE, roots=(("model.", ""),)),
        language=language,
        generation=generation_spec(fields, fields, files),
    )


def _check_layer_types(fields: Fields, n_layers: int) -> None:
    """Raises unless every layer sees everything.

    `layer_types` decides where it is given. Else the layers from `max_window_layers` on slide, if `use_sliding_window`
    says so and there is a window: many configs name a window that they do not use.
    """
    fields.not_null("use_sliding_window", "max_window_layers")
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != n_layers:
            raise PackageError(
                f"{fields.where('layer_types')} must be a list of num_hidden_layers ({n_layers}) names, "
                f"found {shown(kinds)}"
            )
        for kind in kinds:
            Fields({"layer_types": kind}).require("layer_types", "full_attention", ("full_attention",))
        return
    uses = fields.flag("use_sliding_window", False)
    window = fields.data.get("sliding_window", SLIDING_WINDOW)
    first = fields.get("max_window_layers", MAX_WINDOW_LAYERS)
    if isinstance(first, bool) or not isinstance(first, int):
        raise PackageError(f"{fields.where('max_window_layers')} must be an integer, found {shown(first)}")
    if uses and window is not None and first < n_layers:
        raise not_implemented(
            "use_sliding_window", True, fields.where("use_sliding_window"), [f"False, or max_window_layers {n_layers}"]
        )
