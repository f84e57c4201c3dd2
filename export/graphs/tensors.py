"""Tensors: a checkpoint seen through a NameMap, with other layouts' prefixes resolved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError
from export.archspec import NameMap

SLICE_BYTES = 64 << 20
"""Large tables are read in row slices of about this many float32 bytes."""


class TensorShape(Protocol):
    """What a reader says of a tensor without reading it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def size_bytes(self) -> int: ...


class TensorReader(Protocol):
    """The part of export.checkpoint.Checkpoint that graphs need."""

    @property
    def name(self) -> str: ...

    def tensors(self) -> Mapping[str, TensorShape]: ...

    def read(self, name: str) -> NDArray[np.float32]: ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]: ...

    def account(self, ignore: tuple[str, ...] = ()) -> None: ...


class Tensors:
    """Reads tensors by the name map's spelling; every shape is checked by the caller's expectation."""

    def __init__(self, checkpoint: TensorReader, names: NameMap) -> None:
        self.checkpoint = checkpoint
        self.names = names
        self._info = checkpoint.tensors()
        self.bytes_read = 0
        self.total_bytes = sum(info.size_bytes for info in self._info.values())

    def resolve(self, name: str) -> str:
        """Returns the name on disk: as it stands, else with one of `names.roots` applied; `name` when none exists."""
        if name in self._info:
            return name
        for here, on_disk in self.names.roots:
            if name.startswith(here) and on_disk + name[len(here) :] in self._info:
                return on_disk + name[len(here) :]
        return name

    def has(self, name: str) -> bool:
        return self.resolve(name) in self._info

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UnsupportedModelError naming the tensor when the checkpoint lacks it."""
        info = self._info.get(self.resolve(name))
        if info is None:
            raise UnsupportedModelError(f"{self.checkpoint.name} has no tensor {name!r}, which its config.json implies")
        return tuple(info.shape)

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The whole tensor; raises UnsupportedModelError when its shape is not `shape`."""
        self.expect(name, shape)
        on_disk = self.resolve(name)
        self.bytes_read += self._info[on_disk].size_bytes
        return self.checkpoint.read(on_disk)

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        """The rows of a table in slices of bounded size, in order."""
        self.expect(name, shape)
        on_disk = self.resolve(name)
        rows = shape[0]
        step = max(1, SLICE_BYTES // max(1, 4 * math.prod(shape[1:])))
        for start in range(0, rows, step):
            yield self.checkpoint.read_rows(on_disk, start, min(start + step, rows))
        self.bytes_read += self._info[on_disk].size_bytes

    def account(self, extra_ignore: tuple[str, ...] = ()) -> None:
        """Raises UnsupportedModelError for a tensor that was neither read nor left out on purpose."""
        self.checkpoint.account((*self.names.ignore, *extra_ignore))

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.shape(name)
        if found != shape:
            raise UnsupportedModelError(
                f"tensor {name!r} has the shape {list(found)}, config.json implies {list(shape)}; "
                "the config and the weights are from different checkpoints, or a field has a meaning not known here"
            )
