"""Pictures in: any source becomes RGB uint8 (height, width, 3), upright, and later normalised float32 tiles.

The rules, so that nothing depends on a reader's guess: EXIF orientation is applied; transparency is composited on
white; CMYK is converted as Pillow does (Adobe's inverted JPEGs included); 16-bit grey is scaled, not clipped; of an
animation the first frame is taken; colour profiles are ignored, as Hugging Face's processors do. Float arrays are
refused, because their range cannot be known. A picture's size is checked before its pixels are decoded.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from edgevlm.errors import ImageError
from edgevlm.spec import ProcessorSpec, Resample

MAX_PIXELS = 120_000_000
"""Largest accepted picture: above the 108-megapixel cameras of phones, and 360 MB as RGB."""

MAX_SIDE_PX = 65_535
"""Longest accepted side: the limit of JPEG; filters of longer rows are slow and nothing is left of them in a tile."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "PPM")
"""Tried in this order. Formats that run other programs (EPS) or are rarely pictures are left out on purpose."""

ImageSource = str | Path | bytes | Image.Image | NDArray[Any]

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what undoes it."""

_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise on damaged files (found by flipping bytes, see tests/edgevlm/test_image.py)."""


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Return `source` as RGB uint8 (height, width, 3), upright and C-contiguous.

    `source` is a path, the bytes of an image file, a PIL image, or an array: uint8, uint16 (scaled to 8 bits) or bool,
    (height, width) or (height, width, 1 | 3 | 4).

    Raises ImageError, naming the file, for whatever cannot become such a picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the given PIL image")
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _open_and_decode(BytesIO(data), f"the given picture of {len(data)} bytes")
    if not isinstance(source, str | Path):
        raise ImageError(
            f"an object of type {type(source).__name__} is not a picture; expected a path, bytes, a PIL image or a "
            "uint8 array."
        )
    path = Path(source)
    label = repr(str(path))
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{label} is not a file; give the path of one picture.")
        with path.open("rb") as stream:
            return _open_and_decode(stream, label)
    except FileNotFoundError:
        raise ImageError(f"{label} does not exist; check the path of the picture.") from None
    except PermissionError:
        raise ImageError(f"{label} cannot be read; check its permissions.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{label} cannot be opened: {_first_line(error)}.") from error


def resize(image: NDArray[np.uint8], height_px: int, width_px: int, resample: Resample) -> NDArray[np.uint8]:
    """Return `image` (H, W, 3) resized by Pillow's antialiased filter, the one that the models were trained with.

    Vertically first where Pillow 13 does so, whatever Pillow is installed: older ones never do, and the order shows in
    single levels.
    """
    if image.shape[:2] == (height_px, width_px):
        return image
    picture, method = Image.fromarray(image), _RESAMPLE[resample]
    shorter_px, narrower_px = picture.height - height_px, picture.width - width_px
    if shorter_px > 0 and shorter_px > 2 * narrower_px:
        picture = picture.resize((picture.width, height_px), method)
    return np.asarray(picture.resize((width_px, height_px), method))


def normalize(tiles: NDArray[np.uint8], spec: ProcessorSpec) -> NDArray[np.float32]:
    """Return float32 (C, 3, S, S) for uint8 `tiles` (C, S, S, 3): (x * rescale_factor - mean) / std.

    Equal to the last bit to transformers' PIL processors: a channel has only 256 values, so their order of operations
    (float64 product, rounded to float32, then float32) is done once per value and looked up.
    """
    table = _normalized_values(spec.rescale_factor, spec.image_mean, spec.image_std)
    n_tiles, height_px, width_px, _ = tiles.shape
    out = np.empty((n_tiles, 3, height_px, width_px), dtype=np.float32)
    for channel in range(3):
        # The indices are bytes and the table has 256 rows; mode "clip" only spares numpy a buffered copy.
        np.take(table[channel], tiles[..., channel], out=out[:, channel], mode="clip")
    return out


def image_key(image: NDArray[np.uint8]) -> str:
    """Return the sha256 of the size and pixels of `image`, the same for the same picture from any source."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _normalized_values(
    factor: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    rescaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    means, stds = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    return (rescaled[None, :] - means[:, None]) / stds[:, None]


def _open_and_decode(stream: IO[bytes], label: str) -> NDArray[np.uint8]:
    head = stream.read(512)
    if not head:
        raise ImageError(f"{label} is empty; expected a picture.")
    stream.seek(0)
    try:
        picture = _open(stream, head)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label} is too large to decode: {_first_line(error)} Make it smaller first.") from error
    except UnidentifiedImageError:
        raise ImageError(f"{label} {_what_it_is(head)}") from None
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label} is damaged and cannot be opened: {_first_line(error)}.") from error
    with picture:
        return _decode(picture, label)


def _open(stream: IO[bytes], head: bytes) -> ImageFile.ImageFile:
    """Open the header of a picture.

    Pillow's own `Image.open` warns or fails above limits that are global to the process; the factories behind it do
    not, so that the one check is ours, with our numbers, and nothing global is changed.
    """
    reason: Exception | None = None
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(head[:16]) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            reason = error
    if reason is not None:
        raise OSError(str(reason) or type(reason).__name__)
    raise UnidentifiedImageError


def _decode(picture: Image.Image, label: str) -> NDArray[np.uint8]:
    width_px, height_px = picture.size
    _check_size(height_px, width_px, label)
    try:
        picture.load()
        upright = _UPRIGHT.get(_orientation(picture))
        pixels = _to_rgb(picture, label)
        # Pillow's TIFF reader has turned the picture already and dropped the tag, so the tag is read after loading.
        if upright is not None:
            pixels = np.asarray(Image.fromarray(pixels).transpose(upright))
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label} is damaged and cannot be decoded: {_first_line(error)}.") from error
    return np.ascontiguousarray(pixels)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1  # a broken EXIF block says nothing about the pixels
    return value if isinstance(value, int) else 1


def _to_rgb(picture: Image.Image, label: str) -> NDArray[np.uint8]:
    mode = picture.mode
    if mode.startswith("I;16"):
        grey = _grey16_to_8(np.asarray(picture).astype(np.uint16))
        clear = picture.info.get("transparency")
        if isinstance(clear, int):
            grey = np.where(np.asarray(picture) == clear, np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode == "I":
        wide = np.asarray(picture)
        if wide.min() < 0 or wide.max() > 65_535:
            raise ImageError(f"{label} has 32-bit samples from {wide.min()} to {wide.max()}; expected 8 or 16 bits.")
        return np.repeat(_grey16_to_8(wide.astype(np.uint16))[..., None], 3, axis=2)
    if mode == "F":
        raise ImageError(f"{label} has floating-point samples of unknown range; convert it to 8 bits first.")
    if mode == "RGBa" or mode == "La":
        picture = picture.convert("RGBA" if mode == "RGBa" else "LA")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layer)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    label = f"the array of shape {array.shape} and type {array.dtype}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        hint = " Move the channels to the end first." if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{label} is not a picture; expected (height, width) or (height, width, 1, 3 or 4).{hint}")
    _check_size(array.shape[0], array.shape[1], label)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _grey16_to_8(array)
    elif array.dtype != np.uint8:
        raise ImageError(f"{label} is not accepted; expected uint8 (0 to 255), uint16 or bool.")
    if array.ndim == 2 or channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), label)
    return np.ascontiguousarray(array)


def _grey16_to_8(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _check_size(height_px: int, width_px: int, label: str) -> None:
    if height_px < 1 or width_px < 1:
        raise ImageError(f"{label} has no pixels ({width_px} x {height_px}).")
    if height_px * width_px > MAX_PIXELS:
        raise ImageError(
            f"{label} is {width_px} x {height_px} = {height_px * width_px:,} pixels; the limit is {MAX_PIXELS:,}. "
            "Make it smaller first."
        )
    if max(height_px, width_px) > MAX_SIDE_PX:
        raise ImageError(
            f"{label} is {width_px} x {height_px}; the longest accepted side is {MAX_SIDE_PX:,} pixels. Crop it first."
        )


def _what_it_is(head: bytes) -> str:
    """End the sentence "FILE ..." for a file that no decoder accepts."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    brands = head[8:32] if head[4:8] == b"ftyp" else b""
    if b"<svg" in text or text.startswith(b"<?xml"):
        return "is an SVG or XML drawing, not a picture of pixels; render it to PNG first."
    if any(brand in brands for brand in (b"heic", b"heix", b"heif", b"mif1", b"hevc")):
        return "is a HEIC picture, which Pillow cannot read; save it as JPEG or PNG first."
    if brands:
        return "is a video, not a picture; take a frame of it as JPEG or PNG first."
    if head.startswith(b"%PDF") or head.startswith(b"%!PS"):
        return "is a document, not a picture; render a page to PNG first."
    return f"is not a picture in a known format; expected one of {', '.join(FORMATS)}."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
