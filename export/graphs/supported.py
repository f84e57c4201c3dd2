"""Which values of the ArchSpec fields the builders implement. A value outside these tables is refused by its field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from edgevlm.errors import UnsupportedModelError
from edgevlm.spec import ProcessorSpec
from export.archspec import ArchSpec, ConnectorSpec, LMSpec, NameMap, RopeSpec, VisionSpec

ANY = None

DECODER: dict[str, tuple[Any, ...] | None] = {
    "layer_kinds": ("full",),
    "hidden": ANY,
    "heads": ANY,
    "head_dim": ANY,
    "kv_heads": ANY,
    "mlp": ANY,
    "vocab": ANY,
    "context": ANY,
    "ropes": ANY,
    "window": (None,),
    "norm": ("rms",),
    "norm_eps": ANY,
    "placement": ("pre",),
    "skip_first_norm": (False,),
    "bias_qkv": ANY,
    "bias_o": ANY,
    "bias_mlp": ANY,
    "qk_norm": ("none",),
    "v_norm": (False,),
    "clip_qkv": (None,),
    "attn_scale": ANY,
    "attn_softcap": (None,),
    "out_gate": ("none",),
    "q_pos_scale": (None,),
    "mlp_act": ANY,
    "fused_gate_up": (False,),
    "moe_experts": (0,),
    "moe_top_k": (0,),
    "moe_order": ANY,
    "moe_renorm": (False,),
    "moe_dense_layers": ((),),
    "embed_scale": (1.0,),
    "embed_scale_scope": ("tokens",),
    "residual_scale": (1.0,),
    "logit_scale": (1.0,),
    "final_softcap": (None,),
    "layer_scalar": (False,),
    "tied": ANY,
    "mask": ("causal",),
    "kv_source": ((),),
    "ple_width": (0,),
    "ple_vocab": (0,),
    "deepstack": ((),),
    "zero_image_embeds": (False,),
    "conv_kernel": (0,),
    "delta_key_heads": (0,),
    "delta_value_heads": (0,),
    "delta_key_dim": (0,),
    "delta_value_dim": (0,),
    "delta_kernel": (0,),
}
ROPE: dict[str, tuple[Any, ...] | None] = {
    "theta": ANY,
    "kind": ("default", "linear", "llama3"),
    "rotary_dim": (None,),
    "rotation": ("half",),
    "factor": ANY,
    "low_freq_factor": ANY,
    "high_freq_factor": ANY,
    "original_max_position_embeddings": ANY,
    "beta_fast": ANY,
    "beta_slow": ANY,
    "attention_factor": (None,),
    "short_factor": ((),),
    "long_factor": ((),),
    "mrope_section": ((),),
    "mrope_layout": ("none",),
}
VISION: dict[str, tuple[Any, ...] | None] = {
    "layers": ANY,
    "run_layers": ANY,
    "width": ANY,
    "heads": ANY,
    "head_dim": ANY,
    "mlp": ANY,
    "image_px": ANY,
    "patch": ANY,
    "kv_heads": (None,),
    "temporal_patch": (1,),
    "patch_layout": ("image",),
    "patch_bias": ANY,
    "pos": ("table", "bucket", "bicubic"),
    "pos_grid": ANY,
    "pos_input": ("constant",),
    "rope": ("none",),
    "rope_theta": ANY,
    "rope_rotation": ("half",),
    "rope_offset": (0,),
    "cls": ANY,
    "embed_norm": ("none",),
    "norm": ("ln",),
    "norm_eps": ANY,
    "placement": ("pre",),
    "layer_scale": ANY,
    "qkv": ("split",),
    "bias_qkv": ANY,
    "bias_out": ANY,
    "qk_norm": ("none",),
    "v_norm": (False,),
    "attn_scale": ANY,
    "mlp_kind": ("plain",),
    "mlp_bias": ANY,
    "act": ANY,
    "mask": ("full",),
    "window": (None,),
    "full_layers": ((),),
    "concat": (False,),
    "features": ((-1,),),
    "drop_cls": (True,),
    "final_norm_applied": (True,),
    "taps": ((),),
    "mid_merge": (None,),
}
CONNECTOR: dict[str, tuple[Any, ...] | None] = {
    "reduce": ("none", "s2d"),
    "factor": ANY,
    "order": ("yx_c",),
    "when": ("before",),
    "pad": ("none", "zero"),
    "norm": ("none",),
    "norm_on": ANY,
    "norm_eps": ANY,
    "linears": ANY,
    "act": ANY,
    "act_after": ANY,
    "gated": (False,),
    "stored_transposed": (False,),
    "out_scale": (1.0,),
    "extra": ("none",),
    "newline": (False,),
}
NAMES: dict[str, tuple[Any, ...] | None] = {
    "vision": ANY,
    "connector": ANY,
    "language": ANY,
    "ignore": ANY,
    "roots": ANY,
    "transforms": ((),),
}
PROCESSOR: dict[str, tuple[Any, ...] | None] = {
    "scheme": ("square", "relaxed", "tile_grid", "internvl"),
    "tile_px": ANY,
    "resample": ANY,
    "image_mean": ANY,
    "image_std": ANY,
    "rescale_factor": ANY,
    "thumbnail": ANY,
    "max_rows": ANY,
    "max_cols": ANY,
    "max_tiles": ANY,
    "min_pixels": (None,),
    "max_pixels": (None,),
    "relaxed_alpha": ANY,
    "longest_edge_px": ANY,
    "grid_pinpoints": ((),),
}
TABLES: dict[type[Any], dict[str, tuple[Any, ...] | None]] = {
    LMSpec: DECODER,
    RopeSpec: ROPE,
    VisionSpec: VISION,
    ConnectorSpec: CONNECTOR,
    NameMap: NAMES,
    ProcessorSpec: PROCESSOR,
}
Spec = LMSpec | RopeSpec | VisionSpec | ConnectorSpec | NameMap | ProcessorSpec
PER_LAYER = ("layer_kinds",)


def check_all(spec: ArchSpec) -> None:
    """Raises UnsupportedModelError for the first field of any part whose value no builder implements."""
    ropes = () if spec.language is None else tuple(rope for _, rope in spec.language.ropes)
    for part in (spec.names, spec.vision, spec.connector, spec.processor, spec.language, *ropes):
        if part is not None:
            check_supported(part)


def check_supported(spec: Spec) -> None:
    """Raises UnsupportedModelError for the first field whose value no builder implements."""
    table = TABLES[type(spec)]
    for field in fields(spec):
        allowed = table.get(field.name, ())
        if allowed is ANY:
            continue
        value = getattr(spec, field.name)
        for item in value if field.name in PER_LAYER else (value,):
            if item not in allowed:
                known = ", ".join(str(choice) for choice in allowed)
                raise UnsupportedModelError(
                    f"{type(spec).__name__}.{field.name} = {item!r} is not implemented; implemented: {known}"
                )
