"""plan.bin and weights.bin: the call list of a compiled package and its weights in the order the kernels read them.

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
VERSION = 1
NONE = 2**64 - 1
MAX_LOGIT_ROWS = 16
"""Rows of logits that one call may ask for."""
ARCH_IDS = {"x86_64": 1, "arm64": 2}
OP_CODES = {"embed": 1, "quantise": 2, "gemm": 3, "append": 4, "attend": 5}
FLAGS = {"zero_point": 1, "accumulate": 2, "swiglu": 4, "last_rows": 8, "norm_rms": 16, "norm_layer": 32}

HEADER = struct.Struct("<6I4iQ32s")
GRAPH = struct.Struct("<3IiQQQ")
OP = struct.Struct("<2I9if10Q")

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
    """Writes weights.bin front to back; every tensor begins on 64 bytes, a large one on a page."""

    def __init__(self, path: Path) -> None:
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

    def digest(self) -> bytes:
        """sha256 of what has been written."""
        return self._hash.digest()

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


def write_plan(
    path: Path,
    info: PlanInfo,
    ops: Sequence[Op],
    buffers: Sequence[Buffer],
    *,
    graph_input: str,
    graph_output: str,
    weights_bytes: int,
    weights_sha256: bytes,
) -> int:
    """Writes plan.bin for one decoder graph and returns the arena's size in bytes."""
    offsets, arena_floats = place_buffers(ops, buffers, [graph_input])
    header = HEADER.pack(
        MAGIC, VERSION, ARCH_IDS[info.arch], 1, len(ops), len(info.kv_bits), info.hidden_size, info.vocab_size,
        info.max_positions, info.chunk_tokens, weights_bytes, weights_sha256,
    )
    rows = max(buffer.rows for buffer in buffers)
    graph = GRAPH.pack(0, 0, len(ops), rows, arena_floats, offsets[graph_input], offsets[graph_output])
    body = b"".join(_pack_op(op, offsets) for op in ops)
    kv_table = bytes(bits for pair in info.kv_bits for bits in pair)
    path.write_bytes(header + graph + body + kv_table)
    return arena_floats * 4


def _pack_op(op: Op, offsets: dict[str, int]) -> bytes:
    flags = sum(FLAGS[flag] for flag in op.flags)
    return OP.pack(
        OP_CODES[op.code], flags, op.n, op.k, op.bits, op.group, op.layer, op.head_dim, op.heads, op.kv_heads,
        op.window, op.value, offsets.get(op.source, 0), offsets.get(op.target, 0), op.weight, op.scales, op.zeros,
        op.bias, op.cos, op.sin, op.centre, 0,
    )


def with_flags(op: Op, *flags: str) -> Op:
    """`op` with more flags."""
    return replace(op, flags=op.flags | frozenset(flags))
