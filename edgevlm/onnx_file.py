"""Reads what a package check needs from an ONNX file: external data references and initialiser shapes.

A reader of the protobuf wire format for the few fields used, so that the runtime does not need the onnx package and
hostile files meet bounds checks before onnxruntime sees them. The file is memory-mapped; weights are never touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_NESTING = 32
"""Subgraphs in attributes nest this deep at most; real packages have none."""

_MODEL_GRAPH, _MODEL_FUNCTIONS, _MODEL_TRAINING = 7, 25, 20
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message kind -> {field number: kind of the submessage}; everything else is skipped
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {_MODEL_GRAPH: "graph", _MODEL_FUNCTIONS: "function", _MODEL_TRAINING: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file; `location` is None when its bytes are in the .onnx itself."""

    name: str
    shape: tuple[int, ...]
    location: str | None = None
    offset: int = 0
    length: int | None = None


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Returns every tensor of the model, those in subgraphs and functions included.

    Raises ValueError when the file is not a well-formed ONNX protobuf.
    """
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors = list(_walk(data, 0, len(data), "model", 0))
        if not any(number == _MODEL_GRAPH for number, _, _ in _fields(data, 0, len(data))):
            raise ValueError("it holds no graph")
    return tensors


def _walk(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[StoredTensor]:
    if depth > MAX_NESTING * 4:
        raise ValueError("subgraphs are nested too deeply")
    if kind == "tensor":
        yield _tensor(data, start, end)
        return
    children = _CHILDREN[kind]
    for number, value, stop in _fields(data, start, end):
        child = children.get(number)
        if child is not None:
            if stop is None:
                raise ValueError(f"field {number} of a {kind} is not a message")
            yield from _walk(data, value, stop, child, depth + 1)


def _tensor(data: mmap.mmap, start: int, end: int) -> StoredTensor:
    name, dims, is_external = "", [], False
    entries: dict[str, str] = {}
    for number, value, stop in _fields(data, start, end):
        if number == _TENSOR_DIMS:
            if stop is None:
                dims.append(value)
            else:
                position = value
                while position < stop:
                    dim, position = _varint(data, position, stop)
                    dims.append(dim)
        elif number == _TENSOR_NAME and stop is not None:
            name = _text(data, value, stop)
        elif number == _TENSOR_LOCATION:
            is_external = value == 1
        elif number == _TENSOR_EXTERNAL and stop is not None:
            pair = {n: _text(data, v, s) for n, v, s in _fields(data, value, stop) if s is not None}
            entries[pair.get(1, "")] = pair.get(2, "")
    if not is_external and "location" not in entries:
        return StoredTensor(name, tuple(dims))
    if "location" not in entries:
        raise ValueError(f"tensor {name!r} is external but names no file")
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ValueError(f"tensor {name!r} has a wrong {key} {text[:40]!r}")
        numbers[key] = None if text is None else int(text)
    return StoredTensor(name, tuple(dims), entries["location"], numbers["offset"] or 0, numbers["length"])


def _text(data: mmap.mmap, start: int, end: int) -> str:
    try:
        return data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("a name is not UTF-8") from None


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yields (field number, value, None) for numbers and (field number, start, end) for bytes and messages."""
    position = start
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, value, None
        elif wire == _BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError("the file is cut short")
            yield number, position, position + length
            position += length
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
            if position > end:
                raise ValueError("the file is cut short")
        else:
            raise ValueError("it is not an ONNX protobuf")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("the file is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it is not an ONNX protobuf")
