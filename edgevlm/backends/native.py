"""The native backend: libedgevlm on a package compiled for this architecture.

The language model runs in the C engine, and the vision tower too when the package was compiled with it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgevlm.backends.draft_tree import check_tree
from edgevlm.backends.native_library import (
    KernelTime,
    Limits,
    ModelInfo,
    ModelOptions,
    NativeLibrary,
    host_arch,
    library_path,
)
from edgevlm.backends.native_library import Segment as NativeSegment
from edgevlm.backends.native_picture import SCHEMES, NativeTiles
from edgevlm.backends.native_tower import NativeTower
from edgevlm.backends.onnx_tower import OnnxTower
from edgevlm.backends.session import Door, Float32, Int64, MemoryReport, Segment, Timings
from edgevlm.cancel import CancelToken, pointer_of
from edgevlm.errors import BackendError, ContextFullError, UsageError
from edgevlm.machine_cpus import threads_to_use
from edgevlm.package import Package
from edgevlm.spec import ProcessorSpec


@dataclass(frozen=True)
class MachineLimits:
    """Integer dot products on registers alone, and reading memory that no cache holds."""

    giga_operations_per_s: float
    giga_bytes_per_s: float


class NativeSession:
    """Session protocol on the C engine; see edgevlm.backends.session for what each method promises."""

    def __init__(
        self,
        package: Package,
        *,
        context: int,
        threads: int | None = None,
        variant: str | None = None,
        kv_bits: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Maps the compiled weights and makes the cache.

        variant: forces a CPU variant by name. kv_bits: per layer the bits of keys and values, 4 or 8
        each, or 16 (float) of both.
        Raises BackendError when the library or its CPU features are missing, PackageError for a damaged plan.
        """
        start = time.perf_counter()
        self.package = package
        self.timings = Timings()
        self.n_threads = threads_to_use(threads)
        self.capacity = context
        self.reuse_step = 1
        self._door, self._tower_door = Door("session"), Door("session")
        self._library = NativeLibrary(library_path())
        self._model = ctypes.c_void_p()
        self._context = ctypes.c_void_p()
        options = ModelOptions(self.n_threads, variant.encode() if variant else None)
        compiled = package.compiled(host_arch())
        if compiled is None:
            raise BackendError(
                f"{package.path}: the package is not compiled for {host_arch()}; run `edgevlm compile {package.path}`"
            )
        directory = package.file(compiled.plan).parent
        self._library.call("ev_model_open", str(directory).encode(), ctypes.byref(options), ctypes.byref(self._model))
        info = ModelInfo()
        self._library.call("ev_model_info_get", self._model, ctypes.byref(info))
        self.variant = (info.variant or b"").decode()
        self._weights_bytes = int(info.weights_bytes)
        self._n_layers, self._vocab_size, self._hidden_size = info.n_layers, info.vocab_size, info.hidden_size
        self._kv_table = None if kv_bits is None else np.array(kv_bits, np.uint8).reshape(-1)
        if self._kv_table is not None and self._kv_table.size != 2 * self._n_layers:
            raise UsageError(f"kv_bits has {self._kv_table.size // 2} layers, the model has {self._n_layers}")
        self.tower: NativeTower | OnnxTower = (
            OnnxTower(package, self.n_threads, self.timings)
            if compiled.vision is None
            else NativeTower(self._library, self._model, self.timings)
        )
        self._open_context()
        self.timings.load_s += self.timings.record("load language", start) - start

    def tile_preparer(self, spec: ProcessorSpec) -> NativeTiles | None:
        """What prepares a picture's tiles in the engine, or None for a tiling that it does not know."""
        return NativeTiles(self._library, spec) if spec.scheme in SCHEMES else None

    @property
    def n_past(self) -> int:
        """Tokens in the cache; none after `close`."""
        if self._door.is_closed:
            return 0
        with self._door.entered():
            return self._n_past()

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S)."""
        with self._tower_door.entered():
            return self.tower.encode(tiles, cancel)

    def prefill(
        self, segments: Sequence[Segment], positions: Int64, cancel: CancelToken | None = None
    ) -> Float32:
        """Appends the segments in chunks of 128; returns the last row's logits (vocab,)."""
        with self._door.entered():
            return self._prefill(segments, positions, cancel)

    def _prefill(self, segments: Sequence[Segment], positions: Int64, cancel: CancelToken | None) -> Float32:
        n_tokens = sum(len(segment) for segment in segments)
        if n_tokens == 0:
            raise UsageError("nothing to prefill: the prompt has no new token")
        self._check_room(n_tokens)
        start = time.perf_counter()
        arrays = [self._segment_array(segment) for segment in segments]
        table = (NativeSegment * len(arrays))()
        for entry, array in zip(table, arrays, strict=True):
            entry.n = len(array)
            if array.ndim == 2:
                entry.features = array.ctypes.data
            else:
                entry.ids = array.ctypes.data
        logits = np.empty(self._vocab_size, np.float32)
        rows = np.ascontiguousarray(positions, np.int32)
        self._library.call(
            "ev_prefill", self._open_context(), table, len(arrays), ctypes.c_void_p(rows.ctypes.data),
            ctypes.c_void_p(logits.ctypes.data), pointer_of(cancel),
        )  # fmt: skip
        end = self.timings.record(f"prefill {n_tokens} tokens", start)
        self.timings.prefill_s += end - start
        self.timings.n_prefill_tokens += n_tokens
        return logits

    def step(self, token: int, position: int, cancel: CancelToken | None = None) -> Float32:
        """Appends one token; returns its logits (vocab,)."""
        start = time.perf_counter()
        logits = np.empty(self._vocab_size, np.float32)
        with self._door.entered():
            self._check_room(1)
            self._library.call(
                "ev_step", self._open_context(), token, position, ctypes.c_void_p(logits.ctypes.data),
                pointer_of(cancel),
            )  # fmt: skip
        end = self.timings.record("decode", start)
        self.timings.decode_s += end - start
        self.timings.n_decode_tokens += 1
        return logits

    def score(self, ids: Int64, parents: Int64, positions: Int64, cancel: CancelToken | None = None) -> Float32:
        """Returns logits (T, vocab) of a drafted tree of at most 16 tokens without committing it.

        Each token sees the committed ones and its own ancestors. Raises UsageError for more tokens, or for parents that
        do not come before their children.
        """
        check_tree(ids, parents, positions)
        n_nodes = len(ids)
        logits = np.empty((n_nodes, self._vocab_size), np.float32)
        tokens, above, places = (np.ascontiguousarray(array, np.int32) for array in (ids, parents, positions))
        with self._door.entered():
            self._check_room(n_nodes)
            self._library.call(
                "ev_score_tree", self._open_context(), ctypes.c_void_p(tokens.ctypes.data),
                ctypes.c_void_p(above.ctypes.data), n_nodes, ctypes.c_void_p(places.ctypes.data),
                ctypes.c_void_p(logits.ctypes.data), pointer_of(cancel),
            )  # fmt: skip
        return logits

    def accept(self, nodes: Int64) -> None:
        """Commits a root-to-node path of the tree last scored: its keys and values stay, the others are forgotten."""
        path = np.ascontiguousarray(nodes, np.int32)
        with self._door.entered():
            self._library.call("ev_accept", self._open_context(), ctypes.c_void_p(path.ctypes.data), len(path))

    def truncate(self, n_tokens: int) -> None:
        """Keeps the first `n_tokens` of the cache."""
        with self._door.entered():
            if self._context or n_tokens != 0:  # a cache that was released has nothing to forget
                self._library.call("ev_truncate", self._open_context(), n_tokens)

    def snapshot(self) -> bytes:
        """Returns a copy of the rows in use."""
        with self._door.entered():
            size = int(self._library.call("ev_snapshot_bytes", self._open_context()))
            buffer = ctypes.create_string_buffer(size)
            self._library.call("ev_snapshot", self._open_context(), buffer, size)
        return buffer.raw

    def restore(self, snapshot: bytes) -> None:
        """Puts a snapshot back."""
        if not isinstance(snapshot, bytes):
            raise UsageError("restore() takes what snapshot() of a session of this package returned")
        with self._door.entered():
            self._library.call("ev_restore", self._open_context(), snapshot, len(snapshot))

    def release(self, part: Literal["vision", "kv"]) -> None:
        """Frees the tower's weights or the cache; the next use brings them back."""
        if part == "vision":
            with self._tower_door.entered():
                self.tower.release()
            return
        with self._door.entered():
            self._free_context()

    def profile(self, *, on: bool) -> None:
        """Begins to count seconds per kernel of the language model anew, or stops."""
        with self._door.entered():
            self._library.call("ev_profile_start", self._open_context(), int(on))

    def kernel_times(self) -> tuple[KernelTime, ...]:
        """Returns what each kernel of the language model took since `profile(on=True)`, the slowest first."""
        with self._door.entered():
            return self._library.kernel_times("ev_profile_get", self._open_context())

    def machine_limits(self) -> MachineLimits:
        """Measures what this machine can do with the session's threads; takes about a second."""
        limits = Limits()
        with self._door.entered():
            self._library.call("ev_model_limits", self._model, ctypes.byref(limits))
        return MachineLimits(limits.giga_operations_per_s, limits.giga_bytes_per_s)

    def memory(self) -> MemoryReport:
        """Returns bytes that are mapped or allocated now."""
        with self._door.entered():
            kv_bytes = int(self._library.call("ev_context_bytes", self._context)) if self._context else 0
        vision_bytes = self.tower.weights_bytes if isinstance(self.tower, NativeTower) else 0
        return MemoryReport(self._weights_bytes + vision_bytes, kv_bytes, self.tower.loaded)

    def close(self) -> None:
        """Waits for the calls that run, frees the cache and unmaps the weights."""
        with self._tower_door.closing() as was_open:
            tower: NativeTower | OnnxTower | None = getattr(self, "tower", None)
            if was_open and tower is not None:
                tower.release()
        with self._door.closing() as was_open:
            if was_open:
                self._free_context()
                if self._model:
                    self._library.call("ev_model_close", self._model)
                    self._model.value = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    # ---- inner workings

    def _open_context(self) -> ctypes.c_void_p:
        """Returns the cache, made anew when it was released."""
        if not self._context:
            table = None if self._kv_table is None else ctypes.c_void_p(self._kv_table.ctypes.data)
            self._library.call("ev_context_new", self._model, self.capacity, table, ctypes.byref(self._context))
        return self._context

    def _free_context(self) -> None:
        if self._context:
            self._library.call("ev_context_free", self._context)
            self._context.value = None

    def _n_past(self) -> int:
        return int(self._library.call("ev_n_past", self._context)) if self._context else 0

    def _segment_array(self, segment: Segment) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        if segment.ndim == 1:
            return np.ascontiguousarray(segment, np.int32)
        if segment.shape[1] != self._hidden_size:
            raise UsageError(
                f"picture features are {segment.shape[1]} wide, the language model takes {self._hidden_size}"
            )
        return np.ascontiguousarray(segment, np.float32)

    def _check_room(self, n_tokens: int) -> None:
        if self._n_past() + n_tokens > self.capacity:
            raise ContextFullError(
                f"the context is full: {self._n_past()} tokens are held and {n_tokens} more are needed, the capacity "
                f"is {self.capacity}; load with a larger context"
            )
