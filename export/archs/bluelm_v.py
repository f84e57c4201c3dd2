"""bluelm_v, the reference model after BlueLM-V-3B: DINOv2 tower, 2x2 downsampler, two-layer MLP, llama.

`scale_factor` of config.json is the side of the downsampler's blocks, 2 if absent; 1 keeps a token for every patch.

The paper leaves these open; this is our definition: tower without CLS, the token grid padded with zeros right and
bottom to whole blocks, blocks concatenated in (dy, dx, channel) order, Linear 4C → C, then Linear, GELU, Linear.
Pictures: relaxed aspect-ratio matching over 4x4 tiles, thumbnail first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.spec import ProcessorSpec, PromptSpec
from export.archs import dinov2, llama
from export.archs.fields import Fields, shown, square_grid, tied
from export.archs.files import check_image_token, generation_spec
from export.archs.picture_processor import LARGEST, SMALLEST, channels, has_picture_processor, number
from export.archspec import ArchSpec, ConnectorSpec, LinearSpec, NameMap

IMAGE_TOKEN = "<image>"
GRID_SIDE = 4
"""Largest number of tile rows and columns (papers.md 1: the 4x4 box)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AS_STORED = 0
ALPHA_DECIMALS = 6
"""Of relaxed_alpha, which the engine counts with as the fraction that it is written as."""


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    top = Fields(config)
    text, vision_fields = top.child("text_config"), top.child("vision_config")
    text.require("model_type", "llama", ("llama",))
    vision_fields.require("model_type", "dinov2", ("dinov2",))
    tile_px = top.integer("tile_px", vision_fields.side("image_size", 224))
    vision = dinov2.vision_spec(vision_fields, tile_px)
    language = llama.language_spec(text, tied=_tied(top, text))
    image_token_id = top.integer("image_token_id")
    image_token = top.get("image_token", IMAGE_TOKEN)
    if not isinstance(image_token, str) or not image_token:
        raise PackageError(f"{top.where('image_token')} must be a text, found {shown(image_token)}")
    check_image_token(files, image_token, image_token_id)
    grid, factor = square_grid(vision_fields, tile_px, vision.patch), top.integer("scale_factor", 2)
    if factor > grid:
        raise UnsupportedModelError(f"{top.where('scale_factor')} is {factor}; a tile has {grid}x{grid} patches")
    return ArchSpec(
        model_type="bluelm_v",
        names=NameMap(
            vision=dinov2.vision_names("vision_tower."),
            connector={
                "linear.0": "projector.downsampler",
                "linear.1": "projector.mlp.0",
                "linear.2": "projector.mlp.2",
            },
            language=llama.language_names("language_model.model.", "language_model.lm_head"),
            ignore=(*dinov2.IGNORE, *llama.IGNORE),
            roots=(("language_model.model.", "language_model."), ("language_model.lm_head", "lm_head")),
        ),
        language=language,
        vision=vision,
        connector=ConnectorSpec(
            reduce="s2d",
            factor=factor,
            pad="zero",
            linears=(
                LinearSpec(vision.width, True),
                LinearSpec(AS_STORED, True),
                LinearSpec(language.hidden, True),
            ),
            act="gelu",
            act_after=(1,),
        ),
        processor=_processor(top, files, tile_px),
        prompt=PromptSpec(
            image_token=image_token, image_token_id=image_token_id, tokens_per_tile=(-(-grid // factor)) ** 2
        ),
        generation=generation_spec(top, text, files),
    )


def _tied(top: Fields, text: Fields) -> bool:
    """The language model's own flag; the top level may repeat it, or say it alone, and not contradict it."""
    inner = tied(text)
    outer = tied(top, inner)
    if outer != inner and "tie_word_embeddings" in text.data:
        raise PackageError(
            f"{top.where('tie_word_embeddings')} is {str(outer).lower()}, {text.where('tie_word_embeddings')} is "
            f"{str(inner).lower()}; leave one of the two out"
        )
    return outer


def _processor(top: Fields, files: Mapping[str, bytes], tile_px: int) -> ProcessorSpec:
    if has_picture_processor(files):
        raise UnsupportedModelError(
            "a bluelm_v says how its pictures are processed in config.json (tile_px, max_tiles, relaxed_alpha, "
            "image_mean, image_std), and there is a preprocessor_config.json or an image_processor in "
            "processor_config.json beside it, which nothing would read; remove that"
        )
    alpha = number(top.get("relaxed_alpha", 0.1), top.where("relaxed_alpha"), 0, 1)
    if round(alpha, ALPHA_DECIMALS) != alpha:
        raise UnsupportedModelError(
            f"{top.where('relaxed_alpha')} is {alpha!r}; at most {ALPHA_DECIMALS} decimals are implemented"
        )
    return ProcessorSpec(
        scheme="relaxed",
        tile_px=tile_px,
        resample="bicubic",
        # The mean is the colour of the padding too, so it is a share of white.
        image_mean=channels(top.get("image_mean", IMAGENET_MEAN), top.where("image_mean"), 0, 1),
        image_std=channels(top.get("image_std", IMAGENET_STD), top.where("image_std"), SMALLEST, LARGEST),
        thumbnail="first",
        max_rows=GRID_SIDE,
        max_cols=GRID_SIDE,
        max_tiles=min(top.integer("max_tiles", GRID_SIDE * GRID_SIDE), GRID_SIDE * GRID_SIDE),
        relaxed_alpha=alpha,
    )
