"""The GGUF container: metadata and the table of tensors, checked against the file's size before anything is used.

Own reader instead of gguf.GGUFReader, because that one trusts lengths in the file: a cut-off or hostile file ends in
an IndexError or in silently short data. The quantised blocks are decoded by the gguf library.
Source: ggml/docs/gguf.md (version 3).
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from export.checkpoints.file_kinds import other_kind_of
from export.checkpoints.source import TensorInfo, rows_per_chunk

READABLE_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

T = TypeVar("T")


@dataclass(frozen=True)
class _Stored:
    path: Path
    offset: int
    row_bytes: int


class GGUFFile:
    """Metadata and tensors of one file; shapes are in numpy's order (rows first)."""

    def __init__(self, path: Path) -> None:
        """Checks the container.

        Raises PackageError for a damaged file, UnsupportedModelError for a tensor type that is not decoded.
        """
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._info: dict[str, TensorInfo] = {}
        self._stored: dict[str, _Stored] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._parse(_Cursor(path, data))
        except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise PackageError(f"{path} cannot be read as GGUF: {error}.") from None

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors under their names in the file."""
        return self._info

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of one tensor, dequantised into a new float32 array."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info, stored = self._info[name], self._stored[name]
        kind = GGMLQuantizationType[info.dtype]
        shape = info.shape or (1,)
        out = np.empty((stop - start, *shape[1:]), np.float32)
        step = rows_per_chunk(shape)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            offset = stored.offset + first * stored.row_bytes
            mapped = np.memmap(stored.path, np.uint8, "r", offset, shape=(last - first) * stored.row_bytes)
            blocks = np.asarray(mapped).reshape(-1, stored.row_bytes if len(shape) > 1 else len(mapped))
            out[first - start : last - start] = dequantize(blocks, kind).reshape(last - first, *shape[1:])
        return out if info.shape else out.reshape(())

    def add_tensors(self, other: GGUFFile) -> None:
        """Takes the tensors of another piece of the same model in; they are read from that piece.

        Raises PackageError when a name is in both.
        """
        for name in other._info:
            if name in self._info:
                raise PackageError(
                    f"tensor {name!r} is in {self._stored[name].path} and in {other.path}; the pieces are not of one "
                    "model."
                )
        self._info |= other._info
        self._stored |= other._stored

    def text(self, key: str) -> str | None:
        """A string of the metadata; None when absent."""
        return self._typed(key, str)

    def integer(self, key: str) -> int | None:
        """An integer of the metadata; None when absent."""
        return self._typed(key, int)

    def count(self, key: str, layers: int) -> int | None:
        """An integer that holds for all layers: one number, or a list of `layers` equal ones; None when absent.

        Raises PackageError for a list of another length, UnsupportedModelError for layers that differ.
        """
        value = self.metadata.get(key)
        if not isinstance(value, list):
            return self.integer(key)
        if len(value) != layers or any(type(item) is not int for item in value):
            raise PackageError(f"{self.path}: '{key}' lists {len(value):,} values; expected {layers} integers.")
        if len(set(value)) > 1:
            shown = ", ".join(str(item) for item in sorted(set(value))[:4])
            raise UnsupportedModelError(
                f"{self.path}: '{key}' differs between layers ({shown}), which is not supported for GGUF files."
            )
        return int(value[0])

    def flag(self, key: str) -> bool | None:
        """A boolean of the metadata; None when absent."""
        return self._typed(key, bool)

    def number(self, key: str) -> float | None:
        """A float of the metadata, as the shortest decimal that names the same float32; None when absent."""
        value = self._typed(key, float)
        if value is not None and not math.isfinite(value):
            raise PackageError(f"{self.path}: '{key}' is {value}, which is not a number.")
        return None if value is None else float(str(np.float32(value)))

    def strings(self, key: str) -> list[str] | None:
        """An array of strings of the metadata; None when absent."""
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise PackageError(f"{self.path}: '{key}' must be an array of strings.")
        return value

    def numbers(self, key: str) -> list[Any] | None:
        """An array of numbers of the metadata; None when absent."""
        value = self.metadata.get(key)
        if value is not None and not (isinstance(value, list) and not any(isinstance(item, str) for item in value)):
            raise PackageError(f"{self.path}: '{key}' must be an array of numbers.")
        return value

    def _typed(self, key: str, kind: type[T]) -> T | None:
        value = self.metadata.get(key)
        if value is None or type(value) is kind:
            return value
        raise PackageError(f"{self.path}: '{key}' must be of type {kind.__name__}, found {type(value).__name__}.")

    def _parse(self, cursor: _Cursor) -> None:
        if cursor.take(4) != b"GGUF":
            kind = other_kind_of(self.path)
            found = f", but {kind}" if kind else ": it does not start with 'GGUF'"
            raise PackageError(f"{self.path} is not a GGUF file{found}.")
        version = cursor.scalar("<I")
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"{self.path} is a big-endian GGUF file; convert it to little-endian first: "
                "python -m gguf.scripts.gguf_convert_endian FILE little"
            )
        if version not in (2, 3):
            raise UnsupportedModelError(f"{self.path} is GGUF version {version}; versions 2 and 3 are read.")
        n_tensors, n_entries = cursor.scalar("<Q"), cursor.scalar("<Q")
        for _ in range(n_entries):
            key = cursor.string()
            if key in self.metadata:
                raise PackageError(f"{self.path} has the metadata key {key!r} twice.")
            self.metadata[key] = cursor.value(cursor.scalar("<I"), key)
        entries = [self._entry(cursor) for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise PackageError(f"{self.path}: 'general.alignment' is {alignment!r}, expected a power of two from 8 up.")
        data_start = -(-cursor.position // alignment) * alignment
        self._place(entries, data_start, alignment, cursor.size)

    def _entry(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.string()
        n_dimensions = cursor.scalar("<I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise PackageError(
                f"{self.path}: tensor {name!r} has {n_dimensions} dimensions; GGUF allows {_MAX_DIMENSIONS}."
            )
        shape = tuple(cursor.scalar("<Q") for _ in range(n_dimensions))[::-1]
        return name, shape, cursor.scalar("<I"), cursor.scalar("<Q")

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int, size: int
    ) -> None:
        spans = []
        for name, shape, type_id, offset in entries:
            where = f"{self.path}: tensor {name!r}"
            if name in self._info:
                raise PackageError(f"{where} is listed twice.")
            type_name, block_size, block_bytes = _tensor_type(type_id, where)
            width = shape[-1] if shape else 1
            if 0 in shape or width % block_size:
                raise PackageError(
                    f"{where} has the shape {list(shape)}, which {type_name} blocks of {block_size} do not fill."
                )
            row_bytes = width // block_size * block_bytes
            size_bytes = math.prod(shape[:-1]) * row_bytes
            if offset % alignment:
                raise PackageError(
                    f"{where} starts at {offset:,}, which is not a multiple of the alignment {alignment}."
                )
            if start + offset + size_bytes > size:
                raise PackageError(
                    f"{self.path} is cut off: tensor {name!r} ends at byte {start + offset + size_bytes:,}, but the "
                    f"file has {size:,}. Download it again."
                )
            spans.append((offset, offset + size_bytes, name))
            self._info[name] = TensorInfo(shape, type_name, size_bytes)
            per_row = size_bytes // shape[0] if shape else size_bytes
            self._stored[name] = _Stored(self.path, start + offset, per_row)
        spans.sort()
        for (_, end, _), (begin, _, name) in itertools.pairwise(spans):
            if begin < end:
                raise PackageError(f"{self.path}: tensor {name!r} overlaps the tensor before it; the file is damaged.")


def _tensor_type(type_id: int, where: str) -> tuple[str, int, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.value: kind for kind in GGMLQuantizationType}
    name = known[type_id].name if type_id in known else f"type {type_id}"
    if name not in READABLE_TYPES:
        raise UnsupportedModelError(f"{where} is stored as {name}; read are {', '.join(READABLE_TYPES)}.")
    block_size, block_bytes = GGML_QUANT_SIZES[known[type_id]]
    return name, block_size, block_bytes


class _Cursor:
    """Reads values front to back; every length is checked against what is left of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise PackageError(
                f"{self.path} is cut off or damaged: {count:,} bytes are expected at byte {self.position:,}, but the "
                f"file has {self.size:,}."
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        content = self.take(self.scalar("<Q"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise PackageError(
                f"{self.path}: text before byte {self.position:,} is not UTF-8: {content[:40]!r}."
            ) from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise PackageError(f"{self.path}: '{key}' has the unknown value type {kind}.")
        return self.scalar(_SCALARS[kind])

    def _array(self, key: str) -> list[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            if count > (self.size - self.position) // 8:
                self.take(count * 8)
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise PackageError(f"{self.path}: the array '{key}' has the element type {kind}, which is not read.")
        layout = _SCALARS[kind]
        content = self.take(count * struct.calcsize(layout))
        return list(struct.unpack(f"<{count}{layout[1]}", content))
