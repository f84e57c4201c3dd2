"""Low-rank updates: weights read as W + up @ down, for those that were trained without being stored again.

The file has `NAME.down` (rank, K) and `NAME.up` (N, rank) for each weight NAME (N, K) that is updated; factors of the
training (LoRA's alpha / rank) are folded into `up` (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from export.checkpoints.safetensors_file import SafetensorsFile
from export.checkpoints.source import TensorInfo, TensorSource


class LowRankUpdated:
    """A source whose named weights have their updates added when they are read."""

    def __init__(self, source: TensorSource, path: Path) -> None:
        """Checks names and shapes against `source`; raises PackageError naming the tensor that does not fit."""
        self._source, self._file = source, SafetensorsFile(path)
        stored = self._file.tensors()
        self._updated = {name.rpartition(".")[0] for name in stored}
        for name in stored:
            if name.rpartition(".")[2] not in ("down", "up"):
                raise PackageError(f"{path}: tensor {name!r} is no part of an update; expected names in .down or .up.")
        for name in sorted(self._updated):
            _check(name, source.tensors(), stored, path)

    def tensors(self) -> Mapping[str, TensorInfo]:
        """The source's tensors: updates change values only."""
        return self._source.tensors()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of W + up @ down, the product in float32."""
        rows = self._source.read_rows(name, start, stop)
        if name not in self._updated:
            return rows
        down = self._file.read_rows(f"{name}.down", 0, self._file.tensors()[f"{name}.down"].shape[0])
        rows += self._file.read_rows(f"{name}.up", start, stop) @ down
        return rows


def _check(name: str, tensors: Mapping[str, TensorInfo], stored: Mapping[str, TensorInfo], path: Path) -> None:
    if name not in tensors:
        raise PackageError(f"{path} updates {name!r}, which the checkpoint does not have.")
    down, up = (stored.get(f"{name}.{part}") for part in ("down", "up"))
    if down is None or up is None:
        raise PackageError(f"{path}: the update of {name!r} lacks its {'.down' if down is None else '.up'} tensor.")
    shape = tensors[name].shape
    if len(shape) != 2 or len(down.shape) != 2 or up.shape != (shape[0], down.shape[0]) or down.shape[1] != shape[1]:
        raise PackageError(
            f"{path}: the update of {name!r} has the shapes {list(up.shape)} x {list(down.shape)}, "
            f"the weight {list(shape)}."
        )
