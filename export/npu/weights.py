"""PackageWeights: what a package's CPU graphs store, read back for the NPU's builders. No checkpoint is needed again.

Codes, scales and zero points are handed on as they lie, so that both forms of a model have the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from edgevlm.package import Package
from export.quant.pack import unpack_codes, unpack_zero_points

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class QuantisedWeight:
    """MatMulNBits' inputs for one tensor (rows, width)."""

    name: str
    rows: int
    width: int
    bits: int
    block: int
    codes: NDArray[np.uint8]
    """(rows, n_blocks, block * bits / 8)."""
    scales: Float32
    """(rows, n_blocks)."""
    zero_points: NDArray[np.uint8] | None
    """(rows, packed), or None for the middle of the range."""


@dataclass(frozen=True)
class _Stored:
    path: Path
    tensor: Any
    is_transposed: bool
    """A MatMul reads it, as (K, N)."""


@dataclass(frozen=True)
class _Form:
    bits: int
    block: int


def dequantised(weight: QuantisedWeight) -> Float32:
    """(code - zero point) * scale, (rows, width)."""
    codes = unpack_codes(weight.codes, weight.bits, weight.block).astype(np.float32)
    n_blocks = weight.scales.shape[1]
    zeros = np.full(weight.scales.shape, 1 << (weight.bits - 1), np.float32)
    if weight.zero_points is not None:
        zeros = unpack_zero_points(weight.zero_points, weight.bits, n_blocks).astype(np.float32)
    blocks = codes.reshape(weight.rows, n_blocks, weight.block)
    values: Float32 = ((blocks - zeros[..., None]) * weight.scales[..., None]).reshape(weight.rows, -1)
    return np.ascontiguousarray(values[:, : weight.width])


class PackageWeights:
    """The Weights protocol on a package; `part` is kept for the builders and read by nobody here."""

    def __init__(self, package: Package) -> None:
        import onnx

        self.part = ""
        self._package = package
        self._stored: dict[str, _Stored] = {}
        self._forms: dict[str, _Form] = {}
        for entry in package.manifest.graphs:
            path = package.graph(entry.name)
            graph = onnx.load(path, load_external_data=False).graph
            right_sides = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
            for node in graph.node:
                # a float16 weight is cast before its MatMul
                if node.op_type == "Cast" and node.output[0] in right_sides:
                    right_sides.add(node.input[0])
                if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
                    number = {attribute.name: attribute.i for attribute in node.attribute}
                    codes = node.input[1 if node.op_type == "MatMulNBits" else 0]
                    self._forms[codes.removesuffix(".codes")] = _Form(number["bits"], number["block_size"])
            for tensor in graph.initializer:
                self._stored[tensor.name] = _Stored(path, tensor, tensor.name in right_sides)

    def has(self, name: str) -> bool:
        """Returns whether the package stores a tensor of this name, in any form."""
        return name in self._stored or name in self._forms

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        """Returns a float tensor. Raises PackageError when the package has none of this shape."""
        values = self._values(name)
        if values.shape != shape:
            raise PackageError(f"{self._package.path}: {name!r} has the shape {values.shape}, expected {shape}")
        return values.astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape as the checkpoint had it; of a quantised one (rows, width) with whole blocks."""
        if name in self._forms:
            form, codes = self._forms[name], self._values(f"{name}.codes")
            return (codes.shape[0], int(np.prod(codes.shape[1:])) * 8 // form.bits)
        stored = self._entry(name)
        dims = tuple(stored.tensor.dims)
        return dims[::-1] if stored.is_transposed else dims

    def row_scale(self, name: str, shape: tuple[int, ...]) -> Float32 | None:
        """None: the package's rows are scaled already."""
        return None

    def derived(self, name: str, shape: tuple[int, ...], compute: Callable[[], Float32]) -> Float32:
        """Returns what export computed."""
        return self.read(name, shape)

    def quantised(self, name: str, shape: tuple[int, int]) -> QuantisedWeight | None:
        """Returns a weight's codes; None when the package stores floats, or a last block that the width cuts short.

        HTP takes whole blocks only.
        """
        form = self._forms.get(name)
        if form is None or shape[1] % form.block:
            return None
        return self._codes(name, form, shape)

    def bits_per_weight(self, stem: str, shape: tuple[int, int]) -> float:
        """Returns the bits of one value of `stem`.weight on the NPU, with its share of fp16 scales and zero points."""
        form = self._forms.get(f"{stem}.weight")
        if form is None or shape[1] % form.block:
            return 8 + 16 / shape[1]
        zero_point = form.bits if f"{stem}.weight.zero_points" in self._stored else 0
        return form.bits + (16 + zero_point) / form.block

    def _codes(self, name: str, form: _Form, shape: tuple[int, int]) -> QuantisedWeight:
        rows, width = shape
        n_blocks = -(-width // form.block)
        codes = self._values(f"{name}.codes").reshape(rows, n_blocks, form.block * form.bits // 8)
        zero_points = None
        if f"{name}.zero_points" in self._stored:
            zero_points = self._values(f"{name}.zero_points").reshape(rows, -1)
        scales = self._values(f"{name}.scales").reshape(rows, n_blocks).astype(np.float32)
        return QuantisedWeight(name, rows, width, form.bits, form.block, codes, scales, zero_points)

    def float_rows(self, name: str, shape: tuple[int, int]) -> Float32:
        """Returns a weight's values (rows, width), whichever way and in which form they lie."""
        if name in self._forms:
            return dequantised(self._codes(name, self._forms[name], shape))
        if self._entry(name).is_transposed:
            return np.ascontiguousarray(self.read(name, shape[::-1]).T)
        return self.read(name, shape)

    def _values(self, name: str) -> NDArray[Any]:
        import onnx

        stored = self._entry(name)
        values: NDArray[Any] = onnx.numpy_helper.to_array(stored.tensor, str(stored.path.parent))
        return values

    def _entry(self, name: str) -> _Stored:
        stored = self._stored.get(name)
        if stored is None:
            raise PackageError(f"{self._package.path}: the graphs hold no tensor {name!r}; export the package again")
        return stored
