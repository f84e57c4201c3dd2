"""plan.bin, weights.bin, vision.bin: a compiled package's call lists, and its weights in the order the kernels read.

The structs here are those of edgevlm/engine/plan.h; a test compares their sizes and names.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x4E4C5045
VERSION = 3
NONE = 2**64 - 1
MAX_LOGIT_ROWS = 16
"""Rows of logits that one call may ask for."""
ARCH_IDS = {"x86_64": 1, "arm64": 2}
OP_CODES = {
    "embed": 1, "quantise": 2, "gemm": 3, "append": 4, "attend": 5, "patches": 6, "norm": 7, "linear": 8,
    "attend_all": 9, "merge": 10,
}
FLAGS = {
    "zero_point": 1, "accumulate": 2, "swiglu": 4, "last_rows": 8, "norm_rms": 16, "norm_layer": 32, "gelu": 64,
    "gelu_tanh": 128,
}

HEADER = struct.Struct("<6I4iQ32sQ32s")
GRAPH = struct.Struct("<3IiQQQ")
OP = struct.Struct("<2I9if9Q2i")

_PAGE = 4096
_LARGE = 1 << 20


@dataclass(frozen=True)
class Op:
    """One call. `source` and `target` are buffer names; the planner turns them into arena offsets."""

    code: str
    flags: frozenset[str] = frozenset()
    n: int = 0
    k: int = 0
    bits: int = 0
    group: int = 0
    layer: int = 0
    head_dim: int = 0
    heads: int = 0
    kv_heads: int = 0
    window: int = 0
    rows: int = 0
    """Rows a tile, in a vision encoder."""
    value: float = 0.0
    source: str = ""
    target: str = ""
    weight: int = NONE
    scales: int = NONE
    zeros: int = NONE
    bias: int = NONE
    cos: int = NONE
    sin: int = NONE
    centre: int = NONE


@dataclass(frozen=True)
class Buffer:
    """A value in the arena: `width` floats a row, `rows` rows."""

    name: str
    width: int
    rows: int


@dataclass(frozen=True)
class PlanInfo:
    """The numbers of the header that the lowering knows."""

    arch: str
    hidden_size: int
    vocab_size: int
    max_positions: int
    chunk_tokens: int
    kv_bits: tuple[tuple[int, int], ...]


class WeightsFile:
    """Writes weights.bin of an architecture front to back; every tensor begins on 64 bytes, a large one on a page."""

    def __init__(self, path: Path, arch: str) -> None:
        self.arch = arch
        self._file: IO[bytes] = path.open("wb")
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, array: NDArray[Any]) -> int:
        """Appends the bytes of `array` and returns their offset."""
        data = np.ascontiguousarray(array).tobytes()
        alignment = _PAGE if len(data) >= _LARGE else 64
        offset = -(-self.size_bytes // alignment) * alignment
        self._write(b"\0" * (offset - self.size_bytes))
        self._write(data)
        return offset

    def file_hash(self) -> FileHash:
        """Size and sha256 of what has been written."""
        return FileHash(self.size_bytes, self._hash.digest())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)


def place_buffers(ops: Sequence[Op], buffers: Sequence[Buffer], keep: Sequence[str]) -> tuple[dict[str, int], int]:
    """Arena offsets in floats by first fit over lifetimes, and the arena's size; buffers in `keep` live throughout.

    A buffer lives from the first operation that names it to the last. Two that live together never overlap.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, op in enumerate(ops):
        for name in filter(None, (op.source, op.target)):
            first.setdefault(name, index)
            last[name] = index
    for name in keep:
        first[name], last[name] = 0, len(ops)
    sizes = {buffer.name: -(-buffer.width * buffer.rows // 16) * 16 for buffer in buffers}
    placed: dict[str, int] = {}
    for name in sorted(first, key=lambda item: (-sizes[item], first[item])):
        alive = sorted(
            (placed[other], placed[other] + sizes[other])
            for other in placed
            if first[other] <= last[name] and first[name] <= last[other]
        )
        offset = 0
        for begin, end in alive:
            if offset + sizes[name] <= begin:
                break
            offset = max(offset, end)
        placed[name] = offset
    return placed, max((placed[name] + sizes[name] for name in placed), default=0)


@dataclass(frozen=True)
class Graph:
    """One call list. `kind` 0 is a decoder, 1 a vision encoder; `rows` as the engine's plan.h has it."""

    kind: int
    ops: Sequence[Op]
    buffers: Sequence[Buffer]
    input: str
    output: str
    rows: int

    def packed(self, first_op: int) -> tuple[bytes, bytes]:
        """Bytes of the graph and of its operations."""
        offsets, arena_floats = place_buffers(self.ops, self.buffers, [self.input] if self.input else [])
        place = offsets[self.input] if self.input else 0
        graph = GRAPH.pack(
            self.kind, first_op, len(self.ops), self.rows, arena_floats, place, offsets[self.output]
        )
        return graph, b"".join(_pack_op(op, offsets) for op in self.ops)


@dataclass(frozen=True)
class FileHash:
    """Size and sha256 of a file of weights."""

    size_bytes: int
    sha256: bytes


NO_FILE = FileHash(0, bytes(32))


def write_plan(
    path: Path, info: PlanInfo, graphs: Sequence[Graph], weights: FileHash, vision: FileHash = NO_FILE
) -> None:
    """Writes plan.bin. `weights` and `vision` describe weights.bin and vision.bin."""
    packed: list[tuple[bytes, bytes]] = []
    n_ops = 0
    for graph in graphs:
        packed.append(graph.packed(n_ops))
        n_ops += len(graph.ops)
    header = HEADER.pack(
        MAGIC, VERSION, ARCH_IDS[info.arch], len(graphs), n_ops, len(info.kv_bits), info.hidden_size, info.vocab_size,
        info.max_positions, info.chunk_tokens, weights.size_bytes, weights.sha256, vision.size_bytes, vision.sha256,
    )
    kv_table = bytes(bits for pair in info.kv_bits for bits in pair)
    path.write_bytes(b"".join([header, *(part[0] for part in packed), *(part[1] for part in packed), kv_table]))


def _pack_op(op: Op, offsets: dict[str, int]) -> bytes:
    flags = sum(FLAGS[flag] for flag in op.flags)
    return OP.pack(
        OP_CODES[op.code], flags, op.n, op.k, op.bits, op.group, op.layer, op.head_dim, op.heads, op.kv_heads,
        op.window, op.value, offsets.get(op.source, 0), offsets.get(op.target, 0), op.weight, op.scales, op.zeros,
        op.bias, op.cos, op.sin, op.centre, op.rows, 0,
    )


def with_flags(op: Op, *flags: str) -> Op:
    """`op` with more flags."""
    return replace(op, flags=op.flags | frozenset(flags))
