"""Small pieces of files for the tables of broken pictures."""

from __future__ import annotations

import zipfile
from io import BytesIO


def boxes(main: bytes, *compatible: bytes) -> bytes:
    """An ftyp box of these brands, and the beginning of what follows it. Source: ISO/IEC 14496-12."""
    brands = main + bytes(4) + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + b"\0\0\0\x10meta" + bytes(8)


def zipped(name: str, content: bytes) -> bytes:
    """A zip archive of one stored file."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()
