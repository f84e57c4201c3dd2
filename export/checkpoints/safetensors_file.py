"""One .safetensors file: the header is checked in full when it is opened, tensors are mapped when they are read.

Format: 8 bytes little-endian header length, a JSON object name → {dtype, shape, data_offsets}, then the data without
gaps (huggingface/safetensors, README 'Format'; its Rust reader refuses the same files as this one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from export.checkpoints.file_kinds import other_kind_of
from export.checkpoints.paths import parse_object
from export.checkpoints.source import TensorInfo, rows_per_chunk

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library (safetensors/src/tensor.rs, MAX_HEADER_SIZE)."""

FLOAT_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
COUNTER_TYPES = {"I64": 8, "I32": 4, "BOOL": 1}
"""Buffers such as position ids or batch counters; they may stand in a checkpoint but are never read as weights."""


class SafetensorsFile:
    """Tensors of one file; float32 arrays out of F32, F16 and BF16."""

    def __init__(self, path: Path) -> None:
        """Checks the whole header.

        Raises PackageError for a damaged file, UnsupportedModelError for a tensor stored in another type.
        """
        self.path = path
        self._info, self._offsets = _read_header(path)

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors in the order of the header."""
        return self._info

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of one tensor as a new float32 array."""
        info = self._info[name]
        if info.dtype not in FLOAT_TYPES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} holds {info.dtype} values, which are not weights."
            )
        shape = info.shape or (1,)
        row_size = math.prod(shape[1:])
        stored = np.dtype(FLOAT_TYPES[info.dtype])
        out = np.empty((stop - start, *shape[1:]), np.float32)
        step = rows_per_chunk(shape) if row_size else max(stop - start, 1)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            if row_size:
                offset = self._offsets[name] + first * row_size * stored.itemsize
                mapped = np.memmap(self.path, stored, "r", offset, shape=(last - first, *shape[1:]))
                _decode(mapped, info.dtype, out[first - start : last - start])
        return out if info.shape else out.reshape(())


def _decode(stored: NDArray[Any], dtype: str, out: NDArray[np.float32]) -> None:
    if dtype == "BF16":
        np.left_shift(stored, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = stored


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes < 2 or header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
                if kind := other_kind_of(path):
                    raise PackageError(f"{path} is not a safetensors file, but {kind}.")
                raise PackageError(
                    f"{path} is not a safetensors file or is cut off: it has {file_bytes:,} bytes and states a header "
                    f"of {header_bytes:,}. Download it again."
                )
            content = file.read(header_bytes)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.") from None
    header = parse_object(content, f"the header of {path}")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    info: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        info[name] = TensorInfo(shape, dtype, end - begin)
        spans.append((begin, end, name))
    _check_spans(path, sorted(spans), file_bytes - data_start)
    return info, {name: data_start + begin for begin, _, name in spans}


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackageError(f"{where} must have exactly the keys dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise PackageError(f"{where} has a dtype that is not a string.")
    if dtype in FLOAT_TYPES:
        item_bytes = np.dtype(FLOAT_TYPES[dtype]).itemsize
    elif dtype in COUNTER_TYPES:
        item_bytes = COUNTER_TYPES[dtype]
    else:
        raise UnsupportedModelError(
            f"{where} is stored as {dtype}; F32, F16 and BF16 are read. Use the checkpoint's unquantised release."
        )
    if not _are_sizes(shape):
        raise PackageError(f"{where} has the shape {shape!r}; expected a list of sizes.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise PackageError(f"{where} has data_offsets {offsets!r}; expected [begin, end].")
    expected = math.prod(shape) * item_bytes
    if offsets[1] - offsets[0] != expected:
        raise PackageError(
            f"{where} has {offsets[1] - offsets[0]:,} bytes, but {dtype} {shape} takes {expected:,}; the file is "
            "damaged."
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    position = 0
    for begin, end, name in spans:
        if end > data_bytes:
            raise PackageError(
                f"{path} is cut off: tensor {name!r} ends at byte {end:,} of the data, but the file has "
                f"{data_bytes:,}. Download it again."
            )
        if begin < position:
            raise PackageError(f"{path}: tensor {name!r} overlaps the tensor before it; the header is damaged.")
        if begin > position:
            raise PackageError(f"{path}: {begin - position:,} bytes before tensor {name!r} belong to no tensor.")
        position = end
    if position != data_bytes:
        raise PackageError(
            f"{path}: the last {data_bytes - position:,} bytes belong to no tensor; the file is damaged."
        )
