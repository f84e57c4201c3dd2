"""The contract of what tuning measures: a kernel call of a real size, and a small one with a known answer.

Operands of a measurement are pools of random numbers that all workloads share: a kernel's time does not depend on them.
Weights and caches are read from a new place of the pool at every call, as a model reads one layer after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tvm_schedules.targets import Variant

Array = NDArray[Any]
Pool = Literal["bytes", "halves", "codes", "floats", "sums", "tree", "results"]

_POOL_SIZES: dict[Pool, int] = {
    "bytes": 1 << 26, "halves": 1 << 22, "codes": 1 << 21, "floats": 1 << 18, "sums": 1 << 18, "tree": 64,
    "results": 1 << 19,
}  # fmt: skip
"""Elements. 64 MB of weights: more than the caches of the machines in question."""


@dataclass(frozen=True)
class Operand:
    """A pointer argument: a pool, and the elements between the places of two calls (0: always its beginning)."""

    pool: Pool
    stride: int = 0


@dataclass(frozen=True)
class Check:
    """A small call of the kernel; `error` takes the arrays afterwards and must return at most `bound`."""

    arrays: tuple[Array, ...]
    numbers: tuple[int, ...]
    error: Callable[[tuple[Array, ...]], float]
    bound: float


class Work(Protocol):
    """One operation of a model at one size."""

    @property
    def model(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def calls(self) -> float:
        """Calls of the measured size in one pass of the model."""

    @property
    def cold(self) -> bool:
        """Whether time goes into reading: then all places of the pool are visited before any is read again."""

    def kernel_name(self, variant: Variant) -> str:
        """The engine's name of the kernel that does it."""

    def kernel(self, variant: Variant) -> Any:
        """The PrimFunc."""

    def operands(self) -> tuple[Operand, ...]:
        """The pointer arguments of a measurement."""

    def numbers(self, variant: Variant) -> tuple[int, ...]:
        """The integer arguments of a measurement."""

    def check(self, variant: Variant) -> Check:
        """The problem with a known answer."""


def pools() -> Mapping[Pool, Array]:
    """Returns the random operands."""
    rng = np.random.default_rng(0)
    sizes = _POOL_SIZES
    return {
        "bytes": rng.integers(0, 256, sizes["bytes"], np.uint8),
        "halves": (rng.random(sizes["halves"], np.float32) * 0.01).astype(np.float16),
        "codes": rng.integers(-127, 128, sizes["codes"], np.int8),
        "floats": rng.random(sizes["floats"], np.float32) * np.float32(0.01),
        "sums": rng.integers(-1000, 1000, sizes["sums"], np.int32),
        "tree": np.zeros(sizes["tree"], np.int32),
        "results": np.zeros(sizes["results"], np.float32),
    }


def copies(work: Work) -> int:
    """Places that a measurement goes through before it begins again: as many as the pools hold."""
    strides = [_POOL_SIZES[o.pool] // o.stride for o in work.operands() if o.stride]
    return max(1, min(strides, default=1))


def relative_error(found: Array, expected: Array) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
