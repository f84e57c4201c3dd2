"""How well a MAC array is filled by a model's products, what binds each of them, and what would fill it better.

The array holds array_k x array_n values of w still while rows of x stream through it (weight-stationary). A product
is cut into ceil(k / array_k) * ceil(n / array_n) pieces of w; for each, ceil(rows / row_step) * row_step rows enter,
skewed by one cycle per row and column of the array:

    cycles = pieces * (padded rows + array_k + array_n - 2)
    utilisation = rows * k * n / (array_k * array_n * cycles)

Source: DRACO (arXiv 2006.15103), for the ceilings and the fill. Every operand counts as moved once; what an NPU keeps
in its own memory between two products is not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.npu.products import Product


@dataclass(frozen=True)
class MacArray:
    """An array of array_k x array_n multipliers, and how many MACs it does in the time that memory moves one byte."""

    array_k: int
    array_n: int
    row_step: int
    macs_per_byte: float
    """Machine balance."""

    def padded_rows(self, rows: int) -> int:
        """Rows that enter for `rows`."""
        return rounded_up(rows, self.row_step)

    def cycles(self, product: Product) -> int:
        """Cycles of all `product.count` products."""
        pieces = -(-product.k // self.array_k) * -(-product.n // self.array_n)
        return product.count * pieces * (self.padded_rows(product.rows) + self.array_k + self.array_n - 2)


@dataclass(frozen=True)
class Utilisation:
    """One product on one array. `utilisation` is the product of the four shares."""

    product: Product
    cycles: int
    k_share: float
    """Useful part of the array's k: less than 1 when array_k does not divide k."""
    n_share: float
    row_share: float
    """Useful part of the rows that enter."""
    stream_share: float
    """Entering rows over rows and the skew: small where few rows share a piece of w."""
    intensity: float
    """MACs per byte moved."""
    is_memory_bound: bool
    """Intensity below the machine balance, times what the array reaches."""

    @property
    def utilisation(self) -> float:
        """Useful MACs over the MACs that the array could have done."""
        return self.k_share * self.n_share * self.row_share * self.stream_share


def utilisation(product: Product, array: MacArray) -> Utilisation:
    """Applies the model."""
    entering = array.padded_rows(product.rows)
    shares = (
        product.k / rounded_up(product.k, array.array_k),
        product.n / rounded_up(product.n, array.array_n),
        product.rows / entering,
        entering / (entering + array.array_k + array.array_n - 2),
    )
    intensity = product.macs / product.size_bytes
    reached = shares[0] * shares[1] * shares[2] * shares[3]
    return Utilisation(product, array.cycles(product), *shares, intensity, intensity < array.macs_per_byte * reached)


def total_utilisation(products: Sequence[Product], array: MacArray) -> float:
    """Useful MACs of several products over what the array could have done in their cycles."""
    cycles = sum(array.cycles(product) for product in products)
    return sum(product.macs for product in products) / (array.array_k * array.array_n * cycles)


def rounded_up(value: int, step: int) -> int:
    """The least multiple of `step` that is not below `value`."""
    return -(-value // step) * step
