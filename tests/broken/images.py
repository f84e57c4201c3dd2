"""Broken pictures: `load_image(case.make(tmp_path))` must raise `case.error`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.errors import ImageError
from tests.broken import BrokenCase
from tests.broken.image_kinds import FILES
from tests.edgevlm.picture_writers import bmp, tiff


def encoded(format_name: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    """A small noisy picture in a file format."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, format_name, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def written(name: str, data: bytes) -> Callable[[Path], object]:
    def make(tmp_path: Path) -> object:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return make


def gif_bomb() -> bytes:
    data = bytearray(encoded("GIF", "P"))
    data[6:10] = struct.pack("<HH", 65_000, 65_000)
    return bytes(data)


def float_tiff() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)).save(stream, "TIFF")
    return stream.getvalue()


def wide_tiff() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.array([[0, 1 << 20]], np.int32)).save(stream, "TIFF")
    return stream.getvalue()


GREY = np.arange(12).reshape(3, 4)
COLOUR = np.arange(36).reshape(3, 4, 3)


def tagged(bits: int, photometric: int, *, colour: bool = False, order: str = "<", **tags: int) -> bytes:
    """A TIFF with short values of the tags t254, t338, ..."""
    values = {int(name[1:]): ("H", [value]) for name, value in tags.items()}
    return tiff(COLOUR if colour else GREY, bits, photometric, order=order, tags=values)


def tiled_planes() -> bytes:
    """Uncompressed 16-bit RGB, its channels apart, in one tile each; the strips' tags are lost on the way."""
    samples = np.arange(16 * 16 * 3).reshape(16, 16, 3)
    data = tiff(samples, 16, 2, planar=True, tags={322: ("H", [16]), 323: ("H", [16])})
    for strips, tiles in ((273, 324), (279, 325)):
        entry = struct.pack("<HH", strips, 4)
        data = data.replace(entry, struct.pack("<HH", tiles, 4), 1)
    return data


def jpeg_of_bits(bits: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    data[data.find(b"\xff\xc0") + 4] = bits
    return bytes(data)


def jpeg_of_frame(marker: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    data[data.find(b"\xff\xc0") + 1] = marker
    return bytes(data)


def deep_colour_j2k(mode: str, bits: int) -> bytes:
    data = bytearray(encoded("JPEG2000", mode, no_jp2=True))
    at = data.find(b"\xff\x51") + 40
    for channel in range(len(mode)):
        data[at + 3 * channel] = bits - 1
    return bytes(data)


class Broken:
    """A file object that fails, or gives what no picture is made of."""

    def __init__(self, result: object) -> None:
        self.result = result

    def read(self) -> object:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def closed_stream() -> BytesIO:
    stream = BytesIO(encoded("PNG"))
    stream.close()
    return stream


CASES = [
    *(BrokenCase(name, written(file, data), ImageError, said) for name, file, data, said in FILES),
    BrokenCase("raw dng", written("p.dng", tagged(8, 1, t50706=1)), ImageError, "a camera's raw file"),
    BrokenCase("raw nef", written("p.nef", tagged(8, 2, colour=True, t254=1, t330=8)), ImageError, "only a thumbnail"),
    BrokenCase("raw sensor", written("p.tif", tagged(16, 32803)), ImageError, "a camera's raw file"),
    BrokenCase("tiff of signed 8 bits", written("p.tif", tagged(8, 1, t339=2)), ImageError, "signed samples of 8 bits"),
    BrokenCase("tiff of signed 16 bits", written("p.tif", tagged(16, 1, t339=2)), ImageError, "signed samples of 16"),
    BrokenCase("tiff of 32 bits", written("p.tif", tagged(32, 1)), ImageError, "32 bits, whose white is not known"),
    BrokenCase("tiff of 24 bits", written("p.tif", tagged(24, 1)), ImageError, "1 sample of 24 bits (grey)"),
    BrokenCase("truncated tiff of 12 bits", written("p.tif", tagged(12, 0)[:-4]), ImageError, "is damaged"),
    BrokenCase("tiff of 16-bit planes in tiles", written("p.tif", tiled_planes()), ImageError, "its channels apart"),
    BrokenCase("tiff of half floats", written("p.tif", tagged(16, 1, t339=3)), ImageError, "1 floating-point sample"),
    BrokenCase("tiff of CIE LogLuv", written("p.tif", tagged(16, 32845, colour=True)), ImageError, "LogLuv"),
    BrokenCase("tiff of unknown compression", written("p.tif", tagged(8, 1, t259=34712)), ImageError, "34712"),
    BrokenCase("jpeg of 12 bits", written("p.jpg", jpeg_of_bits(12)), ImageError, "a JPEG with 12-bit layers"),
    BrokenCase("jpeg-ls behind other segments", written("p.jpg", jpeg_of_frame(0xF7)), ImageError, "a JPEG-LS picture"),
    BrokenCase("jpeg 2000 of 12-bit colour", written("p.j2k", deep_colour_j2k("RGB", 12)), ImageError, "12 bits"),
    BrokenCase("jpeg 2000 of 16 bits with alpha", written("p.j2k", deep_colour_j2k("LA", 16)), ImageError, "16 bits"),
    BrokenCase("bmp of 2 bits", written("p.bmp", bmp(GREY, 2)), ImageError, "BMP pixel depth (2)"),
    BrokenCase(
        "bmp of odd fields",
        written("p.bmp", bmp(GREY, 16, masks=(0xF000, 0xF00, 0xF0))),
        ImageError,
        "a BMP of a rare form",
    ),
    BrokenCase("jpeg in a bmp", written("p.bmp", bmp(GREY, 24, compression=4)), ImageError, "BMP compression (4)"),
    BrokenCase("closed file object", lambda tmp: closed_stream(), ImageError, "cannot be read"),
    BrokenCase("text file object", lambda tmp: StringIO("picture"), ImageError, "open it in binary mode"),
    BrokenCase("file object of nothing", lambda tmp: BytesIO(), ImageError, "is empty"),
    BrokenCase("file object that fails", lambda tmp: Broken(OSError("lost")), ImageError, "cannot be read: lost"),
    BrokenCase("file object that gives None", lambda tmp: Broken(None), ImageError, "gives NoneType"),
    BrokenCase("file address of nothing", lambda tmp: (tmp / "no.png").as_uri(), ImageError, "no.png' does not exist"),
    BrokenCase("missing file", lambda tmp: tmp / "no.png", ImageError, "no.png' does not exist"),
    BrokenCase("directory", lambda tmp: tmp, ImageError, "is not a file"),
    BrokenCase("zero bytes", written("empty.jpg", b""), ImageError, "empty.jpg' is empty"),
    BrokenCase("text", written("note.png", b"hello, this is no picture\n"), ImageError, "is text, not a picture"),
    BrokenCase("svg", written("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ImageError, "render it to PNG"),
    BrokenCase("xml", written("b.svg", b"\xef\xbb\xbf<?xml version='1.0'?><svg/>"), ImageError, "SVG or XML"),
    BrokenCase("heic", written("p.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40), ImageError, "HEIC"),
    BrokenCase("video", written("v.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + b"\0" * 40), ImageError, "a video"),
    BrokenCase("pdf", written("d.pdf", b"%PDF-1.7\n%%EOF"), ImageError, "a PDF document"),
    BrokenCase("postscript", written("d.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), ImageError, "a PostScript document"),
    BrokenCase("signature only", written("s.png", b"\x89PNG\r\n\x1a\n"), ImageError, "s.png' is damaged"),
    BrokenCase("truncated png", written("t.png", encoded("PNG")[:-200]), ImageError, "t.png' is damaged"),
    BrokenCase("truncated jpeg", written("t.jpg", encoded("JPEG")[:400]), ImageError, "t.jpg' is damaged"),
    BrokenCase("jpeg header only", written("h.jpg", encoded("JPEG")[:30]), ImageError, "h.jpg' is damaged"),
    BrokenCase("truncated webp", written("t.webp", encoded("WEBP")[:60]), ImageError, "t.webp' is damaged"),
    BrokenCase("truncated gif", written("t.gif", encoded("GIF", "P")[:20]), ImageError, "t.gif' is damaged"),
    BrokenCase("truncated tiff", written("t.tif", encoded("TIFF")[:60]), ImageError, "t.tif' is damaged"),
    BrokenCase("truncated bmp", written("t.bmp", encoded("BMP")[:90]), ImageError, "t.bmp' is damaged"),
    BrokenCase(
        "bad checksum", written("c.png", encoded("PNG").replace(b"IDAT", b"IDAX", 1)), ImageError, "c.png' is damaged"
    ),
    BrokenCase(
        "decompression bomb",
        written("bomb.png", png_header(50_000, 50_000)),
        ImageError,
        "50000 x 50000 = 2,500,000,000 pixels; the limit is 120,000,000",
    ),
    BrokenCase("just above the limit", written("big.png", png_header(12_001, 10_000)), ImageError, "120,010,000"),
    BrokenCase("gif bomb", written("bomb.gif", gif_bomb()), ImageError, "4,225,000,000 pixels"),
    BrokenCase("long side", written("long.png", png_header(70_000, 2)), ImageError, "longest accepted side is 65,535"),
    BrokenCase("zero-sized png", written("z.png", png_header(0, 5)), ImageError, "z.png'"),
    BrokenCase("float tiff", written("f.tif", float_tiff()), ImageError, "floating-point"),
    BrokenCase("32-bit tiff", written("w.tif", wide_tiff()), ImageError, "32 bits, whose white is not known"),
    BrokenCase("bytes of nothing", lambda tmp: b"", ImageError, "of 0 bytes is empty"),
    BrokenCase("random bytes", lambda tmp: bytes(range(7, 99)), ImageError, "of 92 bytes is not a picture"),
    BrokenCase("float array", lambda tmp: np.zeros((4, 4, 3), np.float32), ImageError, "float32 is not accepted"),
    BrokenCase(
        "channels first", lambda tmp: np.zeros((3, 40, 50), np.uint8), ImageError, "Move the channels to the end"
    ),
    BrokenCase("one axis", lambda tmp: np.zeros(9, np.uint8), ImageError, "expected (height, width)"),
    BrokenCase("empty array", lambda tmp: np.zeros((0, 4, 3), np.uint8), ImageError, "no pixels"),
    BrokenCase("wrong type", lambda tmp: 7, ImageError, "type int is not a picture"),
    BrokenCase("path with a zero byte", lambda tmp: "a\0b.png", ImageError, "cannot be opened"),
]
