"""How a file's samples are to be read, where Pillow's mode does not say: their white, their polarity, their alpha.

Pillow gives a 12-bit TIFF the mode of 16 bits, forgets that zero is white in deep ones, leaves a PNG's transparent
colour in the depth of the file, and shifts JPEG 2000 samples of few bits instead of scaling them. The file's own
header decides here, before its pixels are decoded. What cannot be read rightly is refused by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, ImageFile, TiffImagePlugin

from edgevlm.errors import ImageError

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _COLORMAP = 258, 259, 262, 277, 284, 320
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_NEW_SUBFILE, _SUB_IFDS, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG_VERSION = 254, 330, 338, 339, 50706
"""Tags. Source: TIFF 6.0, TIFF technical note 1, DNG 1.7."""
_CFA, _LINEAR_RAW = 32803, 34892
"""Photometric interpretations of a sensor's samples. Source: DNG 1.7."""
_UNCOMPRESSED = 1
_PHOTOMETRICS = {
    0: "grey with a white zero", 1: "grey", 2: "RGB", 3: "palette", 4: "a mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB",
    9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
_START_OF_SCAN = 0xDA
_JPEG_FRAMES = {
    0xC3: "lossless JPEG", 0xC5: "hierarchical JPEG", 0xC6: "hierarchical JPEG", 0xC7: "lossless JPEG",
    0xCB: "lossless JPEG", 0xCD: "hierarchical JPEG", 0xCE: "hierarchical JPEG", 0xCF: "lossless JPEG", 0xF7: "JPEG-LS",
}  # fmt: skip
"""Markers of frames that Pillow may not decode. Source: ITU T.81, table B.1, and T.87."""
_SIZ = b"\xff\x4f\xff\x51"
"""JPEG 2000: start of a codestream and its size segment."""
_SIZ_WITHIN_BYTES = 4 << 20
"""How far it is looked for: behind a JP2's header, with its colour profile."""
_RAW_FILE, _DEVELOP = "is a camera's raw file", "develop it, or take the camera's JPEG"
_AS_PNG = "save it as PNG with 8 or 16 bits first"


@dataclass(frozen=True)
class SampleLayout:
    """What to know about a picture's samples beside Pillow's mode. The defaults are Pillow's reading."""

    bits: int = 16
    """Bits that the samples of a 16-bit mode have."""
    is_padded: bool = False
    """They stand in the upper bits."""
    white_is_zero: bool = False
    """They run from white to black: of a 16-bit mode, whose samples Pillow leaves as stored."""
    channel_bits: tuple[int, ...] = ()
    """Bits of each channel of an 8-bit mode that stand in its upper bits; () for 8."""
    palette: tuple[int, ...] | None = None
    """Colours in 8 bits, red then green then blue, where Pillow would take the upper byte of 16."""
    has_doubtful_alpha: bool = False
    """The last channel is alpha only if it is anywhere above zero."""
    clear: tuple[int, ...] | None = None
    """The transparent colour, in the samples of the picture's mode, in place of Pillow's."""
    clear_low: tuple[int, ...] | None = None
    """Its lower bytes, where the mode holds only the upper ones."""


def sample_layout(picture: Image.Image, label: str) -> SampleLayout:
    """Returns how the samples of a picture, opened but not loaded, are to be read.

    Raises ImageError for a layout that neither Pillow nor we read rightly.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _of_tiff(picture, label)
    if picture.format == "BMP":
        return SampleLayout(has_doubtful_alpha=picture.mode == "RGBA")
    if picture.format == "PNG" and isinstance(picture, ImageFile.ImageFile) and picture.tile:
        return _of_png(picture)
    if picture.format == "JPEG2000" and isinstance(picture, ImageFile.ImageFile) and picture.fp is not None:
        return _of_jpeg2000(picture.fp, picture.mode, label)
    return SampleLayout()


def is_misread(picture: Image.Image) -> bool:
    """Returns whether Pillow would take the samples of an opened picture for bytes: deep channels, each by itself."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return False
    tags: Any = picture.tag_v2
    is_apart = tags.get(_PLANAR) == 2 and len(picture.getbands()) > 1
    return is_apart and _first(tags, _BITS, 1) > 8 and tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED


def unreadable(stream: IO[bytes], head: bytes, reason: str) -> str:
    """Ends the sentence "FILE ..." for a file that its decoder refused with `reason`; a rare layout is named."""
    kind = None
    if head.startswith((b"II", b"MM")):
        kind = _unread_tiff(stream, reason)
    elif head.startswith(b"\xff\xd8"):
        kind = _unread_jpeg(head, reason)
    elif head.startswith(b"BM") and "Unsupported BMP" in reason:
        kind = f"is a BMP of a rare form ({reason[0].lower() + reason[1:]})"
    if kind == _RAW_FILE:
        return f"{kind}; {_DEVELOP}."
    if kind is None:
        return f"is damaged and cannot be opened: {reason}."
    return f"{kind}, which cannot be read; {_AS_PNG}."


def _of_tiff(picture: TiffImagePlugin.TiffImageFile, label: str) -> SampleLayout:
    tags: Any = picture.tag_v2
    if is_raw(tags):
        raise ImageError(f"{label} {_RAW_FILE}, of which only a thumbnail could be read; {_DEVELOP}.")
    bits, sample_format = _first(tags, _BITS, 1), _first(tags, _SAMPLE_FORMAT, 1)
    if sample_format == 2 or (sample_format == 1 and bits == 32):
        kind = "signed samples" if sample_format == 2 else "samples"
        raise ImageError(
            f"{label} is a TIFF with {kind} of {bits} bits, whose white is not known; scale them to 8 or 16 bits "
            "without a sign first."
        )
    if is_misread(picture):
        raise ImageError(
            f"{label} is an uncompressed TIFF of {bits} bits with its channels apart, which Pillow misreads; {_AS_PNG}."
        )
    palette = tuple(tags.get(_COLORMAP, ())) if picture.mode in ("P", "PA") else ()
    return SampleLayout(
        bits=bits,
        white_is_zero=picture.mode.startswith("I;16") and tags.get(_PHOTOMETRIC, 0) == 0,
        # Some writers leave 8-bit values in a table of 16-bit ones. All black is black either way.
        palette=palette if palette and max(palette) < 256 else None,
        has_doubtful_alpha=picture.mode == "RGBA" and _EXTRA_SAMPLES not in tags,
    )


def _of_png(picture: ImageFile.ImageFile) -> SampleLayout:
    stored, clear = picture.tile[0].args, picture.info.get("transparency")
    if stored in ("L;2", "L;4") and isinstance(clear, int):
        largest = 3 if stored == "L;2" else 15
        return SampleLayout(clear=(clear * (255 // largest),))
    if stored == "RGB;16B" and isinstance(clear, tuple):
        return SampleLayout(clear=tuple(value >> 8 for value in clear), clear_low=tuple(value & 255 for value in clear))
    return SampleLayout()


def _of_jpeg2000(stream: IO[bytes], mode: str, label: str) -> SampleLayout:
    position = stream.tell()
    stream.seek(0)
    data = stream.read(_SIZ_WITHIN_BYTES)
    stream.seek(position)
    at = data.find(_SIZ)
    count_at = at + len(_SIZ) + 36
    if at < 0 or len(data) < count_at + 2:
        return SampleLayout()
    (n_channels,) = struct.unpack_from(">H", data, count_at)
    depths = tuple((depth & 127) + 1 for depth in data[count_at + 2 : count_at + 2 + 3 * n_channels : 3])
    if mode in ("P", "PA") and depths and depths[0] != 8:
        raise ImageError(
            f"{label} is a JPEG 2000 picture with a palette of {depths[0]} bits, which Pillow misreads; {_AS_PNG}."
        )
    if not mode.startswith("I;16") and max(depths, default=8) > 8:
        raise ImageError(
            f"{label} is a JPEG 2000 picture of {n_channels} channels of {max(depths)} bits, whose white Pillow reads "
            f"as black; {_AS_PNG}."
        )
    if mode.startswith("I;16") and depths:
        return SampleLayout(bits=min(depths[0], 16), is_padded=True)
    return SampleLayout(channel_bits=depths if min(depths, default=8) < 8 else ())


def _unread_tiff(stream: IO[bytes], reason: str) -> str | None:
    """Names the layout of a TIFF that Pillow refused; None when its tags cannot be read either."""
    try:
        stream.seek(0)
        header = stream.read(8)
        if header[2:4] in (b"+\0", b"\0+"):
            header += stream.read(8)
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        if is_raw(tags):
            return _RAW_FILE
        n_samples, bits, photometric = tags.get(_SAMPLES, 1), _first(tags, _BITS, 1), tags.get(_PHOTOMETRIC, 0)
        sample_format = _first(tags, _SAMPLE_FORMAT, 1)
        compression = tags.get(_COMPRESSION, 1)
    except (OSError, ValueError, TypeError, KeyError, IndexError, SyntaxError, struct.error, OverflowError):
        return None
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"is a TIFF with compression {compression}"
    is_whole = _PHOTOMETRIC in tags and (_STRIP_OFFSETS in tags or _TILE_OFFSETS in tags)
    if not is_whole or reason not in ("unknown pixel mode", "unknown data organization"):
        return None
    kind = {2: "signed ", 3: "floating-point "}.get(sample_format, "")
    colour = _PHOTOMETRICS.get(photometric, f"photometric {photometric}")
    return f"is a TIFF of {n_samples} {kind}{'sample' if n_samples == 1 else 'samples'} of {bits} bits ({colour})"


def _unread_jpeg(head: bytes, reason: str) -> str | None:
    """Names the frame of a JPEG that Pillow refused; None when it is the usual one."""
    if "cannot handle" in reason:
        return f"is a JPEG with {reason.removeprefix('cannot handle ')}"
    at = 2
    while at + 4 <= len(head) and head[at] == 0xFF and head[at + 1] != _START_OF_SCAN:
        if head[at + 1] in _JPEG_FRAMES:
            return f"is a {_JPEG_FRAMES[head[at + 1]]} picture"
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def is_raw(tags: Any) -> bool:
    """Returns whether a TIFF's tags are of a sensor's samples, or of the thumbnail that stands before them."""
    is_thumbnail = tags.get(_NEW_SUBFILE) == 1 and _SUB_IFDS in tags
    return is_thumbnail or _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) in (_CFA, _LINEAR_RAW)


def _first(tags: Any, tag: int, default: int) -> int:
    """The tag's value for the first channel."""
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) and value else value)
