"""The Session protocol: what every backend (onnxruntime, native, NPU) gives to the generation loop. It owns the KV."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancel import CancelToken
from edgevlm.errors import UsageError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

Segment = Int64 | Float32
"""A piece of the prompt: token ids (T,) int64, or picture features (T, D) float32."""

PREFILL_CHUNK_TOKENS = 128
TILE_BATCHES = (4, 1)
MAX_EVENTS = 100_000
"""Events that a trace holds at most, so that a long-lived process does not grow."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes, measured where the backend can and computed where it cannot."""

    weights_bytes: int
    kv_bytes: int
    vision_loaded: bool


@dataclass
class Timings:
    """Seconds and counts per stage since the session was made."""

    load_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    n_tiles: int = 0
    n_prefill_tokens: int = 0
    n_decode_tokens: int = 0
    events: list[tuple[str, float, float]] = field(default_factory=list)
    """(name, start_s, end_s) on the time.perf_counter clock, for traces."""

    def record(self, name: str, start_s: float) -> float:
        """Adds an event that began at `start_s` and ends now; returns now. A long trace loses its older half."""
        end_s = time.perf_counter()
        self.events.append((name, start_s, end_s))
        if len(self.events) > MAX_EVENTS:
            del self.events[: MAX_EVENTS // 2]
        return end_s


class Door:
    """Lets one call at a time into a session, and none once it is closed."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()
        self.is_closed = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Waits for the call that is inside. Raises UsageError after `close`."""
        with self._lock:
            if self.is_closed:
                raise UsageError(f"the {self._what} is closed; load the package again")
            yield

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Waits for the call that is inside and shuts the door; the block is told whether it was open."""
        with self._lock:
            was_open, self.is_closed = not self.is_closed, True
            yield was_open


class Session(Protocol):
    """One conversation's state on one backend.

    `encode` may run beside another call; of the other calls one waits for the other. A call that is given a
    CancelToken raises Cancelled soon after that is set, at the latest at the next tile batch, chunk or token, and
    leaves the cache with the whole chunks that were done. After `close` every call but `close` raises UsageError.
    """

    capacity: int
    """Context length in tokens."""
    reuse_step: int
    """Which rows of the cache may stand for a computation from nothing: 1 where a row has the same bits however the
    tokens were split into calls; else rows that `prefill` computed in whole chunks of this many, counted from the
    cache's beginning, since the backend adds up in another order for other numbers of rows."""
    timings: Timings

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S), in batches of 4 then 1.

        Loads the tower where it has been released.
        """

    def prefill(
        self, segments: Sequence[Segment], positions: Int64, cancel: CancelToken | None = None
    ) -> Float32:
        """Appends the segments (T tokens in all) in chunks of 128; returns the last row's logits (vocab,)."""

    def step(self, token: int, position: int, cancel: CancelToken | None = None) -> Float32:
        """Appends one token; returns its logits (vocab,)."""

    def score(self, ids: Int64, parents: Int64, positions: Int64, cancel: CancelToken | None = None) -> Float32:
        """Returns logits (T, vocab) of a drafted tree without committing it.

        `parents[i]` is the index of node i's parent in `ids`, -1 for the last committed token.
        """

    def accept(self, nodes: Int64) -> None:
        """Commits a root-to-node path of the tree last scored."""

    def truncate(self, n_tokens: int) -> None:
        """Keeps the first `n_tokens` of the cache."""

    def snapshot(self) -> Any:
        """Returns an opaque copy of the cache."""

    def restore(self, snapshot: Any) -> None:
        """Puts a snapshot back."""

    def release(self, part: Literal["vision", "kv"]) -> None:
        """Frees the vision weights or the cache; the next use brings them back."""

    def memory(self) -> MemoryReport:
        """Returns what is held now."""

    def close(self) -> None:
        """Waits for the call that runs and frees everything; closing twice is closing once."""
