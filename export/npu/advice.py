"""What padding, chunk or batch would fill the MAC array better: candidates tried with the model, gains stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from export.archspec import ArchSpec, LMSpec, VisionSpec
from export.graphs.connector import tokens_per_tile
from export.npu.products import Product, Shapes, WeightBits, decoder_products, tower_products
from export.npu.utilisation import MacArray, Utilisation, rounded_up, total_utilisation, utilisation

CHUNKS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 512)
BATCHES = (1, 2, 3, 4, 5, 6, 8)
TEXT_TOKENS = 32
"""Of a prompt about a picture."""
PICTURE_TILES = (1, 5, 9)
"""A thumbnail alone, and with 2 x 2 and 4 x 2 tiles."""
PLAIN_PROMPT_TOKENS = 512
WORTH = 1.02
"""Gains below 2 % are not advised."""
FREE = 1.05
MOST_DRAFTED = 128
LOW_SHARE = 0.9
"""Products whose k or n fill less of the array are named."""


@dataclass(frozen=True)
class Advice:
    """One finding; `before` and `after` are utilisations, equal where nothing of the shape can be changed."""

    subject: str
    text: str
    before: float
    after: float


def advise(spec: ArchSpec, shapes: Shapes, array: MacArray, w_bits: WeightBits) -> list[Advice]:
    """Returns what the model finds, in the order of the graphs."""
    found: list[Advice] = []
    if spec.vision is not None:
        found += _tile_batches(spec, spec.vision, shapes, array, w_bits)
    if spec.language is not None:
        found += _chunks(spec, spec.language, shapes, array, w_bits)
        found += _decode(spec, spec.language, shapes, array, w_bits)
    return found


def _tile_batches(
    spec: ArchSpec, vision: VisionSpec, shapes: Shapes, array: MacArray, w_bits: WeightBits
) -> Iterator[Advice]:
    grid = vision.image_px // vision.patch
    n_tokens = grid * grid + vision.cls
    reached = {tiles: total_utilisation(tower_products(spec, vision, tiles, w_bits), array) for tiles in BATCHES}
    one = array.padded_rows(n_tokens)
    largest = max(shapes.tile_batches, default=1)
    current = reached.get(largest) or total_utilisation(tower_products(spec, vision, largest, w_bits), array)
    rows = array.padded_rows(largest * n_tokens)
    yield Advice(
        "tile rows",
        f"{n_tokens} tokens of one tile enter as {one} rows ({1 - n_tokens / one:.1%} waste), those of {largest} tiles "
        f"as {rows} ({1 - largest * n_tokens / rows:.1%}): encode tiles in batches",
        reached[1],
        current,
    )
    best = max(reached, key=lambda tiles: (round(reached[tiles], 3), -tiles))
    if reached[best] > WORTH * current:
        yield Advice("tile batch", f"batches of {best} tiles instead of {largest}", current, reached[best])
    yield from _narrow(tower_products(spec, vision, largest, w_bits), array)


def _chunks(spec: ArchSpec, language: LMSpec, shapes: Shapes, array: MacArray, w_bits: WeightBits) -> Iterator[Advice]:
    per_tile = _tokens_per_tile(spec)
    prompts = {f"{PLAIN_PROMPT_TOKENS} tokens of text": PLAIN_PROMPT_TOKENS}
    if per_tile:
        prompts = {
            f"{tiles} x {per_tile} picture tokens and {TEXT_TOKENS} of text": tiles * per_tile + TEXT_TOKENS
            for tiles in PICTURE_TILES
        }
        chunk = shapes.chunk_tokens
        alone = -(-per_tile // chunk) * chunk
        joined = rounded_up(per_tile + TEXT_TOKENS, chunk)
        yield Advice(
            "tiles in chunks",
            f"a tile of {per_tile} tokens alone takes {alone} rows of {chunk}-token chunks "
            f"({1 - per_tile / alone:.1%} waste), joined with {TEXT_TOKENS} tokens of text {joined} "
            f"({1 - (per_tile + TEXT_TOKENS) / joined:.1%}): join the parts of a prompt before cutting it (the runtime "
            "does)",
            per_tile / alone,
            (per_tile + TEXT_TOKENS) / joined,
        )
    for name, n_tokens in prompts.items():
        reached = {
            size: _prompt_utilisation(spec, language, size, n_tokens, shapes, array, w_bits)
            for size in {*CHUNKS, shapes.chunk_tokens}
            if size <= shapes.context
        }
        current = reached[shapes.chunk_tokens]
        best = max(reached, key=lambda size: (round(reached[size], 3), -size))
        text = f"prompt of {name}: chunks of {best} instead of {shapes.chunk_tokens}"
        if reached[best] <= WORTH * current:
            best, text = shapes.chunk_tokens, f"prompt of {name}: chunks of {shapes.chunk_tokens} are the best tried"
        yield Advice("chunk", text, current, reached[best])
    yield from _narrow(decoder_products(spec, language, "prefill", shapes.chunk_tokens, shapes.context, w_bits), array)


def _prompt_utilisation(
    spec: ArchSpec,
    language: LMSpec,
    chunk: int,
    n_tokens: int,
    shapes: Shapes,
    array: MacArray,
    w_bits: WeightBits,
) -> float:
    """Useful MACs of the linears of a prompt over what the array could do in the calls that it takes."""
    n_calls = -(-n_tokens // chunk)
    call = decoder_products(spec, language, "prefill", chunk, shapes.context, w_bits)
    useful = sum(product.macs for product in call) * n_tokens / chunk
    return useful / (array.array_k * array.array_n * n_calls * sum(array.cycles(product) for product in call))


def _decode(spec: ArchSpec, language: LMSpec, shapes: Shapes, array: MacArray, w_bits: WeightBits) -> Iterator[Advice]:
    products = decoder_products(spec, language, "decode", 1, shapes.context, w_bits)
    linears = [product for product in products if product.name not in ("scores", "mix")]
    moved, macs = sum(p.size_bytes for p in products), sum(p.macs for p in products)
    free = free_rows(linears, array)
    yield Advice(
        "decode",
        f"one row enters as {array.row_step}, {macs / moved:.1f} MACs per byte: {_binding(linears, array)} binds "
        f"and no padding helps; {free} rows (drafted tokens) take the time of one",
        total_utilisation(products, array),
        total_utilisation([replace(product, rows=free) for product in linears], array),
    )


def _binding(products: list[Product], array: MacArray) -> str:
    return "memory" if _memory_slots(products, array) > _array_slots(products, array) else "filling the array"


def _array_slots(products: list[Product], array: MacArray) -> float:
    """MACs that the array could do in the products' cycles."""
    return array.array_k * array.array_n * sum(map(array.cycles, products))


def _memory_slots(products: list[Product], array: MacArray) -> float:
    """MACs that the array could do while the products' bytes are moved."""
    return array.macs_per_byte * sum(product.size_bytes for product in products)


def free_rows(linears: list[Product], array: MacArray) -> int:
    """Largest number of rows that take at most FREE times what one row takes, array and memory working side by side."""

    def slots(rows: int) -> float:
        grown = [replace(product, rows=rows) for product in linears]
        return max(_array_slots(grown, array), _memory_slots(grown, array))

    rows, limit = 1, FREE * slots(1)
    while rows < MOST_DRAFTED and slots(rows + 1) <= limit:
        rows += 1
    return rows


def _narrow(products: list[Product], array: MacArray) -> Iterator[Advice]:
    """Products whose k or n leaves a part of the array empty: no padding fills that, only other widths would."""
    total = sum(array.cycles(product) for product in products)
    for product in products:
        found = utilisation(product, array)
        if min(found.k_share, found.n_share) >= LOW_SHARE:
            continue
        share = found.cycles / total
        yield Advice(
            f"{product.graph} {product.name}",
            f"{_cut(found, array)}; {share:.1%} of the graph's cycles; zeros would pad it to whole steps for nothing",
            found.utilisation,
            found.utilisation,
        )


def _cut(found: Utilisation, array: MacArray) -> str:
    parts = []
    for axis, size, share, step in (
        ("k", found.product.k, found.k_share, array.array_k),
        ("n", found.product.n, found.n_share, array.array_n),
    ):
        if share < LOW_SHARE:
            parts.append(f"{axis} = {size} fills {share:.0%} of {rounded_up(size, step)}")
    return ", ".join(parts)


def _tokens_per_tile(spec: ArchSpec) -> int:
    if spec.vision is None or spec.connector is None:
        return 0
    return tokens_per_tile(spec.connector, spec.vision.image_px // spec.vision.patch)
