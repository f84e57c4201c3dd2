"""Storage: reads a weight, gives it the form that the plan says, streams it to a graph's data file, keeps the books."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.graphs.builder import GraphBuilder, StoredBytes
from export.graphs.tensors import Tensors
from export.quant.pack import matmul_nbits_inputs
from export.quant.rules import Component, QuantPlan
from export.quant.scheme import Scheme, linear_scheme, quantise

Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""(graph, checkpoint bytes read so far, checkpoint bytes in all)."""

COMPONENTS: dict[str, Component] = {
    "vision": "vision",
    "connector": "connector",
    "embedding": "language",
    "layers": "language",
    "head": "language",
}
"""Part of the size table → the plan's component."""


@dataclass(frozen=True)
class Table:
    """A stored weight (rows, width) whose bytes any graph of the package may read."""

    name: str
    scheme: Scheme
    rows: int
    width: int
    values: StoredBytes
    """Float rows, or packed codes."""
    scales: StoredBytes | None = None
    zero_points: StoredBytes | None = None

    @property
    def n_blocks(self) -> int:
        return -(-self.width // self.scheme.block)

    def scales_stored(self) -> StoredBytes:
        """Raises ValueError for a float table."""
        if self.scales is None:
            raise ValueError(f"{self.name} is stored as {self.scheme.name} and has no scales")
        return self.scales


@dataclass
class PartSize:
    """Running totals of one part of the model."""

    parameters: int = 0
    size_bytes: int = 0


@dataclass
class Storage:
    """`part` names the part of the model that is being built: it selects the plan's component and the size line."""

    tensors: Tensors
    plan: QuantPlan
    progress: Progress | None = None
    part: str = "layers"
    graph: str = ""
    sizes: dict[str, PartSize] = field(default_factory=dict)

    def scheme_for(self, name: str) -> Scheme:
        return self.plan.scheme_for(name, COMPONENTS[self.part])

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        """A tensor that stays float32."""
        values = self.tensors.read(name, shape)
        self._count(values.size, values.nbytes)
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the checkpoint."""
        return self.tensors.shape(name)

    def row_scale(self, name: str, shape: tuple[int, ...]) -> Float32 | None:
        """Factors that a linear's rows take before they are stored."""
        return self.read(name, shape)

    def derived(self, name: str, shape: tuple[int, ...], compute: Callable[[], Float32]) -> Float32:
        """What export stores as `name`: computed here."""
        values = compute()
        if values.shape != shape:
            raise ValueError(f"{name} has the shape {values.shape}, the graph wants {shape}")
        return values

    def transposed(
        self, builder: GraphBuilder, name: str, shape: tuple[int, int], scheme: Scheme, row_scale: Float32 | None
    ) -> str:
        """Writes a float weight (N, K) as (K, N) under its own name; returns the value name."""
        weight = self.tensors.read(name, shape)
        if row_scale is not None:
            weight *= row_scale[:, None]
        stored, error = _as_float(weight, scheme)
        self._book(name, scheme, weight.size, stored.nbytes, error)
        return builder.weight(name, np.ascontiguousarray(stored.T))

    def rows(
        self,
        builder: GraphBuilder,
        name: str,
        shape: tuple[int, int],
        scheme: Scheme,
        row_scale: Float32 | None = None,
    ) -> Table:
        """Writes a weight (N, K) row by row, in slices of bounded size, without adding it to the graph."""
        if scheme.kind in ("fp16", "fp32"):
            return self._float_rows(builder, name, shape, scheme)
        rows, width = shape
        scheme = linear_scheme(scheme, width)
        n_blocks = -(-width // scheme.block)
        scales, zero_points, errors = [], [], _ErrorSum()

        def pieces() -> Iterator[NDArray[np.uint8]]:
            start = 0
            for weight in self.tensors.slices(name, shape):
                if row_scale is not None:
                    weight *= row_scale[start : start + len(weight), None]
                start += len(weight)
                quantised = quantise(weight, scheme)
                codes, scale, zeros = matmul_nbits_inputs(quantised)
                scales.append(scale)
                if zeros is not None:
                    zero_points.append(zeros)
                errors.add(weight, quantised.relative_rms)
                yield codes

        code_shape = (rows, n_blocks, scheme.block * scheme.bits // 8)
        values = builder.store("uint8", code_shape, pieces())
        scale_bytes = builder.store("float32", (rows, n_blocks), scales)
        zero_bytes = None
        if zero_points:
            zero_bytes = builder.store("uint8", (rows, zero_points[0].shape[1]), zero_points)
        size = sum(part.size_bytes for part in (values, scale_bytes, zero_bytes) if part is not None)
        self._book(name, scheme, rows * width, size, errors.relative_rms())
        return Table(name, scheme, rows, width, values, scale_bytes, zero_bytes)

    def _float_rows(self, builder: GraphBuilder, name: str, shape: tuple[int, int], scheme: Scheme) -> Table:
        errors = _ErrorSum()

        def pieces() -> Iterator[NDArray[np.floating]]:
            for weight in self.tensors.slices(name, shape):
                stored, error = _as_float(weight, scheme)
                errors.add(weight, error)
                yield stored

        values = builder.store("float16" if scheme.kind == "fp16" else "float32", shape, pieces())
        self._book(name, scheme, shape[0] * shape[1], values.size_bytes, errors.relative_rms())
        return Table(name, scheme, shape[0], shape[1], values)

    def _book(self, name: str, scheme: Scheme, parameters: int, size_bytes: int, relative_rms: float) -> None:
        self.plan.record(name, COMPONENTS[self.part], scheme, parameters, size_bytes, relative_rms)
        self._count(parameters, size_bytes)

    def _count(self, parameters: int, size_bytes: int) -> None:
        size = self.sizes.setdefault(self.part, PartSize())
        size.parameters += parameters
        size.size_bytes += size_bytes
        if self.progress is not None:
            self.progress(self.graph, self.tensors.bytes_read, self.tensors.total_bytes)


class _ErrorSum:
    """||W - W_q|| / ||W|| of a tensor from those of its slices."""

    def __init__(self) -> None:
        self.error = 0.0
        self.norm = 0.0

    def add(self, weight: Float32, relative_rms: float) -> None:
        norm = float(np.sum(np.square(weight), dtype=np.float64))
        self.norm += norm
        self.error += norm * relative_rms**2

    def relative_rms(self) -> float:
        return (self.error / self.norm) ** 0.5 if self.norm > 0 else 0.0


def _as_float(weight: Float32, scheme: Scheme) -> tuple[NDArray[np.floating], float]:
    """The weight as the scheme's float type, and its relative RMS error."""
    if scheme.kind == "fp32":
        return weight, 0.0
    stored = weight.astype(np.float16)
    norm = float(np.sum(np.square(weight), dtype=np.float64))
    error = float(np.sum(np.square(weight - stored), dtype=np.float64))
    return stored, (error / norm) ** 0.5 if norm > 0 else 0.0
