"""Qwen2 and Qwen2.5 language models: llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.archs.fields import Fields, tied
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


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    fields = Fields(config)
    fields.require("use_sliding_window", False, (False,))
    layer_types = fields.get("layer_types", ())
    for kind in layer_types:
        Fields({"layer_types": kind}).require("layer_types", "full_attention", ("full_attention",))
    language = language_spec(
        fields, tied=tied(fields, fields, QWEN2.tie_word_embeddings), defaults=QWEN2, bias_qkv=True
    )
    return ArchSpec(
        model_type="qwen2",
        names=NameMap(language=language_names("model.", "lm_head"), ignore=IGNORE, roots=(("model.", ""),)),
        language=language,
        generation=generation_spec(fields, fields, files),
    )
