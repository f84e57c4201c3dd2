"""A loaded picture becomes RGB uint8, upright, some rows at a time: beside the two only a few megabytes are held.

Grey of any depth is scaled so that its white is 255, to the nearest level. Colour of 16 bits is cut to its upper byte,
as Pillow and with it Hugging Face's processors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.sample_layout import SampleLayout

STRIP_PIXELS = 1 << 20
"""What is converted at once: a few megabytes as RGBA."""

WHOLE_PIXELS = 8 << 20
"""A picture with more pixels is resized in strips too, so that Pillow's copy of it is never whole."""

_STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF orientation → the upright picture as the file stores it, all of them views."""


def to_rgb(
    picture: Image.Image,
    layout: SampleLayout,
    orientation: int,
    low_bytes: Image.Image | None,
    label: str,
) -> NDArray[np.uint8]:
    """Returns a loaded picture as RGB uint8 (height, width, 3), upright and C-contiguous.

    `low_bytes` are the lower bytes of a picture of 16-bit colour that has a transparent one.
    """
    width_px, height_px = picture.size
    _prepare(picture, layout, label)
    has_alpha = not (layout.has_doubtful_alpha and picture.mode == "RGBA" and _is_clear_throughout(picture))
    upright = np.empty(
        (width_px, height_px, 3) if orientation in (5, 6, 7, 8) else (height_px, width_px, 3), dtype=np.uint8
    )
    stored = _STORED[orientation](upright) if orientation in _STORED else upright
    for box in _boxes(picture):
        low = None if low_bytes is None else np.asarray(low_bytes.crop(box))
        strip = picture.crop(box)
        stored[box[1] : box[3]] = _strip(strip, layout, low) if has_alpha else np.asarray(strip.convert("RGB"))
    return upright


def grey_to_8(samples: NDArray[Any], largest: int) -> NDArray[np.uint8]:
    """Returns unsigned samples of at most 16 bits as 8 bits: `largest` becomes 255, the rest the nearest level."""
    levels: NDArray[np.uint32] = np.minimum(samples, largest).astype(np.uint32)
    return ((levels * 255 + largest // 2) // largest).astype(np.uint8)


def on_white(picture: Image.Image) -> NDArray[np.uint8]:
    """Returns a picture with alpha, of any mode, on white."""
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))


def _prepare(picture: Image.Image, layout: SampleLayout, label: str) -> None:
    """What concerns the whole picture: refuses samples of unknown range, and puts the right palette."""
    if picture.mode == "F":
        raise ImageError(f"{label} has floating-point samples of unknown range; convert it to 8 bits first.")
    if picture.mode == "I":
        lowest, highest = picture.getextrema()
        assert isinstance(lowest, int | float) and isinstance(highest, int | float), "one channel"
        if lowest < 0 or highest > 65_535:
            raise ImageError(f"{label} has 32-bit samples from {lowest} to {highest}; expected 8 or 16 bits.")
    if layout.palette is not None:
        n_colours = len(layout.palette) // 3
        rows = np.asarray(layout.palette[: 3 * n_colours], np.uint8).reshape(3, n_colours)
        picture.putpalette(rows.T.tobytes())


def _boxes(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """The strips of a picture, as (left, top, right, bottom)."""
    width_px, height_px = picture.size
    n_rows = max(1, STRIP_PIXELS // width_px)
    for top in range(0, height_px, n_rows):
        yield 0, top, width_px, min(top + n_rows, height_px)


def _is_clear_throughout(picture: Image.Image) -> bool:
    return not any(np.asarray(picture.crop(box).getchannel("A")).any() for box in _boxes(picture))


def _strip(strip: Image.Image, layout: SampleLayout, low: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    mode = strip.mode
    if mode == "I" or mode.startswith("I;16"):
        return _deep_grey(strip, layout)[..., None]  # the caller's assignment repeats it
    if layout.channel_bits:
        strip = _widened(strip, layout.channel_bits)
    if layout.clear is not None:
        return _cleared(strip, layout.clear, low, layout.clear_low)
    if mode in ("RGBa", "La"):
        return on_white(strip.convert("RGBA" if mode == "RGBa" else "LA"))
    if mode in ("RGBA", "LA", "PA") or "transparency" in strip.info:
        return on_white(strip)
    return np.asarray(strip if mode == "RGB" else strip.convert("RGB"))


def _deep_grey(strip: Image.Image, layout: SampleLayout) -> NDArray[np.uint8]:
    samples = np.asarray(strip)
    largest = (1 << layout.bits) - 1
    grey = grey_to_8(samples >> (16 - layout.bits) if layout.is_padded else samples, largest)
    if layout.white_is_zero:
        grey = np.uint8(255) - grey
    clear = strip.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(samples == clear, np.uint8(255), grey)
    return grey


def _widened(strip: Image.Image, channel_bits: tuple[int, ...]) -> Image.Image:
    """Scales channels whose samples stand in the upper bits, so that their largest becomes 255."""
    tables: list[int] = []
    for channel in range(len(strip.getbands())):
        bits = min(channel_bits[min(channel, len(channel_bits) - 1)], 8)
        largest = (1 << bits) - 1
        tables += [((value >> (8 - bits)) * 255 + largest // 2) // largest for value in range(256)]
    return strip.point(tables)


def _cleared(
    strip: Image.Image, clear: tuple[int, ...], low: NDArray[np.uint8] | None, clear_low: tuple[int, ...] | None
) -> NDArray[np.uint8]:
    """The pixels of the colour `clear` made white, as compositing them would."""
    samples = np.asarray(strip)
    is_clear = (samples.reshape(*samples.shape[:2], -1) == clear).all(axis=-1)
    if low is not None:
        is_clear &= (low == clear_low).all(axis=-1)
    strip.info.pop("transparency", None)
    colours = np.array(strip.convert("RGB") if strip.mode != "RGB" else strip)
    colours[is_clear] = 255
    return colours
