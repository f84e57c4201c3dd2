"""MatMulNBits weights as the codes the kernels take: merged, promoted to a common form, packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError
from tvm_schedules import layouts
from tvm_schedules.onnx_graph import Node, OnnxGraph
from tvm_schedules.plan import NONE, WeightsFile

Number = TypeVar("Number", bound=np.generic)

GROUPS = (128, 64, 32)
COLUMN_MULTIPLE = 64


@dataclass(frozen=True)
class Matrix:
    """Codes (N, K) uint8, scales (N, K/group) float16; zero points (N, K/group) uint8 or None for the middle code."""

    name: str
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]


def read_matrix(graph: OnnxGraph, node: Node) -> Matrix:
    """Reads the weight of a MatMulNBits node.

    A block that does not divide K is cut to the largest group of 32, 64 or 128 that does; its scale is repeated, so the
    codes keep their meaning exactly. Raises UnsupportedModelError when K is not a multiple of 32.
    """
    n, k = int(node.attributes["N"]), int(node.attributes["K"])
    bits, block = int(node.attributes["bits"]), int(node.attributes["block_size"])
    return matrix_from_blocks(
        node.name, graph.array(node.inputs[1]), graph.array(node.inputs[2]),
        graph.array(node.inputs[3]) if node.input(3) else None, n, k, bits, block,
    )


def padded_matrix(graph: OnnxGraph, node: Node) -> Matrix:
    """Reads the weight of a MatMulNBits node as symmetric 8-bit codes, K padded with zeros to whole blocks and to 64.

    Raises UnsupportedModelError for a block that no kernel has.
    """
    n, k = int(node.attributes["N"]), int(node.attributes["K"])
    bits, block = int(node.attributes["bits"]), int(node.attributes["block_size"])
    if block not in GROUPS or bits not in (4, 8):
        raise UnsupportedModelError(
            f"{node.name}: {bits} bits in blocks of {block}; the engine's tower takes 4 or 8 bits in blocks of {GROUPS}"
        )
    zeros = graph.array(node.inputs[3]) if node.input(3) else None
    stored_k = -(-k // block) * block
    matrix = matrix_from_blocks(
        node.name, graph.array(node.inputs[1]), graph.array(node.inputs[2]), zeros, n, stored_k, bits, block
    )
    if bits == 4 or zeros is not None:
        matrix = _promote(matrix)
    extra = -stored_k % COLUMN_MULTIPLE
    if not extra:
        return matrix
    codes = np.pad(matrix.codes, ((0, 0), (0, extra)), constant_values=128)
    scales = np.pad(matrix.scales, ((0, 0), (0, extra // block)))
    return Matrix(matrix.name, codes, scales, None, 8, block)


def matrix_from_blocks(
    name: str,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None,
    n: int,
    k: int,
    bits: int,
    block: int,
) -> Matrix:
    """A Matrix from MatMulNBits' own layout; see `read_matrix`."""
    group = next((size for size in GROUPS if k % size == 0 and block % size == 0), None)
    if group is None:
        raise UnsupportedModelError(f"{name}: {k} input features are not a multiple of 32; use the onnxruntime backend")
    n_blocks = -(-k // block)
    raw = np.asarray(packed).reshape(n, -1)
    codes = raw if bits == 8 else np.stack([raw & 15, raw >> 4], axis=2).reshape(n, -1)
    repeat = block // group
    fine_scales = np.repeat(np.asarray(scales).reshape(n, n_blocks), repeat, axis=1)[:, : k // group]
    zeros = None
    if zero_points is not None:
        stored = np.asarray(zero_points).reshape(n, -1)
        if bits == 4:
            stored = np.stack([stored & 15, stored >> 4], axis=2).reshape(n, -1)
        zeros = np.repeat(stored[:, :n_blocks], repeat, axis=1)[:, : k // group]
    return Matrix(name, codes[:, :k], fine_scales.astype(np.float16), zeros, bits, group)


def merge(matrices: Sequence[Matrix]) -> Matrix:
    """Stacks matrices over one input along N, in the finest common group and the widest common code."""
    group = min(matrix.group for matrix in matrices)
    forms = {(matrix.bits, matrix.zeros is not None) for matrix in matrices}
    aligned = [_regroup(matrix, group) for matrix in matrices]
    if len(forms) > 1:
        aligned = [_promote(matrix) for matrix in aligned]
    zeros = [matrix.zeros for matrix in aligned if matrix.zeros is not None]
    return Matrix(
        " + ".join(matrix.name for matrix in matrices),
        np.concatenate([matrix.codes for matrix in aligned]),
        np.concatenate([matrix.scales for matrix in aligned]),
        np.concatenate(zeros) if zeros else None,
        aligned[0].bits,
        group,
    )


def interleave(gate: Matrix, up: Matrix) -> Matrix:
    """Alternates blocks of 16 rows of gate and up: the order of the fused SwiGLU."""
    both = merge([gate, up])
    n = gate.shape[0]
    if n % layouts.COLUMNS or up.shape[0] != n:
        raise UnsupportedModelError(
            f"{gate.name}: {n} and {up.shape[0]} features; the native SwiGLU takes multiples of 16"
        )
    blocks = np.arange(2 * n).reshape(2, n // layouts.COLUMNS, layouts.COLUMNS)
    order = blocks.transpose(1, 0, 2).reshape(-1)
    zeros = None if both.zeros is None else both.zeros[order]
    return Matrix(both.name, both.codes[order], both.scales[order], zeros, both.bits, both.group)


def store(weights: WeightsFile, matrix: Matrix, columns: int = COLUMN_MULTIPLE) -> dict[str, Any]:
    """Packs and writes `matrix`, N padded to `columns`; returns fields of an Op: n, k, bits, group and offsets."""
    n, k = matrix.shape
    padded = -(-n // columns) * columns
    return {
        "n": padded,
        "k": k,
        "bits": matrix.bits,
        "group": matrix.group,
        "weight": weights.add(layouts.pack(_pad_rows(matrix.codes, padded), matrix.bits, weights.arch)),
        "scales": weights.add(layouts.pack_per_group(_pad_rows(matrix.scales, padded))),
        "zeros": NONE if matrix.zeros is None else weights.add(layouts.pack_per_group(_pad_rows(matrix.zeros, padded))),
    }


def _regroup(matrix: Matrix, group: int) -> Matrix:
    repeat = matrix.group // group
    zeros = None if matrix.zeros is None else np.repeat(matrix.zeros, repeat, axis=1)
    return Matrix(matrix.name, matrix.codes, np.repeat(matrix.scales, repeat, axis=1), zeros, matrix.bits, group)


def _promote(matrix: Matrix) -> Matrix:
    """The same values as symmetric 8-bit codes: code - zero point + 128."""
    middle = 1 << (matrix.bits - 1)
    if matrix.zeros is None:
        offset = np.int16(128 - middle)
        codes = (matrix.codes.astype(np.int16) + offset).astype(np.uint8)
    else:
        per_column = np.repeat(matrix.zeros, matrix.group, axis=1).astype(np.int16)
        codes = (matrix.codes.astype(np.int16) - per_column + 128).astype(np.uint8)
    return Matrix(matrix.name, codes, matrix.scales, None, 8, matrix.group)


def _pad_rows(array: NDArray[Number], n: int) -> NDArray[Number]:
    padded = np.zeros((n, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
