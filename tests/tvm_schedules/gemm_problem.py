"""One product on quantised codes, in the oracle's order and in the kernel's."""

from __future__ import annotations

import numpy as np

from tvm_schedules import layouts, reference

N, K = 128, 384


class Problem:
    """Random codes of a (rows, K) x (K, N) product for the kernels of an architecture."""

    def __init__(
        self, bits: int, group: int, zero_point: bool, rows: int, tile_rows: int, arch: str, n: int = N, k: int = K
    ) -> None:
        rng = np.random.default_rng(bits * group + rows)
        self.w_codes = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
        self.w_scales = (rng.random((n, k // group)) * 0.01).astype(np.float16)
        middle = np.full((n, k // group), 2 ** (bits - 1), np.uint8)
        self.zeros = rng.integers(0, 16, middle.shape).astype(np.uint8) if zero_point else middle
        self.x_codes, self.x_scales = reference.quantise_rows(rng.standard_normal((rows, k)).astype(np.float32), group)
        sums = self.x_codes.astype(np.int32).reshape(rows, k // group, group).sum(axis=2, dtype=np.int32)
        self.bias = rng.standard_normal(n).astype(np.float32)
        columns = layouts.BLOCK_COLUMNS[arch]
        self.arguments = (
            layouts.pack(self.w_codes, bits, arch), layouts.pack_per_group(self.w_scales, columns),
            layouts.pack_per_group(self.zeros, columns), layouts.pack_rows(self.x_codes, tile_rows, arch),
            layouts.pack_row_scales(self.x_scales, tile_rows, arch), layouts.pack_row_sums(sums, tile_rows, arch),
            self.bias,
        )
        self.row_tiles = rows // tile_rows

    def expected(self) -> np.ndarray:
        """The product (rows, n) without bias, of the codes as they are now."""
        return reference.gemm_codes(self.x_codes, self.x_scales, self.w_codes, self.w_scales, self.zeros)


def swiglu(product: np.ndarray) -> np.ndarray:
    """silu(gate) * up of a product (rows, n) whose blocks of 16 columns alternate between gate and up."""
    blocks = product.astype(np.float64).reshape(len(product), -1, 2, 16)
    gate, up = blocks[:, :, 0], blocks[:, :, 1]
    return (gate / (1 + np.exp(-gate)) * up).reshape(len(product), -1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
