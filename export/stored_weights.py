"""Checks every quantised weight of a package by reading its bytes back, against the fp32 package's weight of that name.

The formula of the operators, (code - zero point) * scale, is written down here a second time on purpose: what packs the
bytes must not be what checks them. Two numbers tell a wrong layout from honest rounding, tensor by tensor and without
running a model: the relative error, and how many weights are further than half a step from their code's value. Rounding
leaves only those that a narrowed scale clips; shifted codes leave all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.package import Package
from edgevlm.spec import ParityEntry

Float32 = NDArray[np.float32]

MAX_RELATIVE_ERROR = {4: 0.25, 8: 0.02}
"""By bits, for one tensor. Healthy: 0.13 (SmolLM2-135M, g128) and 0.009; faults: 0.37 and more (2026-11-24)."""
MAX_SHARE_BEYOND_HALF_STEP = 0.1
"""Healthy: 0.012; transposed scales 0.63, shifted codes 0.99 (same measurement)."""
HALF_STEP = 0.51
"""0.5, and what rounding a scale to fp16 adds at a code 8 steps from zero."""
_WEIGHTS_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class TensorCheck:
    """What was found for one tensor."""

    name: str
    bits: int
    relative_error: float
    share_beyond_half_step: float


@dataclass(frozen=True)
class _Stored:
    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_transposed: bool
    """A MatMul reads it, as (K, N)."""

    def open(self) -> NDArray[Any]:
        """Memory-maps the values, read-only."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class _Quantised:
    name: str
    rows: int
    width: int
    bits: int
    block: int


def check_weights(package: Package, fp32: Package) -> list[TensorCheck]:
    """Returns one check per quantised tensor of `package`; a tensor that `fp32` lacks is infinitely wrong."""
    ours, theirs = _stored_by_name(package), _stored_by_name(fp32)
    found = []
    for tensor in _quantised_tensors(package):
        if tensor.name in theirs:
            found.append(_check(tensor, ours, theirs[tensor.name]))
        else:
            found.append(TensorCheck(tensor.name, tensor.bits, np.inf, 1.0))
    return found


def weight_entries(checks: list[TensorCheck], against: str) -> list[ParityEntry]:
    """Returns, per number of bits, the worst relative error, and the worst share beyond half a step of all."""
    entries = []
    for bits in sorted({check.bits for check in checks}):
        group = [check for check in checks if check.bits == bits]
        worst = max(group, key=lambda check: check.relative_error)
        entries.append(
            _entry(
                against,
                f"largest relative error, {bits} bits",
                worst.relative_error,
                MAX_RELATIVE_ERROR[bits],
                f"{len(group)} tensors, worst {worst.name}",
            )
        )
    if checks:
        worst = max(checks, key=lambda check: check.share_beyond_half_step)
        share = worst.share_beyond_half_step
        detail = f"{len(checks)} tensors, worst {worst.name}"
        entries.append(_entry(against, "largest share beyond half a step", share, MAX_SHARE_BEYOND_HALF_STEP, detail))
    return entries


def _entry(against: str, metric: str, value: float, bound: float, detail: str) -> ParityEntry:
    passed = bool(value <= bound)
    stored = value if np.isfinite(value) else float(np.finfo(np.float32).max)
    return ParityEntry("stored weights", against, metric, "pass" if passed else "fail", stored, bound, detail)


def _check(tensor: _Quantised, ours: dict[str, _Stored], original: _Stored) -> TensorCheck:
    n_blocks = -(-tensor.width // tensor.block)
    codes = ours[f"{tensor.name}.codes"].open().reshape(tensor.rows, -1)
    scales = ours[f"{tensor.name}.scales"].open().reshape(tensor.rows, n_blocks)
    zeros = ours.get(f"{tensor.name}.zero_points")
    zero_points = None if zeros is None else zeros.open().reshape(tensor.rows, -1)
    weights = original.open().T if original.is_transposed else original.open()
    if weights.shape != (tensor.rows, tensor.width):
        return TensorCheck(tensor.name, tensor.bits, np.inf, 1.0)
    error, norm, n_beyond = 0.0, 0.0, 0
    n_rows = max(1, _WEIGHTS_AT_ONCE // tensor.width)
    for start in range(0, tensor.rows, n_rows):
        rows = slice(start, start + n_rows)
        steps = np.repeat(np.asarray(scales[rows]), tensor.block, axis=1)[:, : tensor.width]
        values = _steps_from_zero(codes[rows], None if zero_points is None else zero_points[rows], tensor) * steps
        wanted = np.asarray(weights[rows])
        distance = np.abs(values - wanted)
        error += float(np.sum(np.square(distance), dtype=np.float64))
        norm += float(np.sum(np.square(wanted), dtype=np.float64))
        n_beyond += int((distance > HALF_STEP * np.abs(steps) + 1e-9).sum())
    relative = float(np.sqrt(error / norm)) if norm > 0 else float(np.sqrt(error))
    return TensorCheck(tensor.name, tensor.bits, relative, n_beyond / (tensor.rows * tensor.width))


def _steps_from_zero(codes: NDArray[Any], zero_points: NDArray[Any] | None, tensor: _Quantised) -> Float32:
    """Code minus zero point, float32 (rows, width); without zero points the middle of the range is zero."""
    expanded = _unpack(np.asarray(codes), tensor.bits)[:, : tensor.width].astype(np.float32)
    if zero_points is None:
        return expanded - np.float32(1 << (tensor.bits - 1))
    zeros = np.repeat(_unpack(np.asarray(zero_points), tensor.bits), tensor.block, axis=1)
    return expanded - zeros[:, : tensor.width].astype(np.float32)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """At 4 bits, two codes a byte, the low half first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _quantised_tensors(package: Package) -> Iterator[_Quantised]:
    """Yields each quantised tensor once, though a tied table stands in two graphs."""
    import onnx

    seen: set[str] = set()
    for entry in package.manifest.graphs:
        model = onnx.load(package.graph(entry.name), load_external_data=False)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            number = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "MatMulNBits":
                codes, rows, width = node.input[1], number["N"], number["K"]
            elif node.op_type == "GatherBlockQuantized":
                codes = node.input[0]
                rows, width = shapes[codes][0], shapes[codes][1] * 8 // number["bits"]
            else:
                continue
            name = codes.removesuffix(".codes")
            if name not in seen:
                seen.add(name)
                yield _Quantised(name, rows, width, number["bits"], number["block_size"])


def _stored_by_name(package: Package) -> dict[str, _Stored]:
    import onnx

    found: dict[str, _Stored] = {}
    for graph in package.manifest.graphs:
        path = package.graph(graph.name)
        model = onnx.load(path, load_external_data=False)
        right_sides = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            data = path.parent / where["location"]
            found[tensor.name] = _Stored(
                data, int(where.get("offset", 0)), dtype, tuple(tensor.dims), tensor.name in right_sides
            )
    return found
