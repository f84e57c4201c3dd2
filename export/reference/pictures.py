"""Pictures through transformers' own image processors, as a checkpoint's files set them up.

What comes out is what the processor says: no step is done by hand, so that a flag which our reading misses shows as
other pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.reference.model import ReferencePicture, UInt8, as_tiles


def load_processor(source: Path, own_class: str, **defaults: Any) -> Any:
    """Returns the image processor of a snapshot directory.

    A file that names no class is read by `own_class`; without a file it is `own_class` with `defaults`. Always Pillow's
    variant, which the models were trained with: torchvision's rounds in another way.
    """
    import transformers
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    pil_class = getattr(transformers, f"{own_class}Pil")
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:  # no file says how pictures are processed
        return pil_class(**defaults)
    if fields.get("image_processor_type") or fields.get("feature_extractor_type"):
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    return pil_class.from_pretrained(source)


def nested_picture(processor: Any, image: UInt8) -> ReferencePicture:
    """Returns the tiles of a processor that takes lists of lists and says rows and columns."""
    pictures, plain = [[Image.fromarray(image)]], {"do_rescale": False, "do_normalize": False}
    found = processor(pictures, return_row_col_info=True, return_tensors=None)
    tiles = processor(pictures, return_tensors=None, **plain)["pixel_values"]
    grid = (int(found["rows"][0][0]), int(found["cols"][0][0]))
    return ReferencePicture(as_tiles(np.asarray(tiles)[0]), _floats(found["pixel_values"])[0], grid)


def flat_picture(processor: Any, image: UInt8) -> ReferencePicture:
    """Returns the one tile of a processor that takes a list of pictures."""
    pictures, plain = [Image.fromarray(image)], {"do_rescale": False, "do_normalize": False}
    tiles = processor(pictures, return_tensors=None, **plain)["pixel_values"]
    values = processor(pictures, return_tensors=None)["pixel_values"]
    return ReferencePicture(as_tiles(np.asarray(tiles)), _floats(values), (0, 0))


def _floats(values: Any) -> Any:
    """As the model reads them: bytes that no step has made floats are cast."""
    return np.asarray(values).astype(np.float32)
