"""Idefics3 and SmolVLM: SigLIP tower with bucketed positions, space-to-depth, one linear, llama.

`IDEFICS3` and `SMOLVLM` hold what differs; the rest is one reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.spec import ProcessorSpec, PromptSpec
from edgevlm.tiling import MAX_LONGEST_EDGE_PX
from export.archs import llama, siglip
from export.archs.fields import Fields, tied
from export.archs.files import check_image_token, generation_spec, read_json
from export.archs.picture_processor import Edges, PictureProcessor, refused
from export.archspec import ArchSpec, ConnectorSpec, LinearSpec, NameMap, VisionSpec

WITHOUT_TEXT_CONFIG = replace(llama.LLAMA, rms_norm_eps=1e-5)
"""The language model of a config that says nothing of it."""
HALF = (0.5, 0.5, 0.5)
LANCZOS = 1
PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
"""The two are one program."""
MAX_SIDE_TILES = 64
"""Rows and columns of a grid that packages and the engine take."""


@dataclass(frozen=True)
class Variant:
    """One model type of the family: class defaults of its configs and processors (transformers 5.24)."""

    model_type: str
    image_token_id: int = 128257
    scale_factor: int = 2
    tile_px: int = 364
    image_token: str = "<image>"
    around_token: str = "<fake_token_around_image>"
    global_token: str = "<global-img>"
    tokens_by_name: bool = False
    """Whether the processor takes these three from the tokenizer where tokenizer_config.json names them."""


IDEFICS3 = Variant("idefics3")


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    return whole_spec(config, files, IDEFICS3)


def whole_spec(config: Mapping[str, Any], files: Mapping[str, bytes], variant: Variant) -> ArchSpec:
    top = Fields(config)
    top.not_null("image_token_id", "scale_factor")
    text, vision_fields = top.child("text_config"), top.child("vision_config")
    text.require("model_type", "llama", ("llama",))
    vision = siglip.vision_spec(vision_fields, pos="bucket", width=1152, heads=16, image_px=224, patch_px=32)
    factor = top.integer("scale_factor", variant.scale_factor)
    grid = vision.image_px // vision.patch
    if grid % factor:
        raise UnsupportedModelError(
            f"{top.where('scale_factor')} {factor} does not divide the tower's {grid}x{grid} patches"
        )
    defaults = llama.LLAMA if top.get("text_config") is not None else WITHOUT_TEXT_CONFIG
    language = llama.language_spec(text, tied=tied(top), defaults=defaults)
    n_tokens = (grid // factor) ** 2
    return ArchSpec(
        model_type=variant.model_type,
        names=NameMap(
            vision=siglip.vision_names("model.vision_model."),
            connector={"linear.0": "model.connector.modality_projection.proj"},
            language=llama.language_names("model.text_model.", "lm_head"),
            ignore=(*llama.IGNORE, r"(.*\.)?embeddings\.position_ids"),
            roots=(("model.", ""),),
        ),
        language=language,
        vision=vision,
        connector=ConnectorSpec(
            reduce="s2d", factor=factor, linears=(LinearSpec(language.hidden, False),), act_after=()
        ),
        processor=_processor(config, files, variant, vision),
        prompt=_prompt(top, files, variant, n_tokens),
        generation=generation_spec(top, text, files),
    )


def _processor(
    config: Mapping[str, Any], files: Mapping[str, bytes], variant: Variant, vision: VisionSpec
) -> ProcessorSpec:
    processing = PictureProcessor(files, config, PROCESSORS)
    tile_px = processing.tile_edge("max_image_size", variant.tile_px)
    if tile_px != vision.image_px:
        raise UnsupportedModelError(
            f"{processing.where('max_image_size')}.longest_edge {tile_px} differs from the tower's "
            f"image_size {vision.image_px} (config.json: vision_config.image_size); only equal sizes are implemented"
        )
    processing.check_unused_crop()
    splits = processing.flag("do_image_splitting", True)
    longest_px = _longest_edge(processing, variant, tile_px)
    if splits and longest_px is None and not processing.flag("do_resize", True):
        raise UnsupportedModelError(
            f"{processing.where('do_resize')} is false beside do_image_splitting; without a first resize a picture "
            "has as many tiles as its size asks for, which is not implemented"
        )
    values = processing.pixel_values(HALF, HALF)
    spec = ProcessorSpec(
        scheme="square",
        tile_px=tile_px,
        resample=processing.resample(LANCZOS),
        image_mean=values.mean,
        image_std=values.std,
        rescale_factor=values.factor,
        longest_edge_px=longest_px,
    )
    if not splits or longest_px is None:
        return spec
    n_side = -(-min(longest_px, MAX_LONGEST_EDGE_PX) // tile_px)
    if n_side > MAX_SIDE_TILES:
        raise UnsupportedModelError(
            f"{processing.where('size')}.longest_edge {longest_px} makes a grid of {n_side} x {n_side} tiles of "
            f"{tile_px} px; at most {MAX_SIDE_TILES} x {MAX_SIDE_TILES} is implemented"
        )
    return replace(
        spec, scheme="tile_grid", thumbnail="last", max_rows=n_side, max_cols=n_side, max_tiles=n_side * n_side
    )


def _longest_edge(processing: PictureProcessor, variant: Variant, tile_px: int) -> int | None:
    """The first resize, to a longest edge; None where there is none, or where it makes the one tile."""
    if not processing.flag("do_resize", True):
        return None
    square = processing.flag("default_to_square", True)
    size = processing.size("size", {"longest_edge": 4 * variant.tile_px}, square=square)
    if isinstance(size, Edges):
        return processing.longest_edge(size, "size")
    if size != (tile_px, tile_px):
        raise UnsupportedModelError(
            f"{processing.where('size')} is {size[0]} x {size[1]} pixels for every picture; implemented: longest_edge, "
            f"and the tile's own {tile_px} x {tile_px}"
        )
    return None


def _prompt(top: Fields, files: Mapping[str, bytes], variant: Variant, n_tokens: int) -> PromptSpec:
    declared = read_json(files, "processor_config.json").get("image_seq_len")
    if declared is not None and (not isinstance(declared, int) or isinstance(declared, bool) or declared != n_tokens):
        raise PackageError(
            f"processor_config.json says image_seq_len {declared!r}, the vision tower and connector of config.json "
            f"make {n_tokens} tokens a tile; one of the two files is from another checkpoint"
        )
    image_token_id = top.integer("image_token_id", variant.image_token_id)
    check_image_token(files, variant.image_token, image_token_id)
    if variant.tokens_by_name:
        _check_named_tokens(files, variant)
    around, whole = variant.around_token, variant.global_token
    return PromptSpec(
        image_token=variant.image_token,
        image_token_id=image_token_id,
        tokens_per_tile=n_tokens,
        single_prefix=f"{around}{whole}",
        tile_prefix=f"{around}<row_{{row}}_col_{{col}}>",
        row_suffix="\n",
        thumbnail_prefix=f"\n{around}{whole}",
        image_suffix=around,
        content_format="list",
    )


def _check_named_tokens(files: Mapping[str, bytes], variant: Variant) -> None:
    """Refuses other texts than the usual ones. Source: transformers 5.24, smolvlm/processing_smolvlm.py."""
    config = read_json(files, "tokenizer_config.json")
    usual = {
        "image_token": variant.image_token,
        "fake_image_token": variant.around_token,
        "global_image_token": variant.global_token,
    }
    for holder in (config, config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        for name, token in usual.items():
            found = holder.get(name) if isinstance(holder, Mapping) else None
            text = found.get("content") if isinstance(found, Mapping) else found
            if text is not None and text != token:
                raise refused(name, text, f"tokenizer_config.json: {name}", [repr(token)])
