"""The container of device/tokenizer.bin: named sections of little-endian numbers, 8-byte aligned, read in place.

Layout: magic, version and count as u32; per section a 24-byte name padded with zeros, offset and size in bytes as u64;
then the sections.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAGIC = b"EVTK"
VERSION = 1
ALIGNMENT = 8
_HEAD = struct.Struct("<4sII4x")
_ENTRY = struct.Struct("<24sQQ")


def write_tables(sections: Mapping[str, bytes | NDArray[np.generic]]) -> bytes:
    """Returns the file with `sections` in their order."""
    blobs = {
        name: data if isinstance(data, bytes) else np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()
        for name, data in sections.items()
    }
    offset = _HEAD.size + len(blobs) * _ENTRY.size
    entries, body = [], []
    for name, blob in blobs.items():
        entries.append(_ENTRY.pack(name.encode("ascii"), offset, len(blob)))
        padded = blob + b"\0" * (-len(blob) % ALIGNMENT)
        body.append(padded)
        offset += len(padded)
    return b"".join([_HEAD.pack(MAGIC, VERSION, len(blobs)), *entries, *body])


def read_tables(data: bytes) -> dict[str, bytes]:
    """Returns the sections of a file that `write_tables` made."""
    magic, version, count = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"not a table file of version {VERSION}")
    found = {}
    for index in range(count):
        name, offset, size = _ENTRY.unpack_from(data, _HEAD.size + index * _ENTRY.size)
        found[name.rstrip(b"\0").decode("ascii")] = data[offset : offset + size]
    return found
