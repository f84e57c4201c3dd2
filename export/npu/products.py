"""The matrix products of a model's NPU graphs, by shape alone: what the MAC array is given to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, TILE_BATCHES
from export.archspec import ArchSpec, ConnectorSpec, LMSpec, VisionSpec
from export.graphs.connector import tokens_per_tile

KV_BITS = 8
ACTIVATION_BITS = 16
WeightBits = Callable[[str, tuple[int, int]], float]
"""(name of a weight without '.weight', (N, K)) → bits of one value, its share of scales and zero points included."""


@dataclass(frozen=True)
class Product:
    """y (rows, n) = x (rows, k) times w (k, n), `count` times in one call of a graph."""

    graph: str
    """prefill, decode, or vision_4, …"""
    name: str
    rows: int
    k: int
    n: int
    count: int
    w_bits: float
    """Of one value of w, which is read once: weights, or the cache in attention."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return self.rows * self.k * self.n * self.count

    @property
    def size_bytes(self) -> float:
        """Bytes of w, x and y, each moved once."""
        activations = (self.rows * self.k + self.rows * self.n) * ACTIVATION_BITS / 8
        return (self.k * self.n * self.w_bits / 8 + activations) * self.count


@dataclass(frozen=True)
class Shapes:
    """The fixed sizes that the graphs are built for."""

    context: int
    chunk_tokens: int = PREFILL_CHUNK_TOKENS
    tile_batches: tuple[int, ...] = TILE_BATCHES


def model_products(spec: ArchSpec, shapes: Shapes, w_bits: WeightBits) -> list[Product]:
    """Returns the products of every graph, equal ones of different layers as one. Connectors must know their widths."""
    products: list[Product] = []
    if spec.vision is not None:
        for tiles in shapes.tile_batches:
            products += tower_products(spec, spec.vision, tiles, w_bits)
    if spec.language is not None:
        for graph, n_tokens in (("prefill", shapes.chunk_tokens), ("decode", 1)):
            products += decoder_products(spec, spec.language, graph, n_tokens, shapes.context, w_bits)
    return products


def decoder_products(
    spec: ArchSpec, language: LMSpec, graph: str, n_tokens: int, context: int, w_bits: WeightBits
) -> list[Product]:
    """The products of one call for `n_tokens` behind a cache of `context` rows."""
    names, hidden = spec.names.language, language.hidden
    products = []
    for i in range(len(language.layer_kinds)):
        head_dim, kv_heads, mlp = language.head_dim[i], language.kv_heads[i], language.mlp[i]
        wide, narrow = language.heads * head_dim, kv_heads * head_dim
        linears = {
            "q": (wide, hidden), "k": (narrow, hidden), "v": (narrow, hidden), "o": (hidden, wide),
            "gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp),
        }  # fmt: skip
        rows = language.heads // kv_heads * n_tokens
        seen = context + n_tokens
        for role in ("q", "k", "v"):
            products.append(_linear(graph, names[role].format(i=i), f"{role}_proj", linears[role], n_tokens, w_bits))
        products.append(Product(graph, "scores", rows, head_dim, seen, kv_heads, KV_BITS))
        products.append(Product(graph, "mix", rows, seen, head_dim, kv_heads, KV_BITS))
        for role in ("o", "gate", "up", "down"):
            products.append(_linear(graph, names[role].format(i=i), f"{role}_proj", linears[role], n_tokens, w_bits))
    head = names["embed" if language.tied else "lm_head"]
    products.append(_linear(graph, head, "head", (language.vocab, hidden), 1, w_bits))
    return _merged(products)


def tower_products(spec: ArchSpec, vision: VisionSpec, tiles: int, w_bits: WeightBits) -> list[Product]:
    """The products of one call of the tower and the connector for `tiles` tiles."""
    names, graph, width = spec.names.vision, f"vision_{tiles}", vision.width
    grid = vision.image_px // vision.patch
    n_patches = grid * grid
    n_tokens = n_patches + vision.cls
    products = [Product(graph, "patches", tiles * n_patches, 3 * vision.patch**2, width, 1, KV_BITS)]
    linears = {
        "q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width),
        "fc1": (vision.mlp, width), "fc2": (width, vision.mlp),
    }  # fmt: skip
    for i in range(vision.run_layers):
        for role, shape in linears.items():
            products.append(_linear(graph, names[role].format(i=i), role, shape, tiles * n_tokens, w_bits))
        heads = tiles * vision.heads
        products.append(Product(graph, "scores", n_tokens, vision.head_dim, n_tokens, heads, ACTIVATION_BITS))
        products.append(Product(graph, "mix", n_tokens, n_tokens, vision.head_dim, heads, ACTIVATION_BITS))
    if spec.connector is not None:
        products += _connector(spec, vision, spec.connector, tiles, w_bits)
    return _merged(products)


def _connector(
    spec: ArchSpec, vision: VisionSpec, connector: ConnectorSpec, tiles: int, w_bits: WeightBits
) -> Iterable[Product]:
    width = vision.width * (connector.factor**2 if connector.reduce == "s2d" else 1)
    rows = tiles * tokens_per_tile(connector, vision.image_px // vision.patch)
    for i, linear in enumerate(connector.linears):
        name = f"linear.{i}"
        yield _linear(f"vision_{tiles}", spec.names.connector[name], name, (linear.out, width), rows, w_bits)
        width = linear.out


def _linear(graph: str, stem: str, name: str, shape: tuple[int, int], rows: int, w_bits: WeightBits) -> Product:
    n, k = shape
    return Product(graph, name, rows, k, n, 1, w_bits(stem, shape))


def _merged(products: list[Product]) -> list[Product]:
    """Equal products of different layers as one, in the order of their first."""
    counts: dict[Product, int] = {}
    for product in products:
        one = replace(product, count=1)
        counts[one] = counts.get(one, 0) + product.count
    return [replace(one, count=count) for one, count in counts.items()]
