"""The vision tower on onnxruntime: loaded at the first picture, released when the caller says so."""

from __future__ import annotations

import threading
import time

import numpy as np

from edgevlm.backends.ort import Graph, cancellable, return_free_memory
from edgevlm.backends.session import TILE_BATCHES, Float32, Timings
from edgevlm.cancel import CancelToken
from edgevlm.package import Package


class OnnxTower:
    """`vision_encoder` of one package. `encode` may run on another thread than the language model."""

    def __init__(self, package: Package, n_threads: int, timings: Timings) -> None:
        self._package = package
        self._n_threads = n_threads
        self._timings = timings
        self._graph: Graph | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._graph is not None

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S). Raises Cancelled, inside a graph too."""
        n_tiles = tiles.shape[0]
        features: list[Float32] = []
        with cancellable(cancel) as running, self._lock:
            graph = self._load()
            binding = graph.binding()
            start_tile = 0
            while start_tile < n_tiles:
                batch = next(size for size in TILE_BATCHES if size <= n_tiles - start_tile)
                pixels = np.ascontiguousarray(tiles[start_tile : start_tile + batch], dtype=np.float32)
                start = time.perf_counter()
                binding.input("pixel_values", pixels, pixels.shape)
                binding.io.bind_output("image_features", "cpu")
                graph.run(binding, running)
                features.append(binding.io.copy_outputs_to_cpu()[0])
                end = self._timings.record(f"encode {batch} tiles" if batch > 1 else "encode 1 tile", start)
                self._timings.encode_s += end - start
                self._timings.n_tiles += batch
                start_tile += batch
        return np.concatenate(features) if len(features) > 1 else features[0]

    def release(self) -> None:
        """Frees the weights and gives the memory back; the next `encode` loads them again."""
        start = time.perf_counter()
        with self._lock:
            if self._graph is None:
                return
            self._graph = None
            return_free_memory()
        self._timings.record("release vision", start)

    def _load(self) -> Graph:
        if self._graph is None:
            start = time.perf_counter()
            graph = Graph(self._package.graph("vision_encoder"), self._n_threads, keep_buffers=False)
            graph.require({"pixel_values": "float"}, {"image_features": "float"})
            graph.require_axis("image_features", -1, self._package.manifest.decoder.hidden_size)
            self._graph = graph
            self._timings.load_s += self._timings.record("load vision", start) - start
        return self._graph
