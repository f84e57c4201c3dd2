"""The Session protocol: what every backend (onnxruntime, native, NPU) gives to the generation loop. It owns the KV."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

Segment = Int64 | Float32
"""A piece of the prompt: token ids (T,) int64, or picture features (T, D) float32."""

PREFILL_CHUNK_TOKENS = 128
TILE_BATCHES = (4, 1)
MAX_EVENTS = 100_000
"""Events that a trace holds at most, so that a long-lived process does not grow."""


class Cancelled(Exception):
    """Raised by a running call after `cancel()`; the loop turns it into finish_reason 'cancelled'."""


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


class Session(Protocol):
    """One conversation's state on one backend. Not thread-safe, except `cancel` and `encode` beside the LM calls."""

    capacity: int
    """Context length in tokens."""
    timings: Timings

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""

    def encode(self, tiles: Float32) -> Float32:
        """Returns image features (C, V, D) of `tiles` (C, 3, S, S), in batches of 4 then 1.

        Loads the tower where it has been released.
        """

    def prefill(self, segments: Sequence[Segment], positions: Int64) -> Float32:
        """Appends the segments (T tokens in all) in chunks of 128; returns the last row's logits (vocab,)."""

    def step(self, token: int, position: int) -> Float32:
        """Appends one token; returns its logits (vocab,)."""

    def score(self, ids: Int64, parents: Int64, positions: Int64) -> Float32:
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

    def cancel(self) -> None:
        """Makes the running call raise Cancelled at the next tile batch, chunk or token. Safe from any thread."""

    def memory(self) -> MemoryReport:
        """Returns what is held now."""
