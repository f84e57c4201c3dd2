"""Pictures in: any source becomes RGB uint8 (height, width, 3), upright, and later normalised float32 tiles.

The rules, so that nothing depends on a reader's guess: EXIF orientation is applied; transparency is composited on
white; alpha that a BMP, or a TIFF without ExtraSamples, leaves at zero everywhere is none, as browsers take it; CMYK is
converted as Pillow does (Adobe's inverted JPEGs included); grey of any depth is scaled by the file's white, in the
file's polarity; colour of 16 bits is cut to its upper byte, as Hugging Face's processors do; of an animation the first
frame is taken; colour profiles are ignored, as Hugging Face's processors do. Floating-point, signed and 32-bit samples
are refused, because their range cannot be known. A picture's size is checked before its pixels are decoded. A file that
is no picture is named as what it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from edgevlm.deep_tiff import DeepTiff, open_deep_tiff
from edgevlm.errors import ImageError
from edgevlm.picture_kinds import HEAD_BYTES, foreign_kind, is_avif, is_text
from edgevlm.picture_memory import PictureHeader, decoding_bytes
from edgevlm.sample_layout import is_misread, sample_layout, unreadable
from edgevlm.samples import STRIP_PIXELS, WHOLE_PIXELS, grey_to_8, on_white, to_rgb
from edgevlm.spec import ProcessorSpec, Resample

MAX_PIXELS = 120_000_000
"""Largest accepted picture: above the 108-megapixel cameras of phones, and 360 MB as RGB."""

MAX_SIDE_PX = 65_535
"""Longest accepted side: the limit of JPEG; filters of longer rows are slow and nothing is left of them in a tile."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "PPM")
"""Tried in this order. Formats that run other programs (EPS) or are rarely pictures are left out on purpose."""


class Readable(Protocol):
    """A file object that is open for reading bytes."""

    def read(self) -> bytes:
        """Returns the rest of the file."""


ImageSource = str | os.PathLike[str] | bytes | Readable | Image.Image | NDArray[Any]


BeforeDecoding = Callable[[PictureHeader], None]
"""Is told about a picture before its pixels are decoded, and may refuse it by raising."""

_TEXT_PICTURES = (b"P1", b"P2", b"P3")
"""PNM's forms that are written as text."""

_NETWORK_SCHEMES = ("http", "https", "ftp", "s3", "gs", "hf")

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

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
    RuntimeError,
    AssertionError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise on damaged files (found by flipping bytes, see tests/edgevlm/test_image.py)."""


def load_image(source: ImageSource, before_decoding: BeforeDecoding | None = None) -> NDArray[np.uint8]:
    """Return `source` as RGB uint8 (height, width, 3), upright and C-contiguous.

    `source` is a path, a file:// or data: address, the bytes of an image file, a file object open for reading bytes
    (read from its beginning where it can go there), a PIL image, or an array: uint8, uint16 (scaled to 8 bits) or bool,
    (height, width) or (height, width, 1 | 3 | 4).

    Raises ImageError, naming the file, for whatever cannot become such a picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, before_decoding)
    if isinstance(source, Image.Image):
        return _decode(source, "the given PIL image", before_decoding)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _open_and_decode(BytesIO(data), f"the given picture of {len(data)} bytes", before_decoding)
    if isinstance(source, str) and source[:5].lower() == "data:":
        data = _from_data_address(source)
        return _open_and_decode(BytesIO(data), f"the data: address of {len(data)} bytes", before_decoding)
    if isinstance(source, str | os.PathLike):
        path = picture_path(source)
        label = repr(str(path))
        try:
            if path.exists() and not path.is_file():
                raise ImageError(f"{label} is not a file; give the path of one picture.")
            with path.open("rb") as stream:
                return _open_and_decode(stream, label, before_decoding)
        except FileNotFoundError:
            raise ImageError(f"{label} does not exist; check the path of the picture.") from None
        except PermissionError:
            raise ImageError(f"{label} cannot be read; check its permissions.") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"{label} cannot be opened: {_first_line(error)}.") from error
    if hasattr(source, "read"):
        label = f"the file object of type {type(source).__name__}"
        return _open_and_decode(BytesIO(_read(source, label)), label, before_decoding)
    raise ImageError(
        f"an object of type {type(source).__name__} is not a picture; expected a path, bytes, a file object, a PIL "
        "image or a uint8 array."
    )


def picture_path(source: str | os.PathLike[str]) -> Path:
    """Return the path that `source` names: a path, or a file:// address of this machine.

    An address that was taken for a path has lost a slash and is known all the same. Raises ImageError for an address
    elsewhere.
    """
    text = os.fsdecode(source)
    scheme, colon, rest = text.partition(":")
    if colon and rest.startswith("/") and scheme.lower() in _NETWORK_SCHEMES:
        raise ImageError(f"{text!r} is an address on the network; download the picture first and give its path.")
    if scheme.lower() != "file" or not rest.startswith("/"):
        return Path(text)
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host not in ("", "localhost"):
        raise ImageError(f"{text!r} names a file on {host!r}; expected file:///PATH of this machine.")
    return Path(url2pathname(path))


def resize(image: NDArray[np.uint8], height_px: int, width_px: int, resample: Resample) -> NDArray[np.uint8]:
    """Return `image` (H, W, 3) resized by Pillow's antialiased filter, the one that the models were trained with.

    Vertically first where Pillow 13 does so, whatever Pillow is installed: older ones never do, and the order shows in
    single levels. A large picture goes through either pass in strips, which changes no pixel: a pass looks along one
    side only.
    """
    if image.shape[:2] == (height_px, width_px):
        return image
    shorter_px, narrower_px = image.shape[0] - height_px, image.shape[1] - width_px
    if shorter_px > 0 and shorter_px > 2 * narrower_px:
        image = _resize_in_strips(image, height_px, image.shape[1], resample, axis=1)
    if image.shape[0] * image.shape[1] > WHOLE_PIXELS and resample != "nearest":
        image = _resize_in_strips(image, image.shape[0], width_px, resample, axis=0)
        return _resize_in_strips(image, height_px, width_px, resample, axis=1)
    return _resized(image, height_px, width_px, resample)


def _resize_in_strips(
    image: NDArray[np.uint8], height_px: int, width_px: int, resample: Resample, axis: int
) -> NDArray[np.uint8]:
    """One pass of `resize`: strips of rows (`axis` 0) change their width, strips of columns (1) their height."""
    if image.shape[:2] == (height_px, width_px):
        return image
    if image.shape[0] * image.shape[1] <= WHOLE_PIXELS:
        return _resized(image, height_px, width_px, resample)
    out = np.empty((height_px, width_px, 3), dtype=np.uint8)
    step = max(1, STRIP_PIXELS // image.shape[1 - axis])
    for begin in range(0, image.shape[axis], step):
        if axis == 0:
            rows = image[begin : begin + step]
            out[begin : begin + step] = _resized(rows, rows.shape[0], width_px, resample)
        else:
            columns = image[:, begin : begin + step]
            out[:, begin : begin + step] = _resized(columns, height_px, columns.shape[1], resample)
    return out


def _resized(image: NDArray[np.uint8], height_px: int, width_px: int, resample: Resample) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((width_px, height_px), _RESAMPLE[resample]))


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


def _from_data_address(address: str) -> bytes:
    """The bytes of a data: address. Source: RFC 2397."""
    header, comma, body = address.partition(",")
    if not comma:
        raise ImageError("a data: address has no comma; expected data:image/png;base64, and the picture behind it.")
    content = unquote_to_bytes(body)
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ImageError(f"a data: address is not valid base64: {_first_line(error)}.") from error


def _read(source: Any, label: str) -> bytes:
    try:
        if hasattr(source, "seek") and (not hasattr(source, "seekable") or source.seekable()):
            source.seek(0)  # whoever has just written a picture into it stands at its end
        data = source.read()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ImageError(f"{label} cannot be read: {_first_line(error)}.") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"{label} gives {type(data).__name__}, expected bytes; open it in binary mode ('rb').")
    return bytes(data)


def _open_and_decode(stream: IO[bytes], label: str, before_decoding: BeforeDecoding | None) -> NDArray[np.uint8]:
    head = stream.read(HEAD_BYTES)
    if not head:
        raise ImageError(f"{label} is empty; expected a picture.")
    kind = foreign_kind(head)
    if kind is not None:
        raise ImageError(f"{label} {kind}")
    try:
        picture = _open(stream, head)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label} is too large to decode: {_first_line(error)} Make it smaller first.") from error
    except UnidentifiedImageError:
        if is_avif(head):
            raise ImageError(f"{label} is an AVIF picture, for which this Pillow has no decoder; update it.") from None
        kind = "is text, not a picture" if is_text(head) else "is not a picture in a known format"
        raise ImageError(f"{label} {kind}; expected one of {', '.join(FORMATS)}.") from None
    except (*_DECODE_ERRORS, MemoryError) as error:
        deep = _deep_tiff(stream, head)
        if deep is not None:
            return _decode_deep(deep, label, before_decoding)
        if is_text(head) and not head.startswith(_TEXT_PICTURES):
            raise ImageError(f"{label} is text, not a picture; expected one of {', '.join(FORMATS)}.") from None
        raise ImageError(f"{label} {unreadable(stream, head, _first_line(error))}") from error
    with picture:
        deep = _deep_tiff(stream, head) if is_misread(picture) else None
        if deep is not None:
            return _decode_deep(deep, label, before_decoding)
        return _decode(picture, label, before_decoding)


def _deep_tiff(stream: IO[bytes], head: bytes) -> DeepTiff | None:
    if not head.startswith((b"II*\0", b"MM\0*")):
        return None
    try:
        return open_deep_tiff(stream)
    except _DECODE_ERRORS:
        return None  # what Pillow says of it stands


def _decode_deep(tiff: DeepTiff, label: str, before_decoding: BeforeDecoding | None) -> NDArray[np.uint8]:
    _check_size(tiff.height_px, tiff.width_px, label)
    if before_decoding is not None:
        before_decoding(PictureHeader(label, tiff.height_px, tiff.width_px, tiff.decoding_bytes))
    try:
        picture, layout = tiff.load()
        return to_rgb(picture, layout, tiff.orientation, None, label)
    except MemoryError as error:
        raise _no_memory(label, tiff.width_px, tiff.height_px) from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label} is damaged and cannot be decoded: {_first_line(error)}.") from error


def _no_memory(label: str, width_px: int, height_px: int) -> ImageError:
    return ImageError(f"{label} of {width_px} x {height_px} pixels does not fit in memory; make it smaller first.")


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
        # AVIF may stand among the other brands; a text may begin like a PPM.
        accepted = accept is None or accept(head[:16]) is True or (name == "AVIF" and is_avif(head))
        if not accepted:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if name == "PPM" and str(error) == "not a PPM file":
                continue
            reason = error
    if reason is not None:
        raise OSError(str(reason) or type(reason).__name__)
    raise UnidentifiedImageError


def _decode(picture: Image.Image, label: str, before_decoding: BeforeDecoding | None) -> NDArray[np.uint8]:
    width_px, height_px = picture.size
    _check_size(height_px, width_px, label)
    if before_decoding is not None:
        before_decoding(PictureHeader(label, height_px, width_px, decoding_bytes(picture)))
    try:
        layout = sample_layout(picture, label)
        low_bytes = None if layout.clear_low is None else _low_bytes(picture)
        picture.load()
        # Pillow's TIFF reader has turned the picture already and dropped the tag, so the tag is read after loading.
        return to_rgb(picture, layout, _orientation(picture), low_bytes, label)
    except MemoryError as error:
        raise _no_memory(label, width_px, height_px) from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{label} is damaged and cannot be decoded: {_first_line(error)}.") from error


def _low_bytes(picture: Image.Image) -> Image.Image | None:
    """The lower bytes of a PNG of 16-bit colour, of which Pillow keeps the upper ones."""
    stream: IO[bytes] | None = getattr(picture, "fp", None)
    if stream is None:
        return None
    position = stream.tell()
    stream.seek(0)
    twin = Image.OPEN["PNG"][0](stream, "")
    # Read in the other byte order, the lower byte stands where Pillow takes the upper one from.
    twin.tile = [tile._replace(args="RGB;16L") for tile in twin.tile]
    twin.load()
    stream.seek(position)
    return twin


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1  # a broken EXIF block says nothing about the pixels
    return value if isinstance(value, int) else 1


def _from_array(array: NDArray[Any], before_decoding: BeforeDecoding | None) -> NDArray[np.uint8]:
    label = f"the array of shape {array.shape} and type {array.dtype}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        hint = " Move the channels to the end first." if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{label} is not a picture; expected (height, width) or (height, width, 1, 3 or 4).{hint}")
    _check_size(array.shape[0], array.shape[1], label)
    if before_decoding is not None:
        n_pixels = array.shape[0] * array.shape[1]
        before_decoding(PictureHeader(label, array.shape[0], array.shape[1], 4 * n_pixels))
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        levels = np.empty(array.shape, dtype=np.uint8)
        n_rows = max(1, STRIP_PIXELS // array.shape[1])
        for top in range(0, array.shape[0], n_rows):
            levels[top : top + n_rows] = grey_to_8(array[top : top + n_rows], 65_535)
        array = levels
    elif array.dtype != np.uint8:
        raise ImageError(f"{label} is not accepted; expected uint8 (0 to 255), uint16 or bool.")
    if array.ndim == 2 or channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return _alpha_on_white(array)
    return np.ascontiguousarray(array)


def _alpha_on_white(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = np.empty((*array.shape[:2], 3), dtype=np.uint8)
    n_rows = max(1, STRIP_PIXELS // array.shape[1])
    for top in range(0, array.shape[0], n_rows):
        rows = np.ascontiguousarray(array[top : top + n_rows])
        out[top : top + n_rows] = on_white(Image.fromarray(rows))
    return out


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
