"""A checkpoint whose head and embedding are two roundings of one table, read as one table again.

Converters that quantise the two apart store the table twice; a tied model needs it once. The head's values are taken:
converters give the head more bits than the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError, UsageError
from export.checkpoints.source import Contents, TensorInfo, TensorSource

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MAX_DIFFERENCE = 0.15
"""Largest ||E - H|| / ||H|| of two roundings of one table: Qwen2.5-Coder's Q4_K embedding and Q6_K head differ by 0.075
(1.5B) and 0.044 (0.5B), measured 2026-11-25; unrelated tables differ by 1.4."""
_ROWS_PER_SAMPLE, _SAMPLES = 64, 16


class _Tied:
    """The tensors without the head, the embedding with the head's values."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: info for name, info in self._source.tensors().items() if name != HEAD}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._source.read_rows(HEAD if name == EMBEDDING else name, start, stop)


def tied(contents: Contents) -> Contents:
    """Returns `contents` with one table for head and embedding.

    Raises UsageError when they are tied already or are not roundings of one table, UnsupportedModelError when the
    checkpoint is no language model with a head of its own.
    """
    tensors = contents.source.tensors()
    if EMBEDDING in tensors and HEAD not in tensors:
        raise UsageError(f"{contents.name}: the head is tied to the embedding already; leave --tie-embeddings out.")
    if HEAD not in tensors or EMBEDDING not in tensors or tensors[HEAD].shape != tensors[EMBEDDING].shape:
        raise UnsupportedModelError(f"{contents.name} has no {HEAD!r} and {EMBEDDING!r} of one shape to tie.")
    difference = _difference(contents.source, tensors[HEAD].shape[0])
    if difference > MAX_DIFFERENCE:
        raise UsageError(
            f"{contents.name}: head and embedding differ by {difference:.2f} of their size, two roundings of one table "
            f"by at most {MAX_DIFFERENCE}; leave --tie-embeddings out."
        )
    config = {**contents.config, "tie_word_embeddings": True}
    return replace(contents, config=config, source=_Tied(contents.source))


def _difference(source: TensorSource, n_rows: int) -> float:
    """Relative root-mean-square difference over rows spread evenly through the tables."""
    squares = np.zeros(2)
    for start in np.linspace(0, max(0, n_rows - _ROWS_PER_SAMPLE), _SAMPLES).astype(int).tolist():
        stop = min(n_rows, start + _ROWS_PER_SAMPLE)
        head, embedding = (source.read_rows(name, start, stop).astype(np.float64) for name in (HEAD, EMBEDDING))
        squares += [((head - embedding) ** 2).sum(), (head**2).sum()]
    return float(np.sqrt(squares[0] / max(squares[1], np.finfo(np.float64).tiny)))
