"""SigLIP vision towers: learned positions, no CLS; the features are taken after the final norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.spec import ProcessorSpec
from export.archs.fields import MAX_LAYERS, Fields, square_grid
from export.archs.picture_processor import PictureProcessor, has_picture_processor
from export.archspec import ArchSpec, NameMap, VisionSpec

NOT_NULL = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"),
    *("num_channels", "layer_norm_eps", "hidden_act"),
)
"""Fields that transformers' SiglipVisionConfig and its kin refuse as null."""
IGNORE = (
    r"(.*\.)?embeddings\.position_ids",
    r"(vision_model\.)?head\..*",
    r"text_model\..*",
    r"logit_scale",
    r"logit_bias",
)
"""The pooling head and, in a whole SigLIP file, the text side: image features use neither."""
HALF = (0.5, 0.5, 0.5)
BICUBIC = 3


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    """A bare tower, from a SiglipVisionModel or from the vision side of a whole SigLIP."""
    fields = Fields(config)
    vision = fields.child("vision_config") if fields.get("model_type") == "siglip" else fields
    spec = vision_spec(vision, pos="table")
    return ArchSpec(
        model_type="siglip",
        names=NameMap(vision=vision_names("vision_model."), ignore=IGNORE, roots=(("vision_model.", ""),)),
        vision=spec,
        processor=_processor(config, files, spec.image_px) if has_picture_processor(files) else None,
    )


def _processor(config: Mapping[str, Any], files: Mapping[str, bytes], image_px: int) -> ProcessorSpec:
    processing = PictureProcessor(files, config, ("SiglipImageProcessor",))
    processing.require_size(image_px, default=224)
    values = processing.pixel_values(HALF, HALF)
    return ProcessorSpec(
        scheme="square",
        tile_px=image_px,
        resample=processing.resample(BICUBIC),
        image_mean=values.mean,
        image_std=values.std,
        rescale_factor=values.factor,
    )


def vision_spec(
    fields: Fields, *, pos: str, width: int = 768, heads: int = 12, image_px: int = 224, patch_px: int = 16
) -> VisionSpec:
    """The tower of a SiglipVisionConfig; the keyword arguments are the class defaults (transformers 5.24)."""
    fields.not_null(*NOT_NULL)
    fields.require("num_channels", 3, (3,))
    layers = fields.integer("num_hidden_layers", 12, MAX_LAYERS)
    width = fields.integer("hidden_size", width)
    heads = fields.integer("num_attention_heads", heads)
    if width % heads:
        raise PackageError(f"{fields.where('hidden_size')} {width} is not a multiple of num_attention_heads {heads}")
    patch = fields.side("patch_size", patch_px)
    image = fields.side("image_size", image_px)
    return VisionSpec(
        layers=layers,
        run_layers=layers,
        width=width,
        heads=heads,
        head_dim=width // heads,
        mlp=fields.integer("intermediate_size", 3072),
        image_px=image,
        patch=patch,
        pos="bucket" if pos == "bucket" else "table",
        pos_grid=square_grid(fields, image, patch),
        norm_eps=fields.positive("layer_norm_eps", 1e-6),
        act=fields.activation("gelu_pytorch_tanh"),
    )


def vision_names(root: str) -> dict[str, str]:
    layer = f"{root}encoder.layers.{{i}}."
    return {
        "patch": f"{root}embeddings.patch_embedding",
        "pos": f"{root}embeddings.position_embedding",
        "norm1": f"{layer}layer_norm1",
        "q": f"{layer}self_attn.q_proj",
        "k": f"{layer}self_attn.k_proj",
        "v": f"{layer}self_attn.v_proj",
        "o": f"{layer}self_attn.out_proj",
        "norm2": f"{layer}layer_norm2",
        "fc1": f"{layer}mlp.fc1",
        "fc2": f"{layer}mlp.fc2",
        "final_norm": f"{root}post_layernorm",
    }
