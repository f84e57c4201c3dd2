"""Writers of picture files for the tests, from samples of any depth: what Pillow cannot write, and never through it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.integer]

_FIELD_TYPES = {"B": 1, "H": 3, "I": 4}


def packed_rows(samples: Samples, bits: int, order: str = ">") -> list[bytes]:
    """The rows of (height, width[, channels]) samples, each padded to whole bytes; the first sample in the upper bits.

    Samples of 16 and 32 bits stand in byte `order`.
    """
    rows = samples.reshape(samples.shape[0], -1).astype(np.int64)
    if bits in (16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows & ((1 << bits) - 1)]
    shifts = np.arange(bits - 1, -1, -1)
    as_bits = ((rows[..., None] >> shifts) & 1).astype(np.uint8).reshape(rows.shape[0], -1)
    return [row.tobytes() for row in np.packbits(as_bits, axis=1)]


def png(
    samples: Samples,
    bits: int,
    colour_type: int,
    transparent: bytes = b"",
    palette: bytes = b"",
    orientation: int | None = None,
) -> bytes:
    """A PNG of (height, width[, channels]) samples. Source: the PNG specification, third edition."""
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparent)]
    if orientation is not None:
        parts.append((b"eXIf", struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 274, 3, 1, orientation, 0, 0)))
    rows = b"".join(b"\0" + row for row in packed_rows(samples, bits))
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [(kind, data) for kind, data in parts if data or kind == b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(
    samples: Samples,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    deflated: bool = False,
    planar: bool = False,
    rows_per_strip: int | None = None,
    tags: Mapping[int, tuple[str, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of (height, width[, channels]) samples; `tags` (type, values) are added. Source: TIFF 6.0."""
    height, width = samples.shape[:2]
    n_channels = samples.shape[2] if samples.ndim == 3 else 1
    planes = [samples[..., channel] for channel in range(n_channels)] if planar and n_channels > 1 else [samples]
    n_rows = rows_per_strip or height
    strips: list[bytes] = []
    for plane in planes:
        rows = packed_rows(plane, bits, order)
        strips += [b"".join(rows[top : top + n_rows]) for top in range(0, height, n_rows)]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * n_channels), 259: ("H", [8 if deflated else 1]),
        262: ("H", [photometric]), 273: ("I", [0] * len(strips)), 277: ("H", [n_channels]), 278: ("I", [n_rows]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [2 if planar else 1]), **(tags or {}),
    }  # fmt: skip
    sizes = {tag: struct.calcsize(kind) * len(values) for tag, (kind, values) in entries.items()}
    long_at = 8 + 2 + 12 * len(entries) + 4
    data_at = long_at + sum(size + size % 2 for size in sizes.values() if size > 4)
    ends = np.cumsum([0, *(len(strip) for strip in strips)])
    entries[273] = ("I", [data_at + int(end) for end in ends[:-1]])
    directory, long_values = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(value) > 4:
            field = struct.pack(f"{order}I", long_at + len(long_values))
            long_values += value + b"\0" * (len(value) % 2)
        else:
            field = value.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, _FIELD_TYPES[kind], len(values)) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + directory + struct.pack(f"{order}I", 0) + long_values + b"".join(strips)


def bmp(
    samples: Samples,
    bits: int,
    *,
    header_bytes: int = 40,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    compression: int | None = None,
    top_down: bool = False,
    body: bytes | None = None,
) -> bytes:
    """A BMP of (height, width) pixels, each a number of `bits`; `masks` make bit fields, `body` replaces the rows.

    Source: Microsoft's BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER.
    """
    height, width = samples.shape
    if bits >= 8:
        rows = [row.astype("<u4").tobytes() for row in samples]
        rows = [b"".join(row[at : at + bits // 8] for at in range(0, len(row), 4)) for row in rows]
    else:
        rows = packed_rows(samples, bits)
    rows = [row + b"\0" * (-len(row) % 4) for row in rows]
    pixels = b"".join(rows if top_down else rows[::-1]) if body is None else body
    method = (3 if masks else 0) if compression is None else compression
    info = struct.pack(
        "<IiiHHIIiiII", header_bytes, width, -height if top_down else height, 1, bits, method, len(pixels), 0, 0,
        len(palette) // 4, 0,
    )  # fmt: skip
    behind = struct.pack(f"<{len(masks)}I", *masks)
    info = (info + behind).ljust(header_bytes, b"\0") if header_bytes > 40 else info + behind
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(pixels), 0, 0, at) + info + palette + pixels


def pnm(kind: int, samples: Samples, largest: int) -> bytes:
    """A PBM, PGM or PPM of `kind` 1 to 6. Source: the netpbm manual."""
    head = f"P{kind}\n# a comment\n{samples.shape[1]} {samples.shape[0]}\n"
    if kind not in (1, 4):
        head += f"{largest}\n"
    if kind <= 3:
        return (head + "\n".join(" ".join(map(str, row.ravel())) for row in samples) + "\n").encode()
    if kind == 4:
        return head.encode() + b"".join(packed_rows(samples, 1))
    return head.encode() + samples.astype(">u2" if largest > 255 else "u1").tobytes()
