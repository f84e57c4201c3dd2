"""TIFFs of unsigned samples that Pillow has no mode for or misreads: 10, 12 or 14 bits, grey of 16 with alpha.

Pillow and libtiff still unpack the file: of its strips a file of bytes is made, whose rows are the rows of this one,
and the samples are taken from those. Strips only, without a predictor.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from edgevlm.sample_layout import SampleLayout, is_raw
from edgevlm.samples import STRIP_PIXELS, grey_to_8

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 317, 338, 339
_BYTE_COMPRESSIONS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""None, LZW, deflate, PackBits, deflate again, LZMA, Zstandard: those that know nothing of samples."""
_WHITE_IS_ZERO, _RGB = 0, 2
_PREMULTIPLIED, _ALPHA = 1, 2


@dataclass(frozen=True)
class DeepTiff:
    """A TIFF that we take the samples from ourselves."""

    data: bytes
    order: str
    height_px: int
    width_px: int
    bits: int
    n_channels: int
    photometric: int
    extra: int | None
    """What the channel behind grey or RGB is, by ExtraSamples; None without one."""
    is_planar: bool
    compression: int
    rows_per_strip: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    orientation: int

    @property
    def decoding_bytes(self) -> int:
        """The most that `load` and the RGB after it take."""
        per_pixel = -(-self.n_channels * self.bits // 8) + 4 + max(self.n_channels, 2) + 3
        return self.height_px * self.width_px * per_pixel + 2 * len(self.data) + (64 << 20)

    def load(self) -> tuple[Image.Image, SampleLayout]:
        """Returns the picture in a mode of 16-bit grey, or of 8 bits a channel, and how to read it."""
        shape = (self.height_px, self.width_px)
        if self.n_channels == 1:
            samples = np.empty(shape, dtype=np.uint16)
            self._fill(samples[..., None], 0, lambda found: found)
            layout = SampleLayout(bits=self.bits, white_is_zero=self.photometric == _WHITE_IS_ZERO)
            return Image.fromarray(samples), layout
        channels = np.empty((*shape, self.n_channels), dtype=np.uint8)
        for plane in range(self.n_channels if self.is_planar else 1):
            part = channels[..., plane : plane + 1] if self.is_planar else channels
            self._fill(part, plane, self._to_8)
        n_colours = 3 if self.photometric == _RGB else 1
        if self.photometric == _WHITE_IS_ZERO:
            np.subtract(255, channels[..., :1], out=channels[..., :1])
        if self.extra not in (_PREMULTIPLIED, _ALPHA):
            colours = np.ascontiguousarray(channels[..., :n_colours])
            return Image.fromarray(colours if n_colours == 3 else colours[..., 0]), SampleLayout()
        mode = {(3, _ALPHA): "RGBA", (1, _ALPHA): "LA", (3, _PREMULTIPLIED): "RGBa", (1, _PREMULTIPLIED): "La"}
        size = (self.width_px, self.height_px)
        return Image.frombytes(mode[n_colours, self.extra], size, channels.tobytes()), SampleLayout()

    def _to_8(self, samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Grey and its alpha to the nearest level, colour cut to its upper byte, as everywhere."""
        if self.photometric != _RGB or self.bits < 8:
            return grey_to_8(samples, (1 << self.bits) - 1)
        return (samples >> (self.bits - 8)).astype(np.uint8)

    def _fill(self, out: NDArray[Any], plane: int, convert: Any) -> None:
        """Writes the samples (height, width, channels) of a plane, some rows at a time."""
        n_samples = self.width_px * out.shape[2]
        rows = np.asarray(self._rows_as_bytes(plane, -(-n_samples * self.bits // 8)))
        step = max(1, STRIP_PIXELS // (8 * n_samples))
        for top in range(0, self.height_px, step):
            found = self._samples(rows[top : top + step], n_samples)
            out[top : top + step] = convert(found).reshape(-1, self.width_px, out.shape[2])

    def _samples(self, rows: NDArray[np.uint8], n_samples: int) -> NDArray[np.uint16]:
        if self.bits == 16:
            return np.ascontiguousarray(rows).view(f"{self.order}u2").astype(np.uint16)
        bits = np.unpackbits(rows, axis=1)[:, : n_samples * self.bits].reshape(len(rows), n_samples, self.bits)
        samples = np.zeros((len(rows), n_samples), dtype=np.uint16)
        for place in range(self.bits):
            samples = (samples << np.uint16(1)) | bits[..., place]
        return samples

    def _rows_as_bytes(self, plane: int, row_bytes: int) -> Image.Image:
        """The rows of a plane as a grey picture of bytes: the same strips behind a directory of our own."""
        n_strips = -(-self.height_px // self.rows_per_strip)
        own = slice(plane * n_strips, (plane + 1) * n_strips)
        tags = {
            _WIDTH: [row_bytes], _HEIGHT: [self.height_px], _BITS: [8], _COMPRESSION: [self.compression],
            _PHOTOMETRIC: [1], _OFFSETS: self.offsets[own], _SAMPLES: [1], _ROWS: [self.rows_per_strip],
            _COUNTS: self.counts[own],
        }  # fmt: skip
        if any(
            offset + count > len(self.data) for offset, count in zip(self.offsets[own], self.counts[own], strict=True)
        ):
            raise OSError("image file is truncated")  # what is missing would be read from the directory behind it
        at = len(self.data) + len(self.data) % 2
        lists_at = at + 2 + 12 * len(tags) + 4
        entries, lists = b"", b""
        for tag, values in sorted(tags.items()):
            packed = struct.pack(f"{self.order}{len(values)}I", *values)
            if len(values) > 1:
                field = struct.pack(f"{self.order}I", lists_at + len(lists))
                lists += packed
            else:
                field = packed
            entries += struct.pack(f"{self.order}HHI", tag, 4, len(values)) + field
        head = self.data[:4] + struct.pack(f"{self.order}I", at) + self.data[8:] + b"\0" * (len(self.data) % 2)
        directory = struct.pack(f"{self.order}H", len(tags)) + entries + struct.pack(f"{self.order}I", 0)
        picture = TiffImagePlugin.TiffImageFile(BytesIO(head + directory + lists), "")
        picture.load()
        return picture


def open_deep_tiff(stream: IO[bytes]) -> DeepTiff | None:
    """Returns the TIFF in `stream`; None if its samples are not unsigned ones of up to 16 bits, in strips of bytes."""
    stream.seek(0)
    header = stream.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(header[:4])
    if order is None:
        return None
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
    stream.seek(tags.next)
    tags.load(stream)
    bits, formats = _values(tags, _BITS, (1,)), _values(tags, _SAMPLE_FORMAT, (1,))
    n_channels, photometric = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC)
    n_colours = 3 if photometric == _RGB else 1
    height_px, width_px, offsets = tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0), _values(tags, _OFFSETS, ())
    counts, rows_per_strip = _values(tags, _COUNTS, ()), min(tags.get(_ROWS, height_px), height_px)
    is_planar = tags.get(_PLANAR, 1) == 2 and n_channels > 1
    is_ours = (
        not is_raw(tags)
        and photometric in (0, 1, _RGB)
        and 1 <= bits[0] <= 16
        and set(bits) == {bits[0]}
        and set(formats) == {1}
        and n_channels - n_colours in (0, 1)
        and tags.get(_COMPRESSION, 1) in _BYTE_COMPRESSIONS
        and tags.get(_PREDICTOR, 1) == 1
        and tags.get(_FILL_ORDER, 1) == 1
        and height_px > 0
        and width_px > 0
        and rows_per_strip > 0
        and len(offsets) == len(counts) == (n_channels if is_planar else 1) * -(-height_px // rows_per_strip)
    )
    if not is_ours:
        return None
    stream.seek(0)
    extra = (_values(tags, _EXTRA_SAMPLES, (0,)) or (0,))[0] if n_channels > n_colours else None
    return DeepTiff(
        stream.read(), order, height_px, width_px, bits[0], n_channels, photometric, extra, is_planar,
        tags.get(_COMPRESSION, 1), rows_per_strip, offsets, counts, tags.get(_ORIENTATION, 1),
    )  # fmt: skip


def _values(tags: Any, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) else (value,)
