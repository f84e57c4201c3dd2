"""Pictures on their way to features: planned at once, encoded by one background thread, kept while memory allows.

A picture's key is its content and its tile plan, so that the same file attached twice is encoded once. The tower is
released as soon as nothing waits for it, unless `keep_tower` is set.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import Float32, Session
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.errors import ParityError
from edgevlm.image import image_key
from edgevlm.spec import ProcessorSpec
from edgevlm.tile_batches import PillowTiles, Prepare, tile_batches
from edgevlm.tiling import TilePlan, plan_tiles

DEFAULT_CACHE_BYTES = 128 << 20
"""Features kept for later questions; 128 MiB are about 37,000 tokens of width 896."""
_POLL_S = 0.05
"""How often a wait looks at the cancel flag."""

PictureKey = tuple[str, TilePlan]


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture (H, W, 3) uint8 and how it will be cut."""

    image: NDArray[np.uint8]
    plan: TilePlan
    content: str
    """sha256 of size and pixels."""

    @classmethod
    def of(cls, image: NDArray[np.uint8], spec: ProcessorSpec) -> Picture:
        """Returns the picture as `spec` plans it."""
        height_px, width_px, _ = image.shape
        return cls(image, plan_tiles(height_px, width_px, spec), image_key(image))

    def within(self, max_tiles: int, spec: ProcessorSpec) -> Picture:
        """Returns the picture planned with at most `max_tiles` tiles in its grid."""
        height_px, width_px, _ = self.image.shape
        return replace(self, plan=plan_tiles(height_px, width_px, spec, max_tiles))

    @cached_property
    def key(self) -> PictureKey:
        """Equal for equal features."""
        return (self.content, self.plan)


@dataclass(frozen=True)
class _Task:
    future: Future[Float32]
    cancelled: CancelToken


class PictureEncoder:
    """Encodes pictures one after the other beside the language model, and keeps the features."""

    def __init__(
        self,
        session: Session,
        spec: ProcessorSpec,
        tokens_per_tile: int,
        record: Callable[[str, float], None],
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        prepare: Prepare | None = None,
    ) -> None:
        """`record(name, start_s)` is told about each stage when it ends. `prepare` makes tiles; None takes Pillow."""
        self._session = session
        self._prepare = prepare or PillowTiles(spec)
        self._tokens_per_tile = tokens_per_tile
        self._record = record
        self.cache_bytes = cache_bytes
        self.keep_tower = False
        """Set by who encodes one picture after the other and would load the tower for each."""
        self._lock = threading.Lock()
        self._tasks: dict[PictureKey, _Task] = {}
        self._kept: OrderedDict[PictureKey, Float32] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edgevlm-vision")

    def start(self, picture: Picture) -> None:
        """Begins to encode `picture` unless its features are kept or on their way."""
        with self._lock:
            if picture.key not in self._kept:
                self._task(picture)

    def features(self, picture: Picture, cancelled: CancelToken) -> Float32:
        """Returns the features (C * V, D) of `picture`, encoding it or waiting for it.

        Raises Cancelled when `cancelled` is set or the encoding was cancelled; ParityError when the tower's tokens
        are not as many as the prompt's.
        """
        while True:
            with self._lock:
                kept = self._kept.get(picture.key)
                if kept is not None:
                    self._kept.move_to_end(picture.key)
                    return kept
                task = self._task(picture)
            try:
                return task.future.result(_POLL_S)
            except TimeoutError:
                cancelled.check()
            except (CancelledError, Cancelled):
                # cancelled for an earlier answer: begin again, unless this one is cancelled too
                cancelled.check()

    def cancel(self) -> None:
        """Stops what is encoded and what waits; the next use of a picture starts it again."""
        # no lock: a signal handler may interrupt the thread that holds it
        for task in tuple(self._tasks.values()):
            task.cancelled.set()
            task.future.cancel()

    def close(self) -> None:
        """Stops the thread and drops the features."""
        self.cancel()
        self._pool.shutdown(wait=True)
        self._kept.clear()

    def _task(self, picture: Picture) -> _Task:
        """Returns the task of `picture`, new if there is none. The caller holds the lock."""
        task = self._tasks.get(picture.key)
        if task is None or task.cancelled.is_set():
            cancelled = CancelToken()
            task = _Task(self._pool.submit(self._encode, picture, cancelled), cancelled)
            self._tasks[picture.key] = task
        return task

    def _encode(self, picture: Picture, cancelled: CancelToken) -> Float32:
        try:
            parts: list[Float32] = []
            for tiles in tile_batches(self._prepare, picture.image, picture.plan, self._record):
                parts.append(self._session.encode(tiles, cancelled))
            features = np.concatenate(parts)
            n_tiles, n_tokens, width = features.shape
            if n_tiles != picture.plan.n_tiles or n_tokens != self._tokens_per_tile:
                raise ParityError(
                    f"image tokens do not match: the prompt has {picture.plan.n_tiles * self._tokens_per_tile} "
                    f"placeholders, the vision graph returned {n_tiles * n_tokens} ({n_tiles} tiles x {n_tokens}); "
                    "check prompt.tokens_per_tile in edgevlm.json"
                )
            rows = features.reshape(n_tiles * n_tokens, width)
            with self._lock:
                self._keep(picture.key, rows)
            return rows
        finally:
            with self._lock:
                own = self._tasks.get(picture.key)
                if own is not None and own.cancelled is cancelled:
                    del self._tasks[picture.key]
                is_idle = all(task.cancelled.is_set() for task in self._tasks.values())
            if is_idle and not self.keep_tower:
                self._session.release("vision")

    def _keep(self, key: PictureKey, rows: Float32) -> None:
        self._kept[key] = rows
        total = sum(kept.nbytes for kept in self._kept.values())
        while total > self.cache_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            total -= dropped.nbytes
