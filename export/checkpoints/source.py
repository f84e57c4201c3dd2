"""What every checkpoint reader returns: named tensors that are read one at a time, and the model's small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 32 << 20
"""Tensors are mapped and converted in pieces of about this many float32 bytes, so that reading one costs no more
than the result and two such pieces."""

TOKENIZER_HINT = (
    "copy it from the model that this one was trained from, or make one with transformers: "
    "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(DIRECTORY)"
)
"""What to do about a tokenizer.json that is not there."""


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor: its shape, its stored type as the file format spells it, and its bytes in the file."""

    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


class TensorSource(Protocol):
    """Lazily readable tensors."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name; reads no tensor data."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` along the first axis (a tensor without axes counts as one row of shape ())."""
        ...


@dataclass(frozen=True)
class Contents:
    """An opened checkpoint before it gets its bookkeeping.

    `config` is spelled as a Hugging Face config.json; `files` are the json and text files that a package carries.
    """

    name: str
    config: dict[str, Any]
    files: dict[str, bytes]
    source: TensorSource
    tokenizer_hint: str = TOKENIZER_HINT
    """What to do where `files` has no tokenizer.json, as the end of a sentence."""


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """How many rows of the first axis make up one piece of CHUNK_BYTES; at least one."""
    row_bytes = 4
    for size in shape[1:]:
        row_bytes *= size
    return max(1, CHUNK_BYTES // max(row_bytes, 1))
