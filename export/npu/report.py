"""The report of `edgevlm inspect --npu`: every product of a model on a MAC array, and what would fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, TILE_BATCHES
from edgevlm.cli.output import table
from edgevlm.errors import PackageError
from edgevlm.package import Package
from export.archspec import ArchSpec
from export.npu.advice import Advice, advise
from export.npu.graphs import DEFAULT_CONTEXT, package_spec
from export.npu.products import Shapes, WeightBits, model_products
from export.npu.utilisation import MacArray, Utilisation, total_utilisation, utilisation
from export.npu.weights import PackageWeights

HEADING = (
    "graph", "product", "rows", "k", "n", "times", "used", "of k", "of n", "of rows", "stream", "MAC/B", "bound by",
)  # fmt: skip


@dataclass(frozen=True)
class NpuReport:
    """All products of one model on one array."""

    array: MacArray
    found: tuple[Utilisation, ...]
    advice: tuple[Advice, ...]

    def graph_totals(self) -> dict[str, float]:
        """Returns each graph's utilisation as a whole."""
        graphs = dict.fromkeys(one.product.graph for one in self.found)
        return {
            graph: total_utilisation([one.product for one in self.found if one.product.graph == graph], self.array)
            for graph in graphs
        }

    def product_rows(self) -> list[tuple[str, ...]]:
        """Returns the table of products, with its heading."""
        rows: list[tuple[str, ...]] = [HEADING]
        for one in self.found:
            p = one.product
            shares = (one.utilisation, one.k_share, one.n_share, one.row_share, one.stream_share)
            sizes = (f"{p.rows}", f"{p.k}", f"{p.n}", f"{p.count}")
            bound = "memory" if one.is_memory_bound else "array"
            rows.append((p.graph, p.name, *sizes, *(f"{x:.1%}" for x in shares), f"{one.intensity:.1f}", bound))
        return rows

    def advice_lines(self) -> list[str]:
        """Returns the advice, one line each."""
        lines = []
        for one in self.advice:
            change = f" ({one.before:.1%})" if one.after == one.before else f" ({one.before:.1%} → {one.after:.1%})"
            lines.append(f"{one.subject}: {one.text}{change}")
        return lines

    def as_text(self) -> str:
        """Returns the report as it is printed."""
        a = self.array
        head = f"MAC array {a.array_k} x {a.array_n}, rows in steps of {a.row_step}, {a.macs_per_byte:g} MACs per byte"
        totals = ", ".join(f"{graph} {value:.1%}" for graph, value in self.graph_totals().items())
        return "\n\n".join([head, table(self.product_rows()), f"used in all: {totals}", "\n".join(self.advice_lines())])

    def as_json(self) -> dict[str, Any]:
        """Returns the report as plain values."""
        products = [
            {**asdict(one), "utilisation": one.utilisation, "size_bytes": one.product.size_bytes} for one in self.found
        ]
        advice = [asdict(one) for one in self.advice]
        return {"array": asdict(self.array), "products": products, "graphs": self.graph_totals(), "advice": advice}


def model_report(spec: ArchSpec, shapes: Shapes, array: MacArray, w_bits: WeightBits) -> NpuReport:
    """Returns the report of a model by its shapes."""
    found = tuple(utilisation(product, array) for product in model_products(spec, shapes, w_bits))
    return NpuReport(array, found, tuple(advise(spec, shapes, array, w_bits)))


def package_report(package: Package, array_sizes: Sequence[int], macs_per_byte: float) -> NpuReport:
    """Returns the report of a package, with the shapes it was compiled for or those that compile would choose.

    Raises PackageError when the package has no graphs or no config.json.
    """
    if not package.manifest.graphs:
        raise PackageError(
            f"{package.path}: the package is a device's copy without ONNX graphs; name the one that it was made of"
        )
    weights = PackageWeights(package)
    spec = package_spec(package, weights)
    npu = package.manifest.npu
    shapes = Shapes(
        min(DEFAULT_CONTEXT, package.manifest.decoder.max_position_embeddings), PREFILL_CHUNK_TOKENS, TILE_BATCHES
    )
    if npu is not None:
        shapes = Shapes(npu.context, npu.chunk_tokens, npu.tile_batches)
    array_k, array_n, row_step = array_sizes
    return model_report(spec, shapes, MacArray(array_k, array_n, row_step, macs_per_byte), weights.bits_per_weight)
