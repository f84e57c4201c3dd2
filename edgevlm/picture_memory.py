"""What decoding and cutting a picture takes at most, known from its header.

While it is decoded, a picture stands beside its decoder's buffers; then it becomes RGB, three bytes a pixel, some rows
at a time; then its tiles are cut from that. The bytes a pixel were measured with Pillow 13 on pictures of 12 to 108
megapixels (2026-11-29); tests/edgevlm/test_picture_memory.py holds them to be upper bounds.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from edgevlm.samples import WHOLE_PIXELS
from edgevlm.spec import ProcessorSpec

if TYPE_CHECKING:
    from edgevlm.tiling import TilePlan

_RGB_BYTES = 3
_STRIP_BYTES = 24 << 20
"""The rows that are converted at once, in all their forms, and Pillow's blocks of 16 MB."""
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes a pixel of a loaded picture; 4 for every other mode, RGB among them."""
_COEFFICIENT_BYTES = 2
"""A JPEG in several scans is kept as coefficients until the last one."""
_WEBP_BYTES = 17
"""Two canvases of the animation's decoder, the frame as bytes, the picture: 16.5 measured."""
_AVIF_BYTES = 18
"""9.4 measured for 4:2:0, 11.9 for 4:4:4 with alpha; planes of 10 or 12 bits take twice as much."""
_JPEG2000_CHANNEL_BYTES = 6
"""A channel's samples as 32 bits and their tile: 4.7 to 6 measured."""
_PPM_BYTES = 14
"""Samples with a white other than 255 are scaled in Python: 12 measured."""
_RLE_BYTES = 3
_STREAMED = ("JPEG", "MPO", "PNG", "GIF", "BMP", "PPM")
"""Formats whose file is read piece by piece."""


@dataclass(frozen=True)
class PictureHeader:
    """What is known of a picture before its pixels are decoded."""

    label: str
    """How messages name it."""
    height_px: int
    width_px: int
    """As stored: an EXIF orientation may swap the two."""
    decoding_bytes: int
    """The most that decoding takes, its RGB included."""


def decoding_bytes(picture: Image.Image) -> int:
    """Returns the most that reading `picture`, opened but not loaded, adds to a process that holds nothing of it."""
    width_px, height_px = picture.size
    n_pixels = width_px * height_px
    loaded = _MODE_BYTES.get(picture.mode, 4)
    buffers = float(_decoder_bytes(picture, loaded)) if isinstance(picture, ImageFile.ImageFile) else 0.0
    peak = max(loaded + buffers, loaded + _RGB_BYTES)
    if picture.format in ("WEBP", "AVIF"):
        peak = max(_WEBP_BYTES if picture.format == "WEBP" else _AVIF_BYTES, peak)  # both keep their buffers
    return int(n_pixels * peak) + _stream_bytes(picture) + _STRIP_BYTES


def cutting_bytes(height_px: int, width_px: int, plan: TilePlan) -> int:
    """Returns the most that cutting a picture adds beside its RGB: what it is resized to, the canvas, the tiles."""
    size, held, peak = (height_px, width_px), 0, 0
    for resized in plan.resizes:
        peak = max(peak, held + _resizing_bytes(size, resized))
        size, held = resized, _RGB_BYTES * resized[0] * resized[1]
    canvas = _RGB_BYTES * plan.canvas[0] * plan.canvas[1]
    tiles = _RGB_BYTES * plan.n_tiles * plan.tile_px**2
    thumbnail = _resizing_bytes((height_px, width_px), (plan.tile_px, plan.tile_px)) if plan.thumbnail else 0
    return max(peak, held + canvas + 2 * tiles + thumbnail) + _STRIP_BYTES


def _resizing_bytes(size: tuple[int, int], resized: tuple[int, int]) -> int:
    """What `edgevlm.image.resize` takes beside its source; Pillow's pictures have 4 bytes a pixel."""
    n_source, n_result = size[0] * size[1], resized[0] * resized[1]
    shorter_px, narrower_px = size[0] - resized[0], size[1] - resized[1]
    is_vertical_first = shorter_px > 0 and shorter_px > 2 * narrower_px
    n_between = resized[0] * size[1] if is_vertical_first else size[0] * resized[1]
    result = (_RGB_BYTES + 4) * n_result
    if n_source <= WHOLE_PIXELS:
        return 4 * n_source + (_RGB_BYTES + 4) * n_between + result
    return (_RGB_BYTES + (4 if n_between <= WHOLE_PIXELS else 0)) * n_between + result


class HeldPictures:
    """The decoded pictures that someone still holds: a conversation keeps those of its turns."""

    def __init__(self) -> None:
        self._pictures: list[tuple[weakref.ref[NDArray[np.uint8]], int]] = []
        """With what cutting each takes."""

    def add(self, image: NDArray[np.uint8], spec: ProcessorSpec) -> None:
        """Counts `image` (H, W, 3) as long as it lives."""
        self._pictures.append((weakref.ref(image), _most_cutting_bytes(image.shape[0], image.shape[1], spec)))

    def bytes_with(self, header: PictureHeader, spec: ProcessorSpec) -> int:
        """Returns the most that the pictures take while another is decoded, or cut after that.

        One of those held may be cut in the background meanwhile.
        """
        self._pictures = [(image, cutting) for image, cutting in self._pictures if image() is not None]
        alive = [(image.nbytes, cutting) for held, cutting in self._pictures if (image := held()) is not None]
        held_bytes = sum(n_bytes for n_bytes, _ in alive)
        rgb_bytes = _RGB_BYTES * header.height_px * header.width_px
        own = max(header.decoding_bytes, rgb_bytes + _most_cutting_bytes(header.height_px, header.width_px, spec))
        return held_bytes + max((cutting for _, cutting in alive), default=0) + own


def _most_cutting_bytes(height_px: int, width_px: int, spec: ProcessorSpec) -> int:
    """As `cutting_bytes`, for the picture upright or lying: its orientation may not be known yet."""
    from edgevlm.tiling import plan_tiles  # tiling imports image, which imports this module

    sizes = ((height_px, width_px), (width_px, height_px))
    return max(cutting_bytes(*size, plan_tiles(*size, spec)) for size in sizes)


def _decoder_bytes(picture: ImageFile.ImageFile, loaded: int) -> float:
    """Bytes a pixel beside the loaded picture."""
    if picture.format in ("JPEG", "MPO"):
        return _coefficient_bytes(getattr(picture, "layer", []))
    if picture.format == "JPEG2000":
        return _JPEG2000_CHANNEL_BYTES * max(len(picture.getbands()), 3 if picture.mode in ("P", "PA") else 1)
    if picture.format == "PPM":
        return _PPM_BYTES - 4 if picture.tile and picture.tile[0].codec_name != "raw" else 0
    if picture.format == "BMP":
        return _RLE_BYTES if picture.tile and picture.tile[0].codec_name == "bmp_rle" else 0
    if picture.format == "PNG":
        return loaded if picture.mode == "RGB" and "transparency" in picture.info else 0
    if picture.format == "TIFF":
        return _tiff_bytes(getattr(picture, "tag_v2", {}), picture.size, loaded)
    return 0


def _coefficient_bytes(layers: list[Any]) -> float:
    """Of every channel at its sampling; whether there are several scans is not known from the header."""
    try:
        largest = max(vertical for _, vertical, _, _ in layers) * max(horizontal for _, _, horizontal, _ in layers)
        share = sum(vertical * horizontal / largest for _, vertical, horizontal, _ in layers)
    except (TypeError, ValueError, ZeroDivisionError):
        share = 4.0
    return float(_COEFFICIENT_BYTES * share)


def _tiff_bytes(tags: Any, size: tuple[int, int], loaded: int) -> float:
    """A strip or tile of all channels; and a turned copy, which Pillow makes itself."""
    bits, n_samples = tags.get(258, (8,)), tags.get(277, 1)
    total = max(sum(bits), max(bits) * n_samples) if isinstance(bits, tuple) else bits * n_samples
    rows = tags.get(278, tags.get(323, size[1]))
    share = min(1.0, rows / max(1, min(size))) if isinstance(rows, int) else 1.0
    turned = loaded if tags.get(274, 1) != 1 else 0
    return float(max(4.0, total / 8) * share + turned)


def _stream_bytes(picture: Image.Image) -> int:
    """The file, where its decoder reads it whole or maps it, or where it stands in memory."""
    stream: IO[bytes] | None = getattr(picture, "fp", None)
    is_streamed = picture.format in _STREAMED or picture.info.get("compression") == "raw"
    if stream is None or (is_streamed and not isinstance(stream, BytesIO)):
        return 0
    try:
        position = stream.tell()
        size = stream.seek(0, os.SEEK_END)
        stream.seek(position)
    except (OSError, ValueError, AttributeError):
        return 0
    return size
