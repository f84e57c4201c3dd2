"""What float NPU graphs are fed to find key centres and ranges: text in chunks behind a real cache, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.image import normalize
from edgevlm.package import Package
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tokenizer import Tokenizer
from export.fidelity import picture_probes
from export.npu.graphs import PREFILL, build_npu_graphs
from export.npu.ranges import Feeds, Observed, observe
from export.quant.sensitivity import calibration_text

Float32 = NDArray[np.float32]

N_TEXT_WINDOWS = 3
CHUNKS_PER_WINDOW = 2
"""Ranges do not grow with the cache; a cache of one chunk shows what scores over it look like."""
MAX_TILES = 6
PLAIN_COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255))
"""Tiles of one colour: in a tower without detail to attend to, activations lie elsewhere than on busy pictures."""


@dataclass(frozen=True)
class Calibration:
    """What was found."""

    key_centres: list[Float32]
    """Per layer (G, E): mean of the rotated keys."""
    observed: dict[str, Observed]
    """Every float value of the prefill graph, by name."""
    in_tower: dict[str, Observed]
    """The same of the vision graph."""
    n_tokens: int
    n_tiles: int


def calibrate(package: Package, scratch: Path, chunk_tokens: int) -> Calibration:
    """Runs text and pictures through float graphs that are built in `scratch`."""
    context = CHUNKS_PER_WINDOW * chunk_tokens
    options: dict[str, Any] = {
        "context": context,
        "chunk_tokens": chunk_tokens,
        "tile_batches": (1,),
        "all_logits": True,
    }
    plain = {graph.name: graph.path for graph in build_npu_graphs(package, scratch / "plain", **options)}
    tiles = _tiles(package) if "vision_1" in plain else []
    features = [_run(plain["vision_1"], {"pixel_values": tile})[0][0] for tile in tiles]
    windows = [*_text_windows(package, context), *_picture_windows(package, features, context)]

    kept: list[Feeds] = []
    sums: dict[str, NDArray[np.float64]] = {}
    n_rows = 0
    for window in windows:
        for _, new in _chunks(package, plain[PREFILL], window, chunk_tokens):
            n_rows += chunk_tokens
            for name, values in new.items():
                total = values[0].sum(axis=-1, dtype=np.float64)
                sums[name] = sums.get(name, np.zeros_like(total)) + total
    keys = [entry for entry in package.manifest.decoder.cache if entry.kind == "key"]
    centres = [(sums[entry.present_name] / n_rows).astype(np.float32) for entry in keys]

    centred = {
        graph.name: graph.path
        for graph in build_npu_graphs(package, scratch / "centred", key_centres=centres, **options)
    }
    for window in windows:
        kept.extend(feeds for feeds, _ in _chunks(package, centred[PREFILL], window, chunk_tokens))
    observed = observe(centred[PREFILL], kept)
    in_tower = observe(centred["vision_1"], [{"pixel_values": tile} for tile in tiles]) if tiles else {}
    return Calibration(centres, observed, in_tower, n_rows, len(tiles))


def embed(package: Package, ids: NDArray[np.int64]) -> Float32:
    """ids (T,) → embeddings (T, D), as the CPU makes them."""
    rows: Float32 = _run(package.graph("embed_tokens"), {"input_ids": ids[None]})[0][0]
    return rows


def _run(graph: Path, feeds: Feeds) -> list[NDArray[Any]]:
    outputs: list[NDArray[Any]] = _session(graph).run(None, feeds)
    return outputs


def _session(graph: Path) -> Any:
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _text_windows(package: Package, n_tokens: int) -> Iterator[Float32]:
    ids = np.array(Tokenizer.open(package).encode(calibration_text()), np.int64)
    ids = np.resize(ids, max(len(ids), n_tokens))
    for start in np.linspace(0, len(ids) - n_tokens, N_TEXT_WINDOWS).astype(int):
        yield embed(package, ids[start : start + n_tokens])


def _tiles(package: Package) -> list[Float32]:
    """(1, 3, S, S) each."""
    tiles: list[Float32] = []
    for probe in picture_probes(package):
        tiles.extend(probe.pixel_values[i : i + 1] for i in range(len(probe.pixel_values)))
    chosen = tiles[:: max(1, len(tiles) // MAX_TILES)][:MAX_TILES]
    spec = package.manifest.processor
    if spec is None:
        return chosen
    plain = [np.full((1, spec.tile_px, spec.tile_px, 3), colour, np.uint8) for colour in PLAIN_COLOURS]
    return [*chosen, *(normalize(tile, spec) for tile in plain)]


def _picture_windows(package: Package, features: list[Float32], n_tokens: int) -> Iterator[Float32]:
    """Picture features between text, as a prompt has them."""
    if not features:
        return
    text = next(_text_windows(package, n_tokens))
    rows = np.concatenate(features)[: n_tokens // 2]
    yield np.concatenate([text[: n_tokens // 4], rows, text])[:n_tokens]


def _chunks(
    package: Package, graph: Path, window: Float32, chunk: int
) -> Iterator[tuple[Feeds, dict[str, NDArray[Any]]]]:
    """Runs a window chunk by chunk behind a float cache; yields what was fed and the new keys of each chunk."""
    entries = package.manifest.decoder.cache
    session = _session(graph)
    shapes = {item.name: item.shape for item in session.get_inputs()}
    cache = {entry.past_name: np.zeros(shapes[entry.past_name], np.float32) for entry in entries}
    context = shapes["attention_mask"][-1] - chunk
    for start in range(0, len(window), chunk):
        mask = np.zeros((1, 1, chunk, context + chunk), np.bool_)
        mask[..., :start] = True
        mask[0, 0, :, context:] = np.tri(chunk, dtype=np.bool_)
        feeds: Feeds = {
            "inputs_embeds": np.ascontiguousarray(window[None, start : start + chunk]),
            "attention_mask": mask,
            "position_ids": np.arange(start, start + chunk, dtype=np.int32),
            **{name: array.copy() for name, array in cache.items()},
        }
        _, *new = session.run(None, feeds)
        yield feeds, {e.present_name: rows for e, rows in zip(entries, new, strict=True) if e.kind == "key"}
        for entry, rows in zip(entries, new, strict=True):
            if entry.kind == "key":
                cache[entry.past_name][..., start : start + chunk] = rows
            else:
                cache[entry.past_name][:, :, start : start + chunk] = rows
