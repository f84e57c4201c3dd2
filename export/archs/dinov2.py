"""DINOv2 vision towers: CLS token, position table interpolated to the tile, layer scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.archs.fields import MAX_LAYERS, Fields, head_dim, square_grid
from export.archspec import ArchSpec, NameMap, VisionSpec

NOT_NULL = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size"),
    *("num_channels", "layer_norm_eps", "hidden_act", "qkv_bias", "use_swiglu_ffn"),
)
"""Fields that transformers' Dinov2Config refuses as null."""
IGNORE = (r"(.*\.)?embeddings\.mask_token", r"classifier\..*")


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    """A bare tower: image features are the post-norm patch features, without CLS."""
    fields = Fields(config)
    return ArchSpec(
        model_type="dinov2",
        names=NameMap(vision=vision_names(""), ignore=IGNORE, roots=(("", "dinov2."),)),
        vision=vision_spec(fields, fields.side("image_size", 224)),
    )


def vision_spec(fields: Fields, image_px: int) -> VisionSpec:
    """The tower of a Dinov2Config, for tiles of `image_px` (defaults: transformers 5.24)."""
    fields.not_null(*NOT_NULL)
    fields.require("use_swiglu_ffn", False, (False,))
    fields.require("num_channels", 3, (3,))
    layers = fields.integer("num_hidden_layers", 12, MAX_LAYERS)
    width = fields.integer("hidden_size", 768)
    heads = fields.integer("num_attention_heads", 12)
    patch = fields.side("patch_size", 14)
    square_grid(fields, image_px, patch)
    return VisionSpec(
        layers=layers,
        run_layers=layers,
        width=width,
        heads=heads,
        head_dim=head_dim(fields, width, heads),
        mlp=width * fields.integer("mlp_ratio", 4),
        image_px=image_px,
        patch=patch,
        pos="bicubic",
        pos_grid=square_grid(fields, fields.side("image_size", 224), patch),
        cls=True,
        norm_eps=fields.positive("layer_norm_eps", 1e-6),
        layer_scale=True,
        bias_qkv=fields.flag("qkv_bias", True),
        act=fields.activation("gelu"),
    )


def vision_names(root: str) -> dict[str, str]:
    layer = f"{root}encoder.layer.{{i}}."
    return {
        "patch": f"{root}embeddings.patch_embeddings.projection",
        "pos": f"={root}embeddings.position_embeddings",
        "cls": f"={root}embeddings.cls_token",
        "norm1": f"{layer}norm1",
        "q": f"{layer}attention.attention.query",
        "k": f"{layer}attention.attention.key",
        "v": f"{layer}attention.attention.value",
        "o": f"{layer}attention.output.dense",
        "scale1": f"={layer}layer_scale1.lambda1",
        "norm2": f"{layer}norm2",
        "fc1": f"{layer}mlp.fc1",
        "fc2": f"{layer}mlp.fc2",
        "scale2": f"={layer}layer_scale2.lambda1",
        "final_norm": f"{root}layernorm",
    }
