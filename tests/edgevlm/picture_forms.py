"""Random pictures in every form of file that we read, each with the RGB that it must become.

A form is a format in one mode, depth, compression and polarity. A file of 8 bits a channel without alpha becomes what
Pillow makes of it. Deeper, inverted and transparent ones are written from samples by picture_writers.py, and
what they must become is computed from those samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.edgevlm.picture_writers import bmp, png, pnm, tiff

Random = np.random.Generator
Rgb = NDArray[np.float64]
"""(height, width, 3), 0 to 255."""
Make = Callable[[Random], tuple[bytes, Rgb]]

CUT_LEVELS = 2.5
"""How far compositing may be when colour and alpha of 16 bits are cut to their upper bytes: a level each and the
rounding. Premultiplied colour is divided by its alpha first, which is rounded once more."""


@dataclass(frozen=True)
class Form:
    """`make(random)` returns a file and its RGB; `levels` is how far a level may be from it."""

    format: str
    name: str
    make: Make
    levels: float = 0.5
    by_pillow: bool = True
    """Pillow reads it, though not always rightly."""


def random_samples(random: Random, bits: int, channels: int = 1) -> NDArray[np.int64]:
    """(height, width[, channels]) samples of `bits`, with the smallest and the largest among them."""
    height, width = random.integers(1, 24, 2)
    shape = (height, width) if channels == 1 else (height, width, channels)
    samples = random.integers(0, 1 << bits, shape)
    samples.ravel()[:: int(random.integers(2, 9))] = random.choice([0, (1 << bits) - 1])
    return samples


def grey(samples: NDArray[np.int64], largest: int) -> Rgb:
    """Grey as RGB."""
    return np.repeat((samples / largest * 255)[..., None], 3, axis=-1)


def white_behind(colour: Rgb, alpha: NDArray[np.float64]) -> Rgb:
    """`colour` 0 to 255 with `alpha` 0 to 1, on white."""
    return colour * alpha[..., None] + 255 * (1 - alpha[..., None])


def written(picture: Image.Image, format_name: str, **options: object) -> bytes:
    """What Pillow writes."""
    stream = BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()


def as_pillow_reads(data: bytes) -> Rgb:
    """Pillow's RGB."""
    with Image.open(BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.float64)


def colours(random: Random) -> Image.Image:
    """A random RGB picture, not all of it noise."""
    samples = random_samples(random, 8, 3).astype(np.uint8)
    zoom = int(random.integers(1, 4))
    return Image.fromarray(samples.repeat(zoom, axis=0).repeat(zoom, axis=1))


# ---- 8 bits a channel, opaque: as Pillow reads them


def pillow_form(format_name: str, name: str, mode: str = "RGB", **options: object) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        picture = colours(random)
        data = written(picture.quantize(32) if mode == "P" else picture.convert(mode), format_name, **options)
        return data, as_pillow_reads(data)

    return Form(format_name, name, make)


PILLOW_FORMS = [
    *(pillow_form("JPEG", f"jpeg {mode}", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
    pillow_form("JPEG", "jpeg progressive 4:4:4", progressive=True, subsampling=0),
    pillow_form("JPEG", "jpeg progressive CMYK", "CMYK", progressive=True),
    *(pillow_form("PNG", f"png {mode}", mode) for mode in ("1", "L", "P", "RGB")),
    pillow_form("WEBP", "webp lossy"),
    pillow_form("WEBP", "webp lossless", lossless=True),
    *(pillow_form("GIF", f"gif {mode}", mode) for mode in ("L", "P")),
    *(pillow_form("BMP", f"bmp {mode}", mode) for mode in ("1", "L", "P", "RGB")),
    *(
        pillow_form("TIFF", f"tiff {mode} {compression}", mode, compression=compression)
        for mode in ("L", "P", "RGB", "CMYK")
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ),
    *(pillow_form("TIFF", f"tiff 1 {name}", "1", compression=name) for name in ("raw", "group3", "group4")),
    pillow_form("TIFF", "tiff YCbCr jpeg", "YCbCr", compression="jpeg"),
    pillow_form("TIFF", "tiff RGB jpeg", "RGB", compression="jpeg"),
    pillow_form("TIFF", "tiff YCbCr raw", "YCbCr", compression="raw"),
    pillow_form("TIFF", "tiff LAB raw", "LAB", compression="raw"),
    pillow_form("JPEG2000", "jp2 L", "L"),
    pillow_form("JPEG2000", "jp2 RGB"),
    pillow_form("JPEG2000", "jp2 RGB irreversible", irreversible=True),
    pillow_form("JPEG2000", "j2k RGB", no_jp2=True),
    *(pillow_form("PPM", f"pnm {mode}", mode) for mode in ("1", "L", "RGB")),
    pillow_form("AVIF", "avif", speed=10),
    pillow_form("AVIF", "avif 4:4:4", speed=10, subsampling="4:4:4"),
    pillow_form("MPO", "mpo"),
]


# ---- PNG from samples


def png_grey(bits: int, transparent: bool) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, largest = random_samples(random, bits), (1 << bits) - 1
        expected = grey(samples, largest)
        if not transparent:
            return png(samples, bits, 0), expected
        clear = int(random.choice(samples.ravel()))
        expected[samples == clear] = 255
        return png(samples, bits, 0, clear.to_bytes(2, "big")), expected

    return Form("PNG", f"png grey {bits}{' clear colour' if transparent else ''}", make)


def png_rgb(bits: int, transparent: bool) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, bits, 3)
        expected = (samples >> (bits - 8)).astype(np.float64)
        clear = samples[0, 0]
        if not transparent:
            return png(samples, bits, 2), expected
        # neighbours of the transparent colour, which differ in a lower or an upper byte only, stay as they are
        for channel, change in ((0, 1), (2, 1 << (bits - 8))):
            at = tuple(random.integers(0, samples.shape[:2]))
            samples[at] = clear
            samples[(*at, channel)] ^= change
        expected = (samples >> (bits - 8)).astype(np.float64)
        expected[(samples == clear).all(axis=-1)] = 255
        return png(samples, bits, 2, clear.astype(">u2").tobytes()), expected

    return Form("PNG", f"png rgb {bits}{' clear colour' if transparent else ''}", make)


def png_palette(bits: int, transparent: bool) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, bits)
        palette = random.integers(0, 256, (1 << bits, 3)).astype(np.uint8)
        alpha = random.integers(0, 256, 1 << bits).astype(np.uint8)
        expected = palette[samples].astype(np.float64)
        if not transparent:
            return png(samples, bits, 3, palette=palette.tobytes()), expected
        return (
            png(samples, bits, 3, alpha.tobytes(), palette.tobytes()),
            white_behind(expected, alpha[samples] / 255),
        )

    return Form("PNG", f"png palette {bits}{' alpha' if transparent else ''}", make, 1)


def png_alpha(bits: int, channels: int, zero: bool = False) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, largest = random_samples(random, bits, channels), (1 << bits) - 1
        if zero:
            samples[..., -1] = 0
        colour = samples[..., :-1] / largest * 255
        expected = white_behind(np.repeat(colour, 3 // (channels - 1), axis=-1), samples[..., -1] / largest)
        return png(samples, bits, 4 if channels == 2 else 6), expected

    name = f"png {'grey' if channels == 2 else 'rgb'} alpha {bits}{' all zero' if zero else ''}"
    return Form("PNG", name, make, 1 if bits == 8 else CUT_LEVELS)


PNG_FORMS = [
    *(png_grey(bits, transparent) for bits in (1, 2, 4, 8, 16) for transparent in (False, True)),
    *(png_rgb(bits, transparent) for bits in (8, 16) for transparent in (False, True)),
    *(png_palette(bits, transparent) for bits in (1, 2, 4, 8) for transparent in (False, True)),
    *(png_alpha(bits, channels) for bits in (8, 16) for channels in (2, 4)),
    png_alpha(8, 4, zero=True),
    png_alpha(8, 2, zero=True),
]


# ---- TIFF from samples


def tiff_grey(bits: int, photometric: int, order: str, deflated: bool = False) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, largest = random_samples(random, bits), (1 << bits) - 1
        expected = grey(samples if photometric else largest - samples, largest)
        data = tiff(
            samples, bits, photometric, order=order, deflated=deflated, rows_per_strip=int(random.integers(1, 25))
        )
        return data, expected

    name = f"tiff grey {bits} {'black' if photometric else 'white'} is zero {order}{' deflated' if deflated else ''}"
    by_pillow = bits in (1, 2, 4, 8) or (bits, photometric) == (16, 1) or (bits, order) == (16, "<")
    return Form("TIFF", name, make, by_pillow=by_pillow or (bits, photometric, order) == (12, 1, "<"))


def tiff_colour(
    bits: int, order: str, *, extra: int | None = None, deflated: bool = False, planar: bool = False, zero: bool = False
) -> Form:
    """RGB with an extra sample of ExtraSamples' kind `extra`: 0 anything, 1 premultiplied alpha, 2 alpha, -1 unsaid."""

    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, largest = random_samples(random, bits, 3 if extra is None else 4), (1 << bits) - 1
        colour = (samples[..., :3] >> (bits - 8)).astype(np.float64)
        expected = colour
        if extra is not None:
            if zero:
                samples[..., 3] = 0
            alpha = samples[..., 3] / largest
            if extra == 1:
                samples[..., :3] = (samples[..., :3] * alpha[..., None]).astype(np.int64)
                expected = samples[..., :3] / largest * 255 + 255 * (1 - alpha[..., None])
            elif extra == 2 or (extra == -1 and not zero):
                expected = white_behind(samples[..., :3] / largest * 255, alpha)
        tags = {} if extra in (None, -1) else {338: ("H", [extra])}
        return tiff(samples, bits, 2, order=order, deflated=deflated, planar=planar, tags=tags), expected

    kind = {None: "", 0: " extra", 1: " premultiplied", 2: " alpha", -1: " unsaid alpha"}[extra]
    form = f"{' deflated' if deflated else ''}{' planes' if planar else ''}{' zero' if zero else ''}"
    levels = 0.5 if extra in (None, 0) or (extra == -1 and zero) else CUT_LEVELS + (extra == 1)
    return Form(
        "TIFF",
        f"tiff rgb {bits} {order}{kind}{form}",
        make,
        levels,
        bits == 8 or (bits == 16 and (deflated or not planar)),
    )


def tiff_grey_alpha(bits: int, extra: int, photometric: int = 1, order: str = "<") -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, largest = random_samples(random, bits, 2), (1 << bits) - 1
        alpha = samples[..., 1] / largest
        shown = samples[..., 0] / largest
        if extra == 1:
            samples[..., 0] = (samples[..., 0] * alpha).astype(np.int64)
            shown = samples[..., 0] / largest + (1 - alpha)
        elif extra == 2:
            shown = shown * alpha + (1 - alpha)
        if photometric == 0:
            samples[..., 0] = largest - samples[..., 0]
        return tiff(samples, bits, photometric, order=order, tags={338: ("H", [extra])}), grey(shown * 255, 255)

    name = f"tiff grey {bits} {'black' if photometric else 'white'} is zero {order} extra {extra}"
    return Form("TIFF", name, make, CUT_LEVELS if extra else 0.51, bits == 8 and photometric == 1)


def tiff_palette(bits: int, short: bool) -> Form:
    """`short`: the table's 16-bit entries hold 8-bit values, as some writers leave them."""

    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, bits)
        table = random.integers(0, 256, (3, 1 << bits))
        table[0, 0] = 200  # more than black
        entries = table if short else table * 257
        expected = table.T[samples].astype(np.float64)
        return tiff(samples, bits, 3, tags={320: ("H", [int(value) for value in entries.ravel()])}), expected

    return Form("TIFF", f"tiff palette {bits}{' of 8-bit entries' if short else ''}", make)


TIFF_FORMS = [
    *(tiff_grey(bits, photo, order) for bits in (1, 2, 4, 8) for photo in (0, 1) for order in "<>"),
    *(tiff_grey(bits, 0, "<", deflated=True) for bits in (1, 2, 4, 8)),
    *(tiff_grey(16, 1, order, deflated) for order in "<>" for deflated in (False, True)),
    *(tiff_grey(16, 0, order, deflated) for order in "<>" for deflated in (False, True)),
    *(
        tiff_grey(bits, photo, order, deflated)
        for bits in (10, 12, 14)
        for photo in (0, 1)
        for order in "<>"
        for deflated in (False, True)
    ),
    *(tiff_grey(bits, photo, "<") for bits in (3, 5, 6, 9, 11, 15) for photo in (0, 1)),
    *(tiff_colour(bits, order, extra=extra) for bits in (10, 12, 14) for order in "<>" for extra in (None, 0, 1, 2)),
    *(tiff_colour(16, order, planar=True, extra=extra) for order in "<>" for extra in (None, 2)),
    tiff_colour(12, "<", planar=True),
    tiff_colour(12, ">", planar=True, deflated=True),
    *(tiff_colour(bits, order, deflated=deflated) for bits in (8, 16) for order in "<>" for deflated in (False, True)),
    *(tiff_colour(bits, order, extra=extra) for bits in (8, 16) for order in "<>" for extra in (0, 1, 2)),
    tiff_colour(8, "<", extra=2, zero=True),
    tiff_colour(8, "<", extra=-1),
    tiff_colour(8, "<", extra=-1, zero=True),
    tiff_colour(8, "<", planar=True),
    tiff_colour(8, ">", planar=True, deflated=True),
    tiff_colour(16, "<", planar=True, deflated=True),
    tiff_colour(8, "<", planar=True, extra=2),
    *(tiff_grey_alpha(bits, extra) for bits in (8, 12, 16) for extra in (0, 1, 2)),
    *(tiff_grey_alpha(16, extra, photometric, ">") for photometric in (0, 1) for extra in (0, 2)),
    *(tiff_palette(bits, short) for bits in (1, 2, 4, 8) for short in (False, True)),
]


# ---- PNM, BMP, JPEG 2000, GIF and WebP from samples


def pnm_form(kind: int, largest: int) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, 16, 3 if kind in (3, 6) else 1) % (largest + 1)
        expected = samples / largest * 255 if samples.ndim == 3 else grey(samples, largest)
        return pnm(kind, samples, largest), 255 - expected if kind in (1, 4) else expected

    return Form("PPM", f"pnm P{kind} of {largest}", make, 0.51)


MASKS = {
    "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
}


def bmp_fields(order: str, header_bytes: int, alpha: str) -> Form:
    """32 bits in fields; `alpha` is "zero", "some", "full" or "none" (no mask, the byte holds anything)."""

    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, 8, 4)
        if alpha in ("zero", "full"):
            samples[..., 3] = 0 if alpha == "zero" else 255
        elif alpha == "some":
            samples[0, 0, 3] = 77
        masks = MASKS[order]
        shifts = np.array([(mask & -mask).bit_length() - 1 for mask in masks])
        expected = samples[..., :3].astype(np.float64)
        if alpha == "some":
            expected = white_behind(expected, samples[..., 3] / 255)
        stored = masks if alpha != "none" else (*masks[:3], 0)
        pixels = (samples << shifts).sum(axis=-1)
        return bmp(pixels, 32, header_bytes=header_bytes, masks=stored[: 3 if header_bytes == 40 else 4]), expected

    return Form("BMP", f"bmp 32 {order} header {header_bytes} alpha {alpha}", make, 1 if alpha == "some" else 0.5)


def bmp_plain(bits: int, header_bytes: int = 40, top_down: bool = False) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, 8, 4)  # blue, green, red, anything
        pixels = (samples << np.array([0, 8, 16, 24])).sum(axis=-1) & ((1 << bits) - 1)
        data = bmp(pixels, bits, header_bytes=header_bytes, top_down=top_down)
        return data, samples[..., 2::-1].astype(np.float64)

    return Form("BMP", f"bmp {bits} header {header_bytes}{' top down' if top_down else ''}", make)


def bmp_palette(bits: int, runs: bool = False) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, bits)
        palette = random.integers(0, 256, (1 << bits, 4)).astype(np.uint8)
        body = None
        if runs:  # every pixel a run of one
            rows = [b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in samples[::-1].tolist()]
            body = b"".join(rows) + b"\0\1"
        data = bmp(samples, bits, palette=palette.tobytes(), compression=1 if runs else 0, body=body)
        return data, palette[:, 2::-1][samples].astype(np.float64)

    return Form("BMP", f"bmp palette {bits}{' in runs' if runs else ''}", make)


def bmp_short(masks: tuple[int, int, int]) -> Form:
    """16 bits in three fields."""

    def make(random: Random) -> tuple[bytes, Rgb]:
        pixels = random_samples(random, 16)
        parts = []
        for mask in masks:
            shift = (mask & -mask).bit_length() - 1
            parts.append(((pixels & mask) >> shift) / (mask >> shift) * 255)
        return bmp(pixels, 16, masks=masks), np.stack(parts, axis=-1)

    return Form("BMP", f"bmp 16 {masks[0]:x}", make, 1)


def j2k(bits: int, channels: int = 1, signed: bool = False) -> Form:
    """JPEG 2000 of a depth that Pillow does not write, in a lossless file of 8 or 16 bits whose header is changed.

    The wavelets hold sample - 2^(depth - 1); with samples moved by the difference of the two, the changed depth shows
    the wanted ones. A signed file has no such shift.
    """

    def make(random: Random) -> tuple[bytes, Rgb]:
        samples, stored_bits = random_samples(random, bits, channels), 8 if bits <= 8 else 16
        moved = samples + (1 << (stored_bits - 1)) - (1 << (bits - 1))
        picture = Image.fromarray(moved.astype(np.uint8 if stored_bits == 8 else np.uint16))
        data = bytearray(written(picture, "JPEG2000", no_jp2=True, irreversible=False, mct=0, num_resolutions=1))
        at = data.find(b"\xff\x51") + 40
        for channel in range(channels):
            data[at + 3 * channel] = bits - 1 + 128 * signed
        largest = (1 << bits) - 1
        return bytes(data), grey(samples, largest) if channels == 1 else samples / largest * 255

    return Form("JPEG2000", f"j2k {channels} x {bits}{' signed' if signed else ''}", make)


def with_alpha(format_name: str, zero: bool) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, 8, 4).astype(np.uint8)
        if zero:
            samples[..., 3] = 0
        expected = white_behind(samples[..., :3].astype(np.float64), samples[..., 3] / 255)
        return written(Image.fromarray(samples), format_name, lossless=True, exact=True), expected

    return Form(format_name, f"{format_name.lower()} alpha{' all zero' if zero else ''}", make, 1)


def gif_clear(everything: bool) -> Form:
    def make(random: Random) -> tuple[bytes, Rgb]:
        samples = random_samples(random, 8).astype(np.uint8)
        if everything:
            samples[:] = 7
        palette = random.integers(0, 256, (256, 3)).astype(np.uint8)
        picture = Image.fromarray(samples)
        picture.putpalette(palette.tobytes())
        clear = int(samples[0, 0])
        expected = palette[samples].astype(np.float64)
        expected[samples == clear] = 255
        return written(picture, "GIF", transparency=clear, optimize=False), expected

    return Form("GIF", f"gif {'all ' if everything else ''}clear", make)


def turned(format_name: str, bits: int, orientation: int) -> Form:
    """EXIF's orientation, by its definition: what is stored for an upright picture."""
    stored = {
        2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1), 8: lambda p: np.rot90(p, -1),
    }[orientation]  # fmt: skip

    def make(random: Random) -> tuple[bytes, Rgb]:
        upright = random_samples(random, bits)
        samples = np.ascontiguousarray(stored(upright))
        if format_name == "PNG":
            return png(samples, 16, 0, orientation=orientation), grey(upright, 65_535)
        tags = {274: ("H", [orientation])}
        return tiff(samples, bits, 0, tags=tags), grey((1 << bits) - 1 - upright, (1 << bits) - 1)

    return Form(format_name, f"{format_name.lower()} {bits} turned by {orientation}", make)


OTHER_FORMS = [
    *(pnm_form(kind, largest) for kind in (2, 3, 5, 6) for largest in (1, 3, 100, 255, 1000, 4095, 65_535)),
    pnm_form(1, 1),
    pnm_form(4, 1),
    *(
        bmp_fields(order, header, alpha)
        for order in MASKS
        for header in (108, 124)
        for alpha in ("zero", "some", "full")
    ),
    bmp_fields("bgra", 56, "zero"),
    bmp_fields("bgra", 40, "none"),
    bmp_fields("bgra", 108, "none"),
    *(bmp_plain(32, header) for header in (40, 108, 124)),
    bmp_plain(24),
    bmp_plain(24, top_down=True),
    bmp_plain(32, top_down=True),
    *(bmp_palette(bits) for bits in (1, 4, 8)),
    bmp_palette(8, runs=True),
    bmp_short((0xF800, 0x7E0, 0x1F)),
    bmp_short((0x7C00, 0x3E0, 0x1F)),
    *(j2k(bits) for bits in (1, 2, 4, 7, 10, 12, 14)),
    *(j2k(bits, 3) for bits in (2, 4, 6)),
    j2k(8, signed=True),
    j2k(12, signed=True),
    *(with_alpha(format_name, zero) for format_name in ("WEBP",) for zero in (False, True)),
    gif_clear(everything=False),
    gif_clear(everything=True),
    *(
        turned(format_name, bits, orientation)
        for format_name, bits in (("PNG", 16), ("TIFF", 8), ("TIFF", 16))
        for orientation in range(2, 9)
    ),
]

FORMS = [*PILLOW_FORMS, *PNG_FORMS, *TIFF_FORMS, *OTHER_FORMS]
