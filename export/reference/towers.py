"""Bare vision towers; their pictures are square, since a tower alone says nothing of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.reference.model import Parts
from export.reference.pictures import flat_picture, load_processor
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
        picture=lambda image: flat_picture(processor, image),
    )


def load_siglip(source: Path, config: Mapping[str, Any]) -> Parts:
    """A bare tower with the processor of its files; without any, pictures of the tower's size."""
    from transformers import SiglipVisionModel

    model = load_model(SiglipVisionModel, source)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    processor = load_processor(source, "SiglipImageProcessor", size=side)
    return Parts(
        str(config["model_type"]),
        encode=lambda pixels: model(pixels).last_hidden_state,
        picture=lambda image: flat_picture(processor, image),
    )
