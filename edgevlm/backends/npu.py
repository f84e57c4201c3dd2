"""The NPU's host loop: fixed graphs, right-padded chunks, a mask, and a cache of bytes that the host keeps.

The graphs take the whole cache and return the new rows, already as uint8: the host copies them in and computes
nothing. Rows at and after `n_past` are hidden by the mask. On which device a graph runs is the matter of its
`NpuGraphs`: simulated on onnxruntime's CPU, or edgevlm.backends.qnn on Qualcomm's NPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.draft_tree import DraftTree, accepted_path, check_tree, leaf_paths, shared_length
from edgevlm.backends.npu_graphs import Feeds, NpuGraphs, SimulatedGraphs
from edgevlm.backends.ort import Graph, Running, cancellable, return_free_memory
from edgevlm.backends.session import Door, Float32, Int64, MemoryReport, Segment, Timings
from edgevlm.cancel import CancelToken
from edgevlm.errors import BackendError, ContextFullError, UsageError
from edgevlm.machine_cpus import threads_to_use
from edgevlm.package import Package
from edgevlm.spec import CacheEntry, NpuEntry

CACHE_ZERO_POINT = 128
"""The code of zero in keys and values."""


def npu_entry(package: Package) -> NpuEntry:
    """Returns what the package was compiled to. Raises BackendError when it was not."""
    if package.manifest.npu is None:
        raise BackendError(
            f"{package.path}: the package has no NPU graphs; run `edgevlm compile {package.path} --target qnn-htp`"
        )
    return package.manifest.npu


@dataclass(frozen=True)
class _Snapshot:
    n_past: int
    arrays: tuple[NDArray[np.uint8], ...]


class NpuSession:
    """Session protocol on fixed graphs; see edgevlm.backends.session for what each method promises."""

    def __init__(self, package: Package, runner: NpuGraphs, *, context: int | None = None) -> None:
        """Raises BackendError without NPU graphs, UsageError for a context longer than they were compiled for."""
        entry, decoder = npu_entry(package), package.manifest.decoder
        if context is not None and not 1 <= context <= entry.context:
            raise UsageError(
                f"context is {context}, the NPU's graphs were compiled for 1 to {entry.context}; compile with --context"
            )
        self.package = package
        self.capacity = entry.context if context is None else context
        self.n_past = 0
        self.timings = Timings()
        self._entry = entry
        self._runner = runner
        self.reuse_step = entry.chunk_tokens
        self._door, self._tower_door = Door("session"), Door("session")
        self._tree: DraftTree | None = None
        self._cache: dict[str, NDArray[np.uint8]] = {}
        start = time.perf_counter()
        self._embed = Graph(package.graph("embed_tokens"), 1, keep_buffers=True)
        self._embed.require({"input_ids": "int64"}, {"inputs_embeds": "float"})
        self._embed.require_axis("inputs_embeds", -1, decoder.hidden_size)
        self._embed_binding = self._embed.binding()
        self.timings.load_s += self.timings.record("load language", start) - start

    # ---- pictures

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D)."""
        features, done = [], 0
        with self._tower_door.entered(), cancellable(cancel) as running:
            while done < len(tiles):
                batch = next(size for size in self._entry.tile_batches if size <= len(tiles) - done)
                start = time.perf_counter()
                pixels = np.ascontiguousarray(tiles[done : done + batch], np.float32)
                features.append(self._runner.run(f"vision_{batch}", {"pixel_values": pixels}, running)[0])
                self.timings.encode_s += self.timings.record(f"encode {batch} tiles", start) - start
                self.timings.n_tiles += batch
                done += batch
        return np.concatenate(features)

    # ---- tokens

    def prefill(
        self, segments: Sequence[Segment], positions: Int64, cancel: CancelToken | None = None
    ) -> Float32:
        """Appends the segments in right-padded chunks; returns the last row's logits (vocab,)."""
        n_tokens = sum(len(segment) for segment in segments)
        if n_tokens == 0:
            raise UsageError("nothing to prefill: the prompt has no new token")
        done, logits = 0, np.zeros(0, np.float32)
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(n_tokens)
            self._tree = None
            for embeds in self._chunks(segments, running):
                start, n_rows = time.perf_counter(), len(embeds)
                logits = self._decode(embeds, positions[done : done + n_rows], self.n_past, running)
                done += n_rows
                self.n_past += n_rows
                self.timings.prefill_s += self.timings.record(f"prefill {n_rows} tokens", start) - start
                self.timings.n_prefill_tokens += n_rows
        return logits

    def step(self, token: int, position: int, cancel: CancelToken | None = None) -> Float32:
        """Appends one token; returns its logits (vocab,)."""
        start = time.perf_counter()
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(1)
            self._tree = None
            logits = self._one(token, position, self.n_past, running)
            self.n_past += 1
        self.timings.decode_s += self.timings.record("decode", start) - start
        self.timings.n_decode_tokens += 1
        return logits

    def score(self, ids: Int64, parents: Int64, positions: Int64, cancel: CancelToken | None = None) -> Float32:
        """Returns logits (T, vocab) of a drafted tree: token by token, reusing what neighbouring paths share."""
        check_tree(ids, parents, positions)
        paths = leaf_paths(parents)
        logits = np.zeros((len(ids), self.package.manifest.decoder.vocab_size), np.float32)
        cached: tuple[int, ...] = ()
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(max(len(path) for path in paths))
            self._tree = None
            for path in paths:
                for depth in range(shared_length(path, cached), len(path)):
                    node = path[depth]
                    logits[node] = self._one(int(ids[node]), int(positions[node]), self.n_past + depth, running)
                cached = path
            self._tree = DraftTree(ids.copy(), parents.copy(), positions.copy(), cached)
        return logits

    def accept(self, nodes: Int64) -> None:
        """Commits a root-to-node path of the tree last scored; rows that another path overwrote are computed again."""
        with self._door.entered(), cancellable(None) as running:
            tree, path = accepted_path(self._tree, nodes)
            for depth in range(shared_length(path, tree.cached_path), len(path)):
                node = path[depth]
                self._one(int(tree.ids[node]), int(tree.positions[node]), self.n_past + depth, running)
            self.n_past += len(path)
            self._tree = None

    # ---- the cache

    def truncate(self, n_tokens: int) -> None:
        """Keeps the first `n_tokens` of the cache."""
        with self._door.entered():
            if not 0 <= n_tokens <= self.n_past:
                raise UsageError(f"cannot keep {n_tokens} tokens of a cache that holds {self.n_past}")
            self.n_past = n_tokens
            self._tree = None

    def snapshot(self) -> _Snapshot:
        """Returns a copy of the cache."""
        with self._door.entered():
            return _Snapshot(self.n_past, tuple(array.copy() for array in self._cache.values()))

    def restore(self, snapshot: _Snapshot) -> None:
        """Puts a snapshot back."""
        if not isinstance(snapshot, _Snapshot) or snapshot.n_past > self.capacity:
            raise UsageError("restore() takes what snapshot() of a session of this package returned")
        with self._door.entered():
            self._make_cache()
            for array, saved in zip(self._cache.values(), snapshot.arrays, strict=False):
                array[:] = saved
            self.n_past = snapshot.n_past
            self._tree = None

    def release(self, part: Literal["vision", "kv"]) -> None:
        """Frees the tower's graphs or the cache; the next use brings them back."""
        if part == "vision":
            with self._tower_door.entered():
                self._runner.release("vision")
            return
        with self._door.entered():
            self._free_cache()

    def memory(self) -> MemoryReport:
        """Returns bytes of the graphs' weights (on disk) and of the cache."""
        sizes = {entry.path: entry.size_bytes for entry in self.package.manifest.files}
        weights = sizes.get(self._entry.weights, 0)
        return MemoryReport(weights, sum(a.nbytes for a in self._cache.values()), self._runner.loaded("vision"))

    def close(self) -> None:
        """Waits for the calls that run and frees the graphs and the cache."""
        with self._tower_door.closing() as was_open:
            if was_open:
                self._runner.release("vision")
        with self._door.closing() as was_open:
            if was_open:
                self._runner.release("")
                self._free_cache()
                del self._embed_binding, self._embed

    # ---- inner workings

    def _one(self, token: int, position: int, n_past: int, running: Running) -> Float32:
        embeds = self._embedded(np.array([token], np.int64), running)
        return self._decode(embeds, np.array([position], np.int64), n_past, running)

    def _decode(self, embeds: Float32, positions: Int64, n_past: int, running: Running) -> Float32:
        """Runs up to a chunk of rows (T, D) behind `n_past`; writes their keys and values, returns the last logits."""
        n_rows, past = len(embeds), self._entry.context
        name, size = ("decode", 1) if n_rows == 1 else ("prefill", self._entry.chunk_tokens)
        self._make_cache()
        padded = np.zeros((1, size, embeds.shape[1]), np.float32)
        padded[0, :n_rows] = embeds
        ids = np.zeros(size, np.int32)
        ids[:n_rows] = positions
        mask = np.zeros((1, 1, size, past + size), np.bool_)
        mask[..., :n_past] = True
        mask[0, 0, :, past:] = np.tri(size, dtype=np.bool_)
        feeds: Feeds = {"inputs_embeds": padded, "attention_mask": mask, "position_ids": ids, **self._cache}
        if size > 1:
            feeds["last_row"] = np.array([n_rows - 1], np.int32)
        logits, *new = self._runner.run(name, feeds, running)
        for entry, rows in zip(self.package.manifest.decoder.cache, new, strict=True):
            array = self._cache[entry.past_name]
            array[_rows(entry, n_past, n_past + n_rows)] = rows[_rows(entry, 0, n_rows)]
        last: Float32 = logits[0, 0]
        return last

    def _chunks(self, segments: Sequence[Segment], running: Running) -> Iterator[Float32]:
        """Yields the segments' embeddings in chunks (T, D)."""
        hidden, chunk = self.package.manifest.decoder.hidden_size, self._entry.chunk_tokens
        held: list[Float32] = []
        n_held = 0
        for segment in segments:
            if segment.ndim == 2 and segment.shape[1] != hidden:
                raise UsageError(f"picture features are {segment.shape[1]} wide, the language model takes {hidden}")
            taken = 0
            while taken < len(segment):
                part = segment[taken : taken + chunk - n_held]
                held.append(np.asarray(part, np.float32) if part.ndim == 2 else self._embedded(part, running))
                taken += len(part)
                n_held += len(part)
                if n_held == chunk:
                    yield np.concatenate(held)
                    held, n_held = [], 0
        if held:
            yield np.concatenate(held)

    def _embedded(self, ids: NDArray[Any], running: Running) -> Float32:
        """ids (T,) → embeddings (T, D), on the CPU."""
        rows = np.empty((1, len(ids), self.package.manifest.decoder.hidden_size), np.float32)
        self._embed_binding.input("input_ids", np.ascontiguousarray(ids[None], np.int64), (1, len(ids)))
        self._embed_binding.output("inputs_embeds", rows, rows.shape)
        self._embed.run(self._embed_binding, running)
        embedded: Float32 = rows[0]
        return embedded

    def _free_cache(self) -> None:
        self.n_past = 0
        self._tree = None
        self._cache.clear()
        return_free_memory()

    def _make_cache(self) -> None:
        if self._cache:
            return
        for entry in self.package.manifest.decoder.cache:
            kv_heads, _, dim = (0 if axis == "P" else int(axis) for axis in entry.shape)
            rows = self._entry.context
            shape = (1, kv_heads, dim, rows) if entry.kind == "key" else (1, kv_heads, rows, dim)
            self._cache[entry.past_name] = np.full(shape, CACHE_ZERO_POINT, np.uint8)

    def _check_room(self, n_tokens: int) -> None:
        if self.n_past + n_tokens > self.capacity:
            raise ContextFullError(
                f"the context is full: {self.n_past} tokens are held and {n_tokens} more are needed, the capacity is "
                f"{self.capacity}; compile with a longer --context"
            )


def simulated_session(package: Package, *, context: int | None = None, threads: int | None = None) -> NpuSession:
    """Returns a session on the simulation of the NPU's graphs."""
    runner = SimulatedGraphs(package, npu_entry(package), threads_to_use(threads))
    return NpuSession(package, runner, context=context)


def _rows(entry: CacheEntry, start: int, stop: int) -> tuple[Any, ...]:
    """Index of token rows: keys lie transposed."""
    rows = slice(start, stop)
    return (..., rows) if entry.kind == "key" else (slice(None), slice(None), rows)
