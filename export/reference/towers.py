"""Bare vision towers; their pictures are square, since a tower alone says nothing of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.reference.model import Parts, ReferencePicture, UInt8, as_tiles
from export.reference.weights import load_model


def load_dinov2(source: Path, config: Mapping[str, Any]) -> Parts:
    """A bare tower; its pictures are square, since the tower alone says nothing of tiles."""
    from transformers import BitImageProcessorPil, Dinov2Model

    model = load_model(Dinov2Model, source)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    processor = BitImageProcessorPil(size=side, do_center_crop=False)
    return Parts(
        "dinov2",
        encode=lambda pixels: model(pixels).last_hidden_state[:, 1:],
        picture=lambda image: _square_picture(processor, image),
    )


def load_siglip(source: Path, config: Mapping[str, Any]) -> Parts:
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    model = load_model(SiglipVisionModel, source)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    processor = SiglipImageProcessorPil(size=side)
    return Parts(
        str(config["model_type"]),
        encode=lambda pixels: model(pixels).last_hidden_state,
        picture=lambda image: _square_picture(processor, image),
    )


def _square_picture(processor: Any, image: UInt8) -> ReferencePicture:
    raw = processor(image, do_rescale=False, do_normalize=False, input_data_format="channels_last")["pixel_values"]
    values = processor(image, input_data_format="channels_last")["pixel_values"]
    return ReferencePicture(as_tiles(np.stack(raw)), np.stack(values).astype(np.float32), (0, 0))
