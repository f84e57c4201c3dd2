"""Opens a checkpoint, whatever its form, as one thing: config, small files, and tensors that are read one at a time.

A source is a Hugging Face snapshot directory, a `.gguf` file, a composed checkpoint (a JSON file, or a directory that
holds `composed.json` and no `config.json`), or a Hub id `org/name` or `org/name@revision`. Everything that can be
checked without reading weights is checked on opening.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError, UsageError
from export.archs import arch_spec
from export.checkpoints.composed import COMPOSED_NAME, open_composed
from export.checkpoints.file_kinds import other_kind_of
from export.checkpoints.gguf_model import open_gguf
from export.checkpoints.hub import hub_snapshot
from export.checkpoints.snapshot import CARRIED_FILES, open_snapshot, read_small_files, snapshot_name
from export.checkpoints.source import TOKENIZER_HINT, Contents, TensorInfo
from export.checkpoints.tied import tied

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class Checkpoint:
    """An opened checkpoint; keeps no tensor data, and remembers which tensors were read."""

    def __init__(self, contents: Contents, source: str) -> None:
        self.name = contents.name
        self.source = source
        """What it was opened from, without the machine's directories."""
        self.config: dict[str, Any] = contents.config
        self.files: dict[str, bytes] = contents.files
        self.tokenizer_hint = contents.tokenizer_hint
        self.used: set[str] = set()
        self._source = contents.source
        self._missing: set[str] = set()

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name; reads no tensor data."""
        return self._source.tensors()

    def read(self, name: str) -> NDArray[np.float32]:
        """One whole tensor as a new float32 array.

        Raises UnsupportedModelError when it does not exist, PackageError when it holds NaN or infinity.
        """
        shape = self._info(name).shape
        return self._checked(name, self._source.read_rows(name, 0, shape[0] if shape else 1))

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` along the first axis: for tables too large to hold at once; checks as `read`."""
        shape = self._info(name).shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise UsageError(f"rows {start} to {stop} of tensor {name!r} do not exist; its shape is {list(shape)}.")
        return self._checked(name, self._source.read_rows(name, start, stop))

    def account(self, ignore: tuple[str, ...] = ()) -> None:
        """Checks that every tensor was read or is left out on purpose by a pattern of `ignore` (full match).

        Raises UnsupportedModelError naming tensors that were asked for and do not exist, or exist and were not read.
        """
        if self._missing:
            raise UnsupportedModelError(f"{self.name} lacks {_listed(self._missing)}.")
        patterns = [re.compile(pattern) for pattern in ignore]
        unused = {
            name
            for name in self.tensors()
            if name not in self.used and not any(pattern.fullmatch(name) for pattern in patterns)
        }
        self.refuse_unused(unused)

    def refuse_unused(self, names: set[str]) -> None:
        """Raises UnsupportedModelError naming the tensors that the model does not use, where there are any."""
        if names:
            raise UnsupportedModelError(
                f"{self.name} holds {_listed(names)}, which {self.config.get('model_type')!r} does not use."
            )

    def _info(self, name: str) -> TensorInfo:
        tensors = self.tensors()
        if name not in tensors:
            self._missing.add(name)
            near = difflib.get_close_matches(name, tensors, n=1)
            hint = f"; the nearest name is {near[0]!r}" if near else ""
            raise UnsupportedModelError(f"{self.name} has no tensor {name!r}{hint}.")
        return tensors[name]

    def _checked(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        self.used.add(name)
        # A sum of finite values can only be infinite by overflow, so that the slow test runs when it is needed.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum())
        if suspicious and not np.isfinite(values).all():
            raise PackageError(f"{self.name}: tensor {name!r} holds NaN or infinite values; the checkpoint is damaged.")
        return values


def open_checkpoint(source: str | Path, *, tie_embeddings: bool = False) -> Checkpoint:
    """Opens `source` (see the module's description) and checks all of it except the values of the weights.

    `tie_embeddings` reads a head and an embedding that are two roundings of one table as one (`checkpoints/tied.py`).

    Raises PackageError for a missing or damaged checkpoint, UnsupportedModelError for a sound one that is not read,
    BackendError when the package for this form is not installed.
    """
    contents, name = _contents(source)
    return Checkpoint(tied(contents) if tie_embeddings else contents, name)


def _contents(source: str | Path) -> tuple[Contents, str]:
    """What `source` holds, and its name without the machine's directories."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").exists() and (path / COMPOSED_NAME).exists():
            return open_composed(path / COMPOSED_NAME), path.resolve().name
        return open_snapshot(path), snapshot_name(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return open_gguf(path), path.name
        if path.name in CARRIED_FILES:
            raise PackageError(f"{path} is a part of a snapshot; give its directory: {path.parent}")
        if path.suffix == ".json":
            return open_composed(path), path.name
        raise PackageError(
            f"{path} is neither a directory, nor a .gguf file, nor a composed checkpoint (.json){_is(path)}."
        )
    match = _HUB_ID.fullmatch(str(source))
    if match and not path.exists():
        return open_snapshot(hub_snapshot(match[1], match[2], check=_check_worth)), str(source)
    raise PackageError(
        f"{source} does not exist; give a snapshot directory, a .gguf file, a composed .json or a Hub id."
    )


def _check_worth(directory: Path) -> None:
    """Refuses a Hub repository by its small files, before gigabytes of weights are fetched."""
    config, files = read_small_files(directory)
    spec = arch_spec(config, files)
    if spec.language is not None and "tokenizer.json" not in files:
        raise PackageError(
            f"{snapshot_name(directory)} has no tokenizer.json, which every package needs; {TOKENIZER_HINT}"
        )


def _is(path: Path) -> str:
    """What a file that cannot be opened is, as the end of a sentence."""
    if ".gguf" in path.name and not other_kind_of(path):
        return ": it seems to be a piece of a file that was cut by size; join the pieces (cat) into one .gguf"
    if path.suffix == ".safetensors":
        return ": give the directory that holds it together with config.json"
    kind = other_kind_of(path)
    return f": it is {kind}" if kind else ""


def _listed(names: set[str]) -> str:
    first = sorted(names)
    shown = ", ".join(repr(name) for name in first[:5])
    return f"{len(first)} tensor(s): {shown}" + (f" and {len(first) - 5} more" if len(first) > 5 else "")
