"""decoder_model_merged: inputs_embeds and the cache → logits and the cache; prefill and decode in one graph."""

from __future__ import annotations

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.spec import CacheEntry
from export.archspec import LMSpec, RopeSpec
from export.graphs.ops.forms import Ops
from export.graphs.ops.storage import Table
from export.graphs.positions import inverse_frequencies
from export.graphs.supported import check_supported


def build_decoder(ops: Ops, spec: LMSpec, names: dict[str, str], tied_table: Table | None) -> tuple[CacheEntry, ...]:
    """Builds the graph's nodes; `tied_table` is the embedding when the head is tied. Returns the cache entries."""
    _check(spec)
    builder = ops.builder
    ops.storage.part = "layers"
    cache = tuple(entry for i in range(len(spec.layer_kinds)) for entry in _cache_entries(spec, i))
    rope = dict(spec.ropes)["full"]
    embeds = ops.decoder_inputs(spec.hidden, cache, inverse_frequencies(rope, spec.head_dim[0]))

    with builder.scope("model", "layers.0", "input_layernorm"):
        normed = ops.rms_norm(embeds, names["input_norm"].format(i=0), spec.hidden, spec.norm_eps)
    residual, last = embeds, len(spec.layer_kinds) - 1
    for i in range(last + 1):
        layer = {role: name.format(i=i) for role, name in names.items()}
        with builder.scope("model", f"layers.{i}", "attn"):
            attended = _attention(ops, spec, i, layer, normed)
        with builder.scope("model", f"layers.{i}", "post_attention_layernorm"):
            normed, residual = ops.add_rms_norm(residual, attended, layer["post_norm"], spec.hidden, spec.norm_eps)
        with builder.scope("model", f"layers.{i}", "mlp"):
            hidden = _mlp(ops, spec, i, layer, normed)
        if i < last:
            with builder.scope("model", f"layers.{i + 1}", "input_layernorm"):
                stem = names["input_norm"].format(i=i + 1)
                normed, residual = ops.add_rms_norm(residual, hidden, stem, spec.hidden, spec.norm_eps)
            builder.boundaries.append(residual)

    with builder.scope("model", "norm"):
        residual, hidden = ops.kept_rows(residual, hidden)
        normed, _ = ops.add_rms_norm(residual, hidden, names["final_norm"], spec.hidden, spec.norm_eps, keep_sum=False)
    with builder.scope("lm_head"):
        logits = ops.head(normed, names["embed" if spec.tied else "lm_head"], spec.vocab, spec.hidden, tied_table)
    ops.decoder_outputs(logits, spec.vocab, cache)
    return cache


def _check(spec: LMSpec) -> None:
    check_supported(spec)
    ropes = dict(spec.ropes)
    for rope in ropes.values():
        check_supported(rope)
    if not isinstance(ropes.get("full"), RopeSpec) or len(ropes) != 1:
        raise UnsupportedModelError(f"LMSpec.ropes names {sorted(ropes)}; implemented: one RopeSpec for 'full'")
    if len(set(spec.head_dim)) != 1:
        raise UnsupportedModelError(f"LMSpec.head_dim differs between layers: {sorted(set(spec.head_dim))}")
    for kv_heads in set(spec.kv_heads):
        if spec.heads % kv_heads:
            raise PackageError(
                f"num_attention_heads {spec.heads} is not a multiple of num_key_value_heads {kv_heads} (config.json)"
            )
    if spec.head_dim[0] % 2:
        raise PackageError(f"head_dim {spec.head_dim[0]} is odd; rotary embedding needs pairs (config.json: head_dim)")


def _cache_entries(spec: LMSpec, i: int) -> tuple[CacheEntry, CacheEntry]:
    shape = (spec.kv_heads[i], "P", spec.head_dim[i])
    return (
        CacheEntry("key", i, f"past_key_values.{i}.key", f"present.{i}.key", shape),
        CacheEntry("value", i, f"past_key_values.{i}.value", f"present.{i}.value", shape),
    )


def _attention(ops: Ops, spec: LMSpec, i: int, layer: dict[str, str], x: str) -> str:
    builder = ops.builder
    n_query, n_key = spec.heads * spec.head_dim[i], spec.kv_heads[i] * spec.head_dim[i]
    projected = []
    for role, n_out in (("q", n_query), ("k", n_key), ("v", n_key)):
        with builder.scope(f"{role}_proj"):
            projected.append(ops.linear(x, layer[role], spec.hidden, n_out, spec.bias_qkv))
    query, key, value = projected
    attended = ops.cached_attention(
        (query, key, value), i, spec.heads, spec.kv_heads[i], spec.head_dim[i], spec.attn_scale
    )
    with builder.scope("o_proj"):
        return ops.linear(attended, layer["o"], n_query, spec.hidden, spec.bias_o)


def _mlp(ops: Ops, spec: LMSpec, i: int, layer: dict[str, str], x: str) -> str:
    builder, width = ops.builder, spec.mlp[i]
    with builder.scope("gate_proj"):
        gate = ops.linear(x, layer["gate"], spec.hidden, width, spec.bias_mlp)
    with builder.scope("up_proj"):
        up = ops.linear(x, layer["up"], spec.hidden, width, spec.bias_mlp)
    gated = builder.node("Mul", [ops.activation(gate, spec.mlp_act), up], name="Mul")
    with builder.scope("down_proj"):
        return ops.linear(gated, layer["down"], width, spec.hidden, spec.bias_mlp)
