"""The vision tower in the C engine: mapped at the first picture, released when the caller says so."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np

from edgevlm.backends.native_library import KernelTime, NativeLibrary, TowerInfo
from edgevlm.backends.session import Float32, Timings
from edgevlm.cancel import CancelToken, pointer_of
from edgevlm.errors import PackageError, UsageError


class NativeTower:
    """`vision_encoder` of one compiled package. `encode` may run on another thread than the language model.

    The engine's tower has threads of its own, so that the two do not wait for each other.
    """

    def __init__(self, library: NativeLibrary, model: ctypes.c_void_p, timings: Timings) -> None:
        self._library = library
        self._model = model
        self._timings = timings
        self._tower = ctypes.c_void_p()
        self._info = TowerInfo()
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the weights are mapped."""
        return bool(self._tower)

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S). Raises Cancelled between two operations."""
        with self._lock:
            return self._encode(tiles, cancel)

    def release(self) -> None:
        """Unmaps the weights and frees the arena; the next `encode` brings them back."""
        start = time.perf_counter()
        with self._lock:
            if not self._tower:
                return
            self._library.call("ev_tower_free", self._tower)
            self._tower.value = None
        self._timings.record("release vision", start)

    def profile(self, *, on: bool) -> None:
        """Begins to count seconds per kernel of the tower anew, or stops; maps the weights when they are not."""
        with self._lock:
            self._load()
            self._library.call("ev_tower_profile_start", self._tower, int(on))

    def kernel_times(self) -> tuple[KernelTime, ...]:
        """Returns what each kernel of the tower took since `profile(on=True)`, the slowest first."""
        with self._lock:
            self._load()
            return self._library.kernel_times("ev_tower_profile_get", self._tower)

    @property
    def info(self) -> TowerInfo:
        """What the tower takes and makes; maps the weights when they are not."""
        with self._lock:
            self._load()
        return self._info

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights that are mapped now."""
        return int(self._info.weights_bytes) if self._tower else 0

    def _encode(self, tiles: Float32, cancel: CancelToken | None) -> Float32:
        if cancel is not None:
            cancel.check()  # before the weights are mapped
        self._load()
        info = self._info
        expected = (info.n_channels, info.tile_px, info.tile_px)
        if tiles.ndim != 4 or tiles.shape[1:] != expected or not len(tiles):
            raise UsageError(f"tiles have the shape {tiles.shape}, the vision tower takes (tiles, *{expected})")
        features = np.empty((len(tiles), info.tokens_per_tile, info.hidden_size), np.float32)
        done = 0
        while done < len(tiles):
            batch = info.max_batch if len(tiles) - done >= info.max_batch else 1
            pixels = np.ascontiguousarray(tiles[done : done + batch], np.float32)
            start = time.perf_counter()
            self._library.call(
                "ev_encode", self._tower, ctypes.c_void_p(pixels.ctypes.data), batch,
                ctypes.c_void_p(features[done:].ctypes.data), pointer_of(cancel),
            )  # fmt: skip
            end = self._timings.record(f"encode {batch} tiles" if batch > 1 else "encode 1 tile", start)
            self._timings.encode_s += end - start
            self._timings.n_tiles += batch
            done += batch
        return features

    def _load(self) -> None:
        if self._tower:
            return
        start = time.perf_counter()
        self._library.call("ev_tower_new", self._model, ctypes.byref(self._tower))
        self._library.call("ev_tower_info_get", self._tower, ctypes.byref(self._info))
        if self._info.max_batch < 1:
            raise PackageError("the compiled vision tower takes no tiles; compile the package again")
        self._timings.load_s += self._timings.record("load vision", start) - start
