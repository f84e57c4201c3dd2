"""What `edgevlm tiles IMAGE` shows: the grid drawn on the picture, and the token count of each scheme."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgevlm.image import resize
from edgevlm.spec import ProcessorSpec
from edgevlm.tiling import TilePlan, plan_tiles

_SIGLIP = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SCHEMES: Mapping[str, tuple[ProcessorSpec, int]] = MappingProxyType(
    {
        "bluelm_v": (
            ProcessorSpec(
                "relaxed", 384, "bicubic", _SIGLIP, _SIGLIP, thumbnail="first", max_rows=4, max_cols=4, max_tiles=16
            ),
            196,
        ),
        "smolvlm-256m": (
            ProcessorSpec(
                "tile_grid", 512, "lanczos", _SIGLIP, _SIGLIP, thumbnail="last", max_tiles=16, longest_edge_px=2048
            ),
            64,
        ),
        "llava-next": (
            ProcessorSpec(
                "llava_next", 336, "bicubic", _CLIP_MEAN, _CLIP_STD, thumbnail="first", max_tiles=4,
                grid_pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
            ),
            576,
        ),
        "internvl": (
            ProcessorSpec("internvl", 448, "bicubic", _IMAGENET_MEAN, _IMAGENET_STD, thumbnail="last", max_tiles=12),
            256,
        ),
    }
)  # fmt: skip
"""Published settings by name: (processor, tokens per tile). Sources: the models' preprocessor_config.json files."""

_GRID_COLOUR, _PADDING_COLOUR = (255, 64, 32), (255, 0, 255)


@dataclass(frozen=True)
class TileRow:
    """One line of the comparison. `n_tiles` has the thumbnail in it; `n_tokens` are image tokens without separators."""

    scheme: str
    rows: int
    cols: int
    n_tiles: int
    n_tokens: int


def tile_report(
    image: NDArray[np.uint8],
    specs: Mapping[str, tuple[ProcessorSpec, int]] = SCHEMES,
    max_tiles: int | None = None,
) -> list[TileRow]:
    """Return one row per scheme for `image` (H, W, 3), in the order of `specs`."""
    height_px, width_px = image.shape[:2]
    rows = []
    for name, (spec, tokens_per_tile) in specs.items():
        plan = plan_tiles(height_px, width_px, spec, max_tiles)
        n_tokens = count_tokens(plan, tokens_per_tile, height_px, width_px)
        rows.append(TileRow(name, plan.grid_rows, plan.grid_cols, plan.n_tiles, n_tokens))
    return rows


def count_tokens(plan: TilePlan, tokens_per_tile: int, height_px: int, width_px: int) -> int:
    """Return the image tokens of a picture of `height_px` x `width_px`.

    A fixed number per tile, but LLaVA-NeXT cuts the features of its padding off and ends each row with a newline
    feature. Source: transformers 5.24, llava_next/processing_llava_next.py, _get_unpadded_features.
    """
    if plan.scheme != "llava_next":
        return plan.n_tiles * tokens_per_tile
    side = math.isqrt(tokens_per_tile)
    rows, cols = side * plan.grid_rows, side * plan.grid_cols
    if width_px / height_px > cols / rows:
        rows -= 2 * ((rows - int(round(height_px * (cols / width_px), 7))) // 2)
    else:
        cols -= 2 * ((cols - int(round(width_px * (rows / height_px), 7))) // 2)
    return int(tokens_per_tile * plan.thumbnail + rows * (cols + 1))


def draw_grid(image: NDArray[np.uint8], plan: TilePlan) -> Image.Image:
    """Return the canvas with the picture on it as the model gets it, tile borders and tile numbers in prompt order."""
    height_px, width_px = plan.resizes[-1]
    canvas_height, canvas_width = plan.canvas
    canvas = Image.new("RGB", (canvas_width, canvas_height), (160, 160, 160))
    top, left = plan.offset
    canvas.paste(Image.fromarray(resize(image, height_px, width_px, "bicubic")), (left, top))
    draw = ImageDraw.Draw(canvas)
    if (height_px, width_px) != plan.canvas:
        draw.rectangle((left, top, left + width_px - 1, top + height_px - 1), outline=_PADDING_COLOUR, width=1)
    line_px = max(2, plan.tile_px // 128)
    number = int(plan.thumbnail and plan.thumbnail_first)
    for row in range(plan.grid_rows):
        for col in range(plan.grid_cols):
            x, y = col * plan.tile_px, row * plan.tile_px
            draw.rectangle((x, y, x + plan.tile_px - 1, y + plan.tile_px - 1), outline=_GRID_COLOUR, width=line_px)
            label = f"{number}  ({row + 1}, {col + 1})"
            box = draw.textbbox((x + 3 * line_px, y + 3 * line_px), label, font_size=max(12, plan.tile_px // 16))
            draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=(0, 0, 0))
            draw.text(
                (x + 3 * line_px, y + 3 * line_px), label, fill=(255, 255, 255), font_size=max(12, plan.tile_px // 16)
            )
            number += 1
    return canvas
