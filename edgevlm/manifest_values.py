"""What the fields of a manifest may hold, beyond their types: sizes, counts, ids and numbers that can be worked with.

Who writes a package and who opens one ask the same functions, so that nothing is exported that every run refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgevlm.generation_defaults import wrong_default
from edgevlm.spec import DecoderSpec, GenerationSpec, Manifest, NpuEntry, ProcessorSpec, PromptSpec

MAX_SIZE = 1 << 16
"""Widths, heads and layers; the engine's plan has less."""
MAX_VOCAB = MAX_CONTEXT = 1 << 24
MAX_TILE_PX = 8192
MAX_SIDE_TILES = 256
MAX_TILES = 4096
MAX_TEXT_CHARS = 4096
"""Of one of the texts around image tokens, and of the image token itself; those of models have less than 40."""
MAX_PICTURE_CHARS = 1 << 26
"""Of one picture's image tokens as text, which a prompt is encoded from; published models stay below 2 million."""
SMALLEST, LARGEST = 1e-6, 1e6
"""Factors and divisors of pixels; between them float32 neither overflows nor vanishes."""
KV_BITS = (4, 8, 16)


def wrong_values(manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong with a manifest, one sentence a value; nothing for a sound one."""
    decoder, processor, prompt = manifest.decoder, manifest.processor, manifest.prompt
    yield from wrong_decoder(decoder)
    yield from wrong_generation(manifest.generation, decoder.vocab_size)
    if (processor is None) != (prompt is None):
        yield "one of 'processor' and 'prompt' is given without the other"
    if processor is not None:
        yield from wrong_processor(processor)
    if prompt is not None:
        yield from wrong_prompt(prompt)
    if processor is not None and prompt is not None:
        n_chars = (processor.max_tiles + 1) * prompt.tokens_per_tile * len(prompt.image_token)
        if n_chars > MAX_PICTURE_CHARS:
            yield f"a picture of {processor.max_tiles} tiles takes {n_chars} characters, at most {MAX_PICTURE_CHARS}"
    names = [graph.name for graph in manifest.graphs]
    if len(set(names)) != len(names):
        yield f"'graphs' lists a graph twice: {sorted(names)}"
    archs = [entry.arch for entry in manifest.compiled]
    if len(set(archs)) != len(archs):
        yield f"'compiled' lists an architecture twice: {sorted(archs)}"
    for entry in manifest.compiled:
        if entry.kv_bits:
            yield from _wrong_kv_bits(f"compiled kv_bits of {entry.arch}", entry.kv_bits, decoder.num_hidden_layers)
    if manifest.npu is not None:
        yield from _wrong_npu(manifest.npu)


def wrong_decoder(decoder: DecoderSpec) -> Iterator[str]:
    """Yields what is wrong with the description of the language model."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
        yield from _outside(f"decoder.{name}", getattr(decoder, name), 1, MAX_SIZE)
    yield from _outside("decoder.vocab_size", decoder.vocab_size, 1, MAX_VOCAB)
    if not 1 <= decoder.default_context <= decoder.max_position_embeddings <= MAX_CONTEXT:
        yield (
            f"decoder.default_context {decoder.default_context} and max_position_embeddings "
            f"{decoder.max_position_embeddings} do not fit together (1 to {MAX_CONTEXT})"
        )
    if decoder.num_key_value_heads > 0 and decoder.num_attention_heads % decoder.num_key_value_heads:
        yield (
            f"decoder.num_attention_heads {decoder.num_attention_heads} is no multiple of num_key_value_heads "
            f"{decoder.num_key_value_heads}"
        )
    yield from _wrong_cache(decoder)
    yield from _wrong_kv_bits("decoder.kv_bits", decoder.kv_bits, decoder.num_hidden_layers)


def _wrong_kv_bits(where: str, table: tuple[tuple[int, int], ...], n_layers: int) -> Iterator[str]:
    if len(table) != n_layers:
        yield f"{where} has {len(table)} layers, the model {n_layers}"
    for bits in {bits for pair in table for bits in pair} - set(KV_BITS):
        yield f"{where} has {bits}, expected {' or '.join(map(str, KV_BITS))}"


def _wrong_cache(decoder: DecoderSpec) -> Iterator[str]:
    names = [name for entry in decoder.cache for name in (entry.past_name, entry.present_name)]
    if not names or len(set(names)) != len(names):
        yield "decoder.cache names are missing or not unique"
    for entry in decoder.cache:
        where = f"decoder.cache shape of {entry.past_name!r} is {_few(entry.shape)}"
        sizes = [axis for axis in entry.shape if isinstance(axis, int)]
        words = [axis for axis in entry.shape if not isinstance(axis, int)]
        if not all(1 <= size <= MAX_SIZE for size in sizes) or set(words) - {"P"}:
            yield where
        if entry.kind in ("key", "value") and [isinstance(axis, int) for axis in entry.shape] != [True, False, True]:
            yield f"{where}, expected heads, 'P' and width"
        if not 0 <= entry.layer < decoder.num_hidden_layers:
            yield f"decoder.cache layer {entry.layer} does not exist"
    places = [(entry.layer, entry.kind) for entry in decoder.cache]
    if len(set(places)) != len(places):
        yield "decoder.cache holds a tensor of one kind and layer twice"


def wrong_generation(generation: GenerationSpec, vocab_size: int) -> Iterator[str]:
    """Yields what is wrong with the defaults of sampling and with the ids that end a turn."""
    eos = generation.eos_token_ids
    if not all(0 <= token < vocab_size for token in eos):
        yield f"generation.eos_token_ids {_few(eos)} are no token ids of a vocabulary of {vocab_size}"
    if (wrong := wrong_default(generation)) is not None:
        yield f"generation.{wrong}"


def wrong_processor(processor: ProcessorSpec) -> Iterator[str]:
    """Yields what is wrong with the rule that makes tiles of a picture."""
    yield from _outside("processor.tile_px", processor.tile_px, 1, MAX_TILE_PX)
    yield from _outside("processor.max_rows", processor.max_rows, 1, MAX_SIDE_TILES)
    yield from _outside("processor.max_cols", processor.max_cols, 1, MAX_SIDE_TILES)
    yield from _outside("processor.max_tiles", processor.max_tiles, 1, MAX_TILES)
    yield from _outside("processor.relaxed_alpha", processor.relaxed_alpha, 0, 1)
    yield from _outside("processor.rescale_factor", processor.rescale_factor, SMALLEST, LARGEST)
    for mean, std in zip(processor.image_mean, processor.image_std, strict=True):
        yield from _outside("processor.image_mean", mean, -LARGEST, LARGEST)
        yield from _outside("processor.image_std", std, SMALLEST, LARGEST)
    if processor.scheme in ("relaxed", "fixed") and not all(0 <= mean <= 1 for mean in processor.image_mean):
        yield f"processor.image_mean is {processor.image_mean}, which is no colour to pad with"
    if processor.longest_edge_px is not None:
        yield from _outside("processor.longest_edge_px", processor.longest_edge_px, 1, MAX_SIDE_TILES * MAX_TILE_PX)
    for name in ("min_pixels", "max_pixels"):
        if (value := getattr(processor, name)) is not None:
            yield from _outside(f"processor.{name}", value, 1, MAX_TILES * MAX_TILE_PX**2)
    for height_px, width_px in processor.grid_pinpoints:
        for side_px in (height_px, width_px):
            if side_px < 1 or processor.tile_px < 1 or side_px % processor.tile_px:
                yield f"processor.grid_pinpoints has {side_px} px, no multiple of the tile's {processor.tile_px}"
            yield from _outside("processor.grid_pinpoints", side_px, 1, MAX_SIDE_TILES * MAX_TILE_PX)


def wrong_prompt(prompt: PromptSpec) -> Iterator[str]:
    """Yields what is wrong with the image tokens and the texts around them."""
    yield from _outside("prompt.tokens_per_tile", prompt.tokens_per_tile, 1, MAX_SIZE)
    # An added image token often lies behind the last row of the embedding: its features come from the tower.
    yield from _outside("prompt.image_token_id", prompt.image_token_id, 0, MAX_VOCAB - 1)
    if not prompt.image_token:
        yield "prompt.image_token is empty"
    texts = ("image_prefix", "single_prefix", "tile_prefix", "row_suffix", "thumbnail_prefix", "image_suffix")
    for name in ("image_token", *texts):
        if (length := len(getattr(prompt, name))) > MAX_TEXT_CHARS:
            yield f"prompt.{name} has {length:,} characters, expected at most {MAX_TEXT_CHARS:,}"


def _wrong_npu(npu: NpuEntry) -> Iterator[str]:
    yield from _outside("npu.context", npu.context, 1, MAX_CONTEXT)
    yield from _outside("npu.chunk_tokens", npu.chunk_tokens, 1, MAX_SIZE)
    batches = npu.tile_batches
    if batches and (batches[-1] != 1 or list(batches) != sorted(set(batches), reverse=True) or batches[0] > MAX_TILES):
        yield f"npu.tile_batches is {_few(batches)}, expected numbers of tiles, the largest first, down to 1"


def _outside(name: str, value: float, least: float, most: float) -> Iterator[str]:
    if not (math.isfinite(value) and least <= value <= most):
        yield (
            f"{name} is {value}, expected {least:g} to {most:g}"
            if isinstance(value, float)
            else (f"{name} is {value}, expected {int(least)} to {int(most)}")
        )


def _few(values: Sequence[int | str]) -> str:
    shown = ", ".join(map(str, values[:5]))
    return f"[{shown}]" if len(values) <= 5 else f"[{shown} and {len(values) - 5} more]"
