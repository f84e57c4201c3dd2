"""The reference backend: onnxruntime on the CPU.

The KV lives in arrays of the full capacity, bound as past and as present of the same run, so that a token costs no
copy of the cache (GroupQueryAttention's shared buffers). Pages of the cache that no token has reached are never
touched and take no memory. Rows at and after `n_past` are scratch: a cancelled run or a scored tree may leave
anything there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgevlm.backends.draft_tree import DraftTree, accepted_path, check_tree, leaf_paths, shared_length
from edgevlm.backends.onnx_tower import OnnxTower
from edgevlm.backends.ort import Graph, Running, cancellable, return_free_memory
from edgevlm.backends.session import (
    PREFILL_CHUNK_TOKENS,
    Door,
    Float32,
    Int64,
    MemoryReport,
    Segment,
    Timings,
)
from edgevlm.cancel import CancelToken
from edgevlm.errors import ContextFullError, UnsupportedModelError, UsageError
from edgevlm.machine_cpus import threads_to_use
from edgevlm.package import Package


@dataclass(frozen=True)
class _Snapshot:
    n_past: int
    arrays: tuple[Float32, ...]


class OnnxSession:
    """Session protocol on onnxruntime; see edgevlm.backends.session for what each method promises."""

    def __init__(self, package: Package, *, context: int | None = None, threads: int | None = None) -> None:
        """Loads the language graphs; the tower is loaded at the first `encode`.

        Raises UsageError for a context beyond the model's, PackageError for graphs that break the contract.
        """
        decoder = package.manifest.decoder
        self.package = package
        self.capacity = check_context(package, context)
        self.n_past = 0
        self.timings = Timings()
        self.n_threads = threads_to_use(threads)
        self.reuse_step = PREFILL_CHUNK_TOKENS
        self._door, self._tower_door = Door("session"), Door("session")
        for entry in decoder.cache:
            if entry.kind not in ("key", "value"):
                raise UnsupportedModelError(
                    f"{package.path}: cache entry {entry.past_name!r} is of kind {entry.kind!r}; the onnxruntime "
                    "backend keeps keys and values only"
                )
        self.tower = OnnxTower(package, self.n_threads, self.timings)
        self._tree: DraftTree | None = None
        self._cache: list[Float32] = []

        start = time.perf_counter()
        self._embed = Graph(package.graph("embed_tokens"), 1, keep_buffers=True)
        self._embed.require({"input_ids": "int64"}, {"inputs_embeds": "float"})
        self._embed.require_axis("inputs_embeds", -1, decoder.hidden_size)
        self._decoder = Graph(package.graph("decoder_model_merged"), self.n_threads, keep_buffers=True)
        self._require_decoder()
        self._embed_binding = self._embed.binding()
        self._decoder_binding = self._decoder.binding()
        self._ids = np.zeros((1, PREFILL_CHUNK_TOKENS), np.int64)
        self._embeds = np.zeros((1, PREFILL_CHUNK_TOKENS, decoder.hidden_size), np.float32)
        self._mask = np.ones((1, self.capacity), np.int64)
        self._positions = np.zeros((1, 1) if decoder.position_rank == 1 else (3, 1, 1), np.int64)
        self._last_logits = np.zeros((1, 1, decoder.vocab_size), np.float32)
        self._keep = np.zeros((), np.int64)
        self._decoder_binding.input("num_logits_to_keep", self._keep, ())
        self.timings.load_s += self.timings.record("load language", start) - start

    # ---- pictures

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S)."""
        with self._tower_door.entered():
            return self.tower.encode(tiles, cancel)

    # ---- tokens

    def prefill(
        self, segments: Sequence[Segment], positions: Int64, cancel: CancelToken | None = None
    ) -> Float32:
        """Appends the segments in chunks of 128; returns the last row's logits (vocab,).

        `positions` is (T,), or (3, T) where the model rotates by three. A cancel leaves `n_past` at a chunk's end.
        """
        n_tokens = sum(len(segment) for segment in segments)
        if n_tokens == 0:
            raise UsageError("nothing to prefill: the prompt has no new token")
        done = 0
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(n_tokens)
            self._tree = None
            for n_rows in self._fill_embeds(segments, running):
                start = time.perf_counter()
                self._decode(n_rows, positions[..., done : done + n_rows], self.n_past, running, keep=1)
                done += n_rows
                self.n_past += n_rows
                self.timings.record(f"prefill {n_rows} tokens", start)
                self.timings.prefill_s += time.perf_counter() - start
                self.timings.n_prefill_tokens += n_rows
            return np.array(self._last_logits[0, 0])

    def step(self, token: int, position: int, cancel: CancelToken | None = None) -> Float32:
        """Appends one token; returns its logits (vocab,)."""
        start = time.perf_counter()
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(1)
            self._tree = None
            self._ids[0, 0] = token
            self._embed_rows(1, 0, running)
            self._decode(1, np.array([position], np.int64), self.n_past, running, keep=1)
            self.n_past += 1
            end = self.timings.record("decode", start)
            self.timings.decode_s += end - start
            self.timings.n_decode_tokens += 1
            return np.array(self._last_logits[0, 0])

    def score(self, ids: Int64, parents: Int64, positions: Int64, cancel: CancelToken | None = None) -> Float32:
        """Returns logits (T, vocab) of a drafted tree without committing it.

        onnxruntime gets no tree mask here: each root-to-leaf path is run on its own, reusing the rows that it shares
        with the path before, so a chain costs one run and a bush as many as it has leaves.
        """
        check_tree(ids, parents, positions)
        paths = leaf_paths(parents)
        logits = np.zeros((len(ids), self.package.manifest.decoder.vocab_size), np.float32)
        cached: tuple[int, ...] = ()
        with self._door.entered(), cancellable(cancel) as running:
            self._check_room(max(len(path) for path in paths))
            self._tree = None
            for path in paths:
                shared = shared_length(path, cached)
                cached = ()
                nodes = np.array(path[shared:], np.int64)
                logits[nodes] = self._score_rows(ids[nodes], positions[..., nodes], self.n_past + shared, running)
                cached = path
            self._tree = DraftTree(ids.copy(), parents.copy(), positions.copy(), cached)
        return logits

    def accept(self, nodes: Int64) -> None:
        """Commits a root-to-node path of the tree last scored; rows that another path overwrote are computed again."""
        with self._door.entered(), cancellable(None) as running:
            tree, path = accepted_path(self._tree, nodes)
            shared = shared_length(path, tree.cached_path)
            rest = np.array(path[shared:], np.int64)
            if len(rest):
                self._score_rows(tree.ids[rest], tree.positions[..., rest], self.n_past + shared, running)
            self.n_past += len(path)
            self._tree = None

    def _score_rows(self, ids: Int64, positions: Int64, n_past: int, running: Running) -> Float32:
        """Returns logits of consecutive tokens behind `n_past` rows; the cache is written, `n_past` is not moved."""
        rows: list[Float32] = []
        for start in range(0, len(ids), PREFILL_CHUNK_TOKENS):
            part = ids[start : start + PREFILL_CHUNK_TOKENS]
            self._ids[0, : len(part)] = part
            self._embed_rows(len(part), 0, running)
            chunk_positions = positions[..., start : start + len(part)]
            rows.append(self._decode(len(part), chunk_positions, n_past + start, running, keep=0))
        return np.concatenate(rows)

    def _fill_embeds(self, segments: Sequence[Segment], running: Running) -> Iterator[int]:
        """Fills the embedding buffer chunk by chunk across segments; yields the number of rows filled."""
        hidden = self.package.manifest.decoder.hidden_size
        filled = 0
        for segment in segments:
            is_features = segment.ndim == 2
            if is_features and segment.shape[1] != hidden:
                raise UsageError(f"picture features are {segment.shape[1]} wide, the language model takes {hidden}")
            taken = 0
            while taken < len(segment):
                n_rows = min(len(segment) - taken, PREFILL_CHUNK_TOKENS - filled)
                part = segment[taken : taken + n_rows]
                if is_features:
                    self._embeds[0, filled : filled + n_rows] = part
                else:
                    self._ids[0, :n_rows] = part
                    self._embed_rows(n_rows, filled, running)
                taken += n_rows
                filled += n_rows
                if filled == PREFILL_CHUNK_TOKENS:
                    yield filled
                    filled = 0
        if filled:
            yield filled

    def _embed_rows(self, n_rows: int, at: int, running: Running) -> None:
        """Writes the embeddings of the first `n_rows` ids into the embedding buffer from row `at`."""
        self._embed_binding.input("input_ids", self._ids, (1, n_rows))
        rows = self._embeds if at == 0 else self._embeds[:, at : at + n_rows]
        self._embed_binding.output("inputs_embeds", rows, (1, n_rows, rows.shape[-1]))
        self._embed.run(self._embed_binding, running)

    def _decode(self, n_rows: int, positions: Int64, n_past: int, running: Running, *, keep: int) -> Float32:
        """Runs the decoder on the first `n_rows` embeddings behind `n_past` cached rows; returns (rows, vocab)."""
        binding = self._decoder_binding
        self._bind_cache()
        self._keep[()] = keep
        position_ids = self._positions if n_rows == 1 else np.empty((*positions.shape[:-1], 1, n_rows), np.int64)
        position_ids[..., 0, :] = positions
        if keep == 1:
            logits = self._last_logits
        else:
            logits = np.empty((1, n_rows, self._last_logits.shape[-1]), np.float32)
        binding.input("inputs_embeds", self._embeds, (1, n_rows, self._embeds.shape[-1]))
        binding.input("attention_mask", self._mask, (1, n_past + n_rows))
        binding.input("position_ids", position_ids, position_ids.shape)
        binding.output("logits", logits, logits.shape)
        self._decoder.run(binding, running)
        rows: Float32 = logits[0]
        return rows

    # ---- the cache

    def _bind_cache(self) -> None:
        if self._cache:
            return
        for entry in self.package.manifest.decoder.cache:
            shape = (1, *(self.capacity if axis == "P" else int(axis) for axis in entry.shape))
            array = np.zeros(shape, np.float32)
            self._decoder_binding.input(entry.past_name, array, shape)
            self._decoder_binding.output(entry.present_name, array, shape)
            self._cache.append(array)

    def truncate(self, n_tokens: int) -> None:
        """Keeps the first `n_tokens` of the cache."""
        with self._door.entered():
            if not 0 <= n_tokens <= self.n_past:
                raise UsageError(f"cannot keep {n_tokens} tokens of a cache that holds {self.n_past}")
            self.n_past = n_tokens
            self._tree = None

    def snapshot(self) -> _Snapshot:
        """Returns a copy of the rows in use."""
        with self._door.entered():
            arrays = tuple(array[self._rows(i, self.n_past)].copy() for i, array in enumerate(self._cache))
            return _Snapshot(self.n_past, arrays)

    def restore(self, snapshot: _Snapshot) -> None:
        """Puts a snapshot back."""
        if not isinstance(snapshot, _Snapshot) or snapshot.n_past > self.capacity:
            raise UsageError("restore() takes what snapshot() of a session of this package returned")
        with self._door.entered():
            self._bind_cache()
            for i, saved in enumerate(snapshot.arrays):
                self._cache[i][self._rows(i, snapshot.n_past)] = saved
            self.n_past = snapshot.n_past
            self._tree = None

    def _free_cache(self) -> None:
        self.n_past = 0
        self._tree = None
        self._decoder_binding.clear()
        self._cache.clear()
        self._decoder_binding.input("num_logits_to_keep", self._keep, ())
        return_free_memory()

    def _rows(self, entry_index: int, n_tokens: int) -> tuple[slice, ...]:
        shape = self.package.manifest.decoder.cache[entry_index].shape
        return (slice(None), *(slice(n_tokens) if axis == "P" else slice(None) for axis in shape))

    def release(self, part: Literal["vision", "kv"]) -> None:
        """Frees the tower's weights or the cache and gives the memory back; the next use brings them back."""
        start = time.perf_counter()
        if part == "vision":
            with self._tower_door.entered():
                self.tower.release()
            return
        with self._door.entered():
            self._free_cache()
        self.timings.record("release kv", start)

    def memory(self) -> MemoryReport:
        """Returns bytes of weights (on disk) and cache (capacity) that are held now."""
        loaded = ["embed_tokens", "decoder_model_merged"] + (["vision_encoder"] if self.tower.loaded else [])
        data = {path for name in loaded for path in self.package.graph_entry(name).data}
        weights = sum(entry.size_bytes for entry in self.package.manifest.files if entry.path in data)
        return MemoryReport(weights, sum(array.nbytes for array in self._cache), self.tower.loaded)

    def close(self) -> None:
        """Waits for the calls that run and frees the weights and the cache."""
        with self._tower_door.closing() as was_open:
            if was_open:
                self.tower.release()
        with self._door.closing() as was_open:
            if was_open:
                self._free_cache()
                del self._embed_binding, self._decoder_binding, self._embed, self._decoder
                return_free_memory()

    # ---- inner workings

    def _require_decoder(self) -> None:
        decoder = self.package.manifest.decoder
        inputs = {"inputs_embeds": "float", "attention_mask": "int64", "position_ids": "int64"}
        inputs["num_logits_to_keep"] = "int64"
        outputs = {"logits": "float"}
        for entry in decoder.cache:
            inputs[entry.past_name] = "float"
            outputs[entry.present_name] = "float"
        self._decoder.require(inputs, outputs)
        self._decoder.require_axis("inputs_embeds", -1, decoder.hidden_size)
        self._decoder.require_axis("logits", -1, decoder.vocab_size)
        for entry in decoder.cache:
            for axis, size in enumerate(entry.shape, start=1):
                if isinstance(size, int):
                    self._decoder.require_axis(entry.past_name, axis, size)

    def _check_room(self, n_tokens: int) -> None:
        if self.n_past + n_tokens > self.capacity:
            raise ContextFullError(
                f"the context is full: {self.n_past} tokens are held and {n_tokens} more are needed, the capacity is "
                f"{self.capacity}; load with a larger context"
            )


def check_context(package: Package, context: int | None) -> int:
    """Returns the context length to use. Raises UsageError when it is outside 1 to the model's maximum."""
    decoder = package.manifest.decoder
    if context is None:
        return decoder.default_context
    if not 1 <= context <= decoder.max_position_embeddings:
        raise UsageError(f"context is {context}, the model takes 1 to {decoder.max_position_embeddings}")
    return context
