"""Readers with known defects, by which the fuzz is seen to find what it is for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgevlm.errors import PackageError

FILE = "defect.json"
DEFECTS = (
    "refuses", "reads", "raises", "panics", "computes with NaN", "says a megabyte", "spins", "takes 4 GB", "dies",
)  # fmt: skip


def write(path: Path) -> None:
    """Writes the file that names the defect."""
    path.mkdir()
    (path / FILE).write_text("reads")


def reader(path: Path) -> Callable[[], object]:
    """Returns a reader that does what the file says."""

    def read() -> None:
        _ACTIONS[(path / FILE).read_text()]()

    return read


class PanicException(BaseException):
    """As pyo3's: no Exception."""


def _raise(error: BaseException) -> None:
    raise error


def _nan() -> None:
    import numpy as np

    np.zeros(1) / np.zeros(1)


def _spin() -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        pass


_ACTIONS: dict[str, Callable[[], object]] = dict(
    zip(
        DEFECTS,
        (
            lambda: _raise(PackageError("no")),
            lambda: None,
            lambda: _raise(KeyError("size")),
            lambda: _raise(PanicException("no entry found")),
            _nan,
            lambda: _raise(_Long()),
            _spin,
            lambda: bytearray(4 << 30),
            os.abort,
        ),
        strict=True,
    )
)


class _Long(PackageError):
    def __str__(self) -> str:
        return "x" * (1 << 20)
