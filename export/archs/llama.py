"""Llama and its like (SmolLM2, Llama 3.x): RMS norm, RoPE, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.archs.fields import MAX_LAYERS, Fields, head_dim, rope_spec, tied
from export.archs.files import generation_spec
from export.archspec import ArchSpec, LayerKind, LMSpec, NameMap


@dataclass(frozen=True)
class LlamaDefaults:
    """Class defaults of transformers' LlamaConfig (5.24), for what a sparse config leaves out."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    """Of a config without the field; null in a config is always as many as heads."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6


LLAMA = LlamaDefaults()
NOT_NULL = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias"),
)
"""Fields that transformers' LlamaConfig and Qwen2Config refuse as null."""
IGNORE = (r"(.*\.)?rotary_emb\.inv_freq",)


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    fields = Fields(config)
    language = language_spec(fields, tied=tied(fields))
    return ArchSpec(
        model_type="llama",
        names=NameMap(language=language_names("model.", "lm_head"), ignore=IGNORE, roots=(("model.", ""),)),
        language=language,
        generation=generation_spec(fields, fields, files),
    )


def language_spec(fields: Fields, *, tied: bool, defaults: LlamaDefaults = LLAMA, biases: bool | None = None) -> LMSpec:
    """LMSpec of a llama-shaped config.

    `biases` None reads `attention_bias`, which covers q, k, v and o, and `mlp_bias`; True and False say whether q, k
    and v alone have one, whatever the config says.
    """
    fields.not_null(*NOT_NULL)
    layers = fields.integer("num_hidden_layers", defaults.num_hidden_layers, MAX_LAYERS)
    hidden = fields.integer("hidden_size", defaults.hidden_size)
    heads = fields.integer("num_attention_heads", defaults.num_attention_heads)
    absent = heads if "num_key_value_heads" in fields.data else defaults.num_key_value_heads or heads
    context = fields.integer("max_position_embeddings", defaults.max_position_embeddings)
    full: LayerKind = "full"
    attention_bias = fields.flag("attention_bias", False) if biases is None else False
    return LMSpec(
        layer_kinds=(full,) * layers,
        hidden=hidden,
        heads=heads,
        head_dim=(head_dim(fields, hidden, heads),) * layers,
        kv_heads=(fields.integer("num_key_value_heads", absent),) * layers,
        mlp=(fields.integer("intermediate_size", defaults.intermediate_size),) * layers,
        vocab=fields.integer("vocab_size", defaults.vocab_size),
        context=context,
        ropes=(("full", rope_spec(fields, context)),),
        norm_eps=fields.positive("rms_norm_eps", defaults.rms_norm_eps),
        bias_qkv=attention_bias if biases is None else biases,
        bias_o=attention_bias,
        bias_mlp=fields.flag("mlp_bias", False) if biases is None else False,
        mlp_act=fields.activation("silu"),
        tied=tied,
    )


def language_names(root: str, head: str) -> dict[str, str]:
    """Tensor names by role, below `root` ('model.' in a bare language model)."""
    layer = f"{root}layers.{{i}}."
    return {
        "embed": f"{root}embed_tokens",
        "final_norm": f"{root}norm",
        "lm_head": head,
        "input_norm": f"{layer}input_layernorm",
        "q": f"{layer}self_attn.q_proj",
        "k": f"{layer}self_attn.k_proj",
        "v": f"{layer}self_attn.v_proj",
        "o": f"{layer}self_attn.o_proj",
        "post_norm": f"{layer}post_attention_layernorm",
        "gate": f"{layer}mlp.gate_proj",
        "up": f"{layer}mlp.up_proj",
        "down": f"{layer}mlp.down_proj",
    }
