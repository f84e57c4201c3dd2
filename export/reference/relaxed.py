"""The picture rule of BlueLM-V-3B, written down a second time, from the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from export.reference.model import ReferencePicture, UInt8

BOX = 4
"""Largest number of rows and of columns."""


def relaxed_picture(image: UInt8, fields: Mapping[str, Any]) -> ReferencePicture:
    """Relaxed aspect-ratio matching with transformers' own picture functions.

    Source: arXiv 2411.10640, algorithm 1; `max_tiles` leaves grids of more tiles out of the 4 x 4 candidates.
    """
    from transformers.image_transforms import normalize, rescale, resize
    from transformers.image_utils import ChannelDimension, PILImageResampling

    tile, alpha = int(fields["tile_px"]), Fraction(str(fields.get("relaxed_alpha", 0.1)))
    budget = int(fields.get("max_tiles", 16))
    height, width = image.shape[:2]
    boxes = [(m, n) for m in range(1, BOX + 1) for n in range(1, BOX + 1) if m * n <= budget]

    def fitted(m: int, n: int) -> tuple[int, int]:
        scale = min(Fraction(tile * m, width), Fraction(tile * n, height))
        return max(1, int(height * scale)), max(1, int(width * scale))

    best, best_area, best_waste = (1, 1), 0, tile * tile * budget
    for m, n in sorted(boxes, key=lambda box: (-box[0] * box[1], -box[0])):
        area = min(math.prod(fitted(m, n)), width * height)
        waste = tile * tile * m * n - area
        if area - best_area > alpha * best_area or (best_area - area < alpha * best_area and waste < best_waste):
            best, best_area, best_waste = (m, n), area, waste

    def resized(size: tuple[int, int]) -> UInt8:
        last = ChannelDimension.LAST
        return np.asarray(resize(image, size, PILImageResampling.BICUBIC, input_data_format=last), np.uint8)

    m, n = best
    inner = fitted(m, n)
    mean = np.asarray(fields["image_mean"], np.float64)
    canvas = np.empty((tile * n, tile * m, 3), np.uint8)
    canvas[:] = np.round(mean * 255).astype(np.uint8)
    top, left = (canvas.shape[0] - inner[0]) // 2, (canvas.shape[1] - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = resized(inner)
    tiles = [canvas[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y in range(n) for x in range(m)]
    if m * n > 1:
        tiles.insert(0, resized((tile, tile)))
    mean_std = (fields["image_mean"], fields["image_std"])
    last = ChannelDimension.LAST
    values = [normalize(rescale(pixels, 1 / 255), *mean_std, input_data_format=last) for pixels in tiles]
    return ReferencePicture(np.stack(tiles), np.stack(values).transpose(0, 3, 1, 2).astype(np.float32), (n, m))
