"""A zip that is the same on every run: entries sorted, one time stamp, data of stored entries aligned."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

TIME = (1981, 1, 1, 1, 1, 2)
"""What Android's own tools write."""
ALIGNMENT = 4
LIBRARY_ALIGNMENT = 16384
_LOCAL_HEADER_BYTES = 30
_EXTRA_ID = 0xD935
"""zipalign's and apksigner's padding field: two bytes of alignment, then zeros."""
_EXTRA_HEADER_BYTES = 6


def alignment_of(name: str) -> int:
    """Bytes that the data of a stored entry begins at a multiple of."""
    return LIBRARY_ALIGNMENT if name.endswith(".so") else ALIGNMENT


def write_archive(path: Path, stored: Mapping[str, bytes], deflated: Mapping[str, bytes]) -> None:
    """Writes `path` with `deflated` compressed and `stored` as they are."""
    entries = sorted([*((name, True) for name in stored), *((name, False) for name in deflated)])
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, is_stored in entries:
            info = zipfile.ZipInfo(name, TIME)
            info.create_system = 0
            if is_stored:
                info.compress_type = zipfile.ZIP_STORED
                info.extra = _padding(file.tell(), name)
                archive.writestr(info, stored[name])
            else:
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, deflated[name], compresslevel=9)


def _padding(offset: int, name: str) -> bytes:
    alignment = alignment_of(name)
    start = offset + _LOCAL_HEADER_BYTES + len(name.encode("utf-8")) + _EXTRA_HEADER_BYTES
    n_zeros = -start % alignment
    header = _EXTRA_ID.to_bytes(2, "little") + (2 + n_zeros).to_bytes(2, "little") + alignment.to_bytes(2, "little")
    return header + b"\0" * n_zeros


def data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Returns where the data of an entry begins in the file."""
    source = archive.fp
    assert source is not None, "the archive is open"
    source.seek(info.header_offset)
    header = source.read(_LOCAL_HEADER_BYTES)
    return (
        info.header_offset
        + len(header)
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )
