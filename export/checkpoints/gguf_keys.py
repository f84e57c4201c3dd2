"""What becomes of each metadata key of a GGUF file: read, refused unless it has the value that changes nothing, or
left alone because nothing that is computed depends on it.

Keys below the architecture's own prefix and below `tokenizer.` that stand in no table here are refused by name: a key
that this module does not know may change the computation. Keys of other prefixes (`general.`, `quantize.`, a tool's
own) describe a file; those few that do more are in the tables.

Source: llama.cpp b11549 (src/llama-arch.cpp's LLM_KV names; which of them `llama` and `qwen2` read: llama-model.cpp,
load_hparams; llama-vocab.cpp, load; llama-model-loader.cpp).
"""

from __future__ import annotations

from typing import Any

from edgevlm.errors import UnsupportedModelError
from export.checkpoints.gguf_container import GGUFFile

ARCH_READ = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        "attention.layer_norm_rms_epsilon",
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    }
)
"""Keys below `llama.` or `qwen2.` that gguf_model.py and gguf_rope.py read."""

ARCH_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "swin_norm": (False,),
    "pooling_type": (0,),
    "nextn_predict_layers": (0,),
    "leading_dense_block_count": (0,),
    "embedding_length_per_layer_input": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0,),
    "expert_group_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.value_scale": (0.0, 1.0),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "rope.dimension_sections": ([0, 0, 0, 0],),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (-1.0, 0.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
}
"""Keys that change what a model computes, in llama.cpp or in the model that the file was made from, and the values
that change nothing."""

ARCH_IDLE: dict[str, str] = {
    "tensor_data_layout": "names the layout that a file was converted from; the tensors are in llama.cpp's order",
    "attention.layer_norm_epsilon": "is of layer norms; these models have RMS norms, with an epsilon of their own",
    "attention.group_norm_epsilon": "is of group norms, which these models do not have",
    "attention.group_norm_groups": "is of group norms, which these models do not have",
    "attention.sliding_window_pattern": "places windows, and attention.sliding_window says that there are none",
    "attention.temperature_length": "is the length of a temperature, which attention.temperature_scale says is off",
    "expert_feed_forward_length": "is the size of experts, which expert_count says are none",
    "expert_shared_feed_forward_length": "is the size of experts, which expert_count says are none",
    "expert_gating_func": "chooses among experts, which expert_count says are none",
    "expert_weights_norm": "weighs experts, which expert_count says are none",
    "expert_weights_scale": "weighs experts, which expert_count says are none",
    "moe_every_n_layers": "places experts, which expert_count says are none",
    "interleave_moe_layer_step": "places experts, which expert_count says are none",
    "rope.freq_base_swa": "is of layers with a window, and attention.sliding_window says that there are none",
    "rope.dimension_count_swa": "is of layers with a window, and attention.sliding_window says that there are none",
    "attention.key_length_swa": "is of layers with a window, and attention.sliding_window says that there are none",
    "attention.value_length_swa": "is of layers with a window, and attention.sliding_window says that there are none",
    "rope.scaling.original_context_length": "is of YaRN and LongRoPE, which rope.scaling.type says are off",
    "rope.scaling.finetuned": "tells whether the model was trained with its scaling; llama.cpp prints it",
    "rope.scaling.yarn_log_multiplier": "is of YaRN, which rope.scaling.type says is off",
    "rope.scaling.yarn_beta_fast": "is of YaRN, which rope.scaling.type says is off",
    "rope.scaling.yarn_beta_slow": "is of YaRN, which rope.scaling.type says is off",
    "decoder_start_token_id": "starts the decoder of an encoder-decoder, which these models are not",
}
"""Keys that change nothing in a `llama` or `qwen2` model, and why."""

TOKENIZER_READ = frozenset(
    {
        *("tokenizer.chat_template", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"),
        *("tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges"),
        *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
        "tokenizer.ggml.eos_token_ids",
        *(f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token", "space_prefix")),
    }
)
"""Keys that gguf_tokenizer.py reads."""

TOKENIZER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.precompiled_charsmap": ([],),
    "tokenizer.ggml.normalizer.lowercase": (False,),
    "tokenizer.ggml.normalizer.strip_accents": (False,),
    "tokenizer.ggml.suppress_tokens": ([],),
}
"""Keys that change ids or which of them may be answered, and the values that change nothing."""

TOKENIZER_IDLE: dict[str, str] = {
    "tokenizer.ggml.remove_extra_whitespaces": "is of unigram vocabularies ('t5'); llama.cpp leaves it for BPE and SPM",
    "tokenizer.ggml.token_type_count": "counts BERT's segments",
    "tokenizer.ggml.added_tokens": "repeats tokens that tokenizer.ggml.tokens has; llama.cpp does not read it",
    "tokenizer.huggingface.json": "is the original tokenizer; llama.cpp does not read it, ids follow tokenizer.ggml.*",
    "tokenizer.chat_templates": "lists the names of further chat templates; the default one is read",
    **{
        f"tokenizer.ggml.{name}_token_id": "names a token that is not added to a text and does not end one"
        for name in (
            *("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle", "image", "audio"),
            *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
        )
    },
}
"""Keys that change no id, and why."""

NAMED_TEMPLATE = "tokenizer.chat_template."
"""Starts the keys of further chat templates, which are left alone."""

GENERAL_NEUTRAL: dict[str, tuple[Any, ...]] = {"general.quantization_version": (2,)}
"""2 is the layout of quantised blocks since May 2023 (ggml.h, GGML_QNT_VERSION)."""

FILE_TYPES = {
    "adapter": "an adapter (LoRA) without its model; merge it into the base model first (llama-export-lora)",
    "mmproj": "only the vision part of a model (mmproj); give the language model's file, or the original checkpoint",
    "imatrix": "an importance matrix for quantising, not a model; give the model's file",
    "vocab": "a vocabulary without weights; give the model's file",
}
"""`general.type` → what the file is, for those that are no models."""


def check_keys(file: GGUFFile, arch: str) -> None:
    """Raises UnsupportedModelError naming a key that is not read and may change what the model computes."""
    neutral = {f"{arch}.{key}": values for key, values in ARCH_NEUTRAL.items()}
    for key, accepted in {**neutral, **TOKENIZER_NEUTRAL, **GENERAL_NEUTRAL}.items():
        value = file.metadata.get(key)
        if value is not None and not any(_same(value, one) for one in accepted):
            raise UnsupportedModelError(
                f"{file.path} sets '{key}' to {_shown(value)}, which is not supported for GGUF files."
            )
    known = {f"{arch}.{key}" for key in (*ARCH_READ, *ARCH_NEUTRAL, *ARCH_IDLE)}
    known |= {*TOKENIZER_READ, *TOKENIZER_NEUTRAL, *TOKENIZER_IDLE}
    for key, value in file.metadata.items():
        ours = key.startswith((f"{arch}.", "tokenizer."))
        if ours and key not in known and not key.startswith(NAMED_TEMPLATE):
            raise UnsupportedModelError(
                f"{file.path} sets '{key}' to {_shown(value)}; what it changes is not known for {arch!r}, so the file "
                "is not read. Give the checkpoint that it was made from."
            )


def check_kind(file: GGUFFile) -> None:
    """Raises UnsupportedModelError for a file that is an adapter, a vision part or another thing than a model."""
    kind = file.metadata.get("general.type", "model")
    if file.metadata.get("general.architecture") == "clip":
        kind = "mmproj"
    if kind != "model":
        what = FILE_TYPES.get(kind, "no model") if isinstance(kind, str) else "no model"
        raise UnsupportedModelError(f"{file.path} is {what} ('general.type' or 'general.architecture' says so).")


def _same(value: Any, accepted: Any) -> bool:
    """Whether two values are equal and both flags or both none: 1 == True in Python."""
    return bool(isinstance(value, bool) == isinstance(accepted, bool) and value == accepted)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
