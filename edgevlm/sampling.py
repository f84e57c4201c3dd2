"""From logits to the next token id: a chain of pure functions on float32 logits, in transformers' order and semantics.

Order: repetition penalty, temperature, top-k, top-p, min-p (transformers 5.24, generation/utils.py
`_get_logits_processor`). Excluded tokens become -inf. Temperature 0 is greedy and ignores what follows the penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import Float32, Int64
from edgevlm.errors import UsageError

NEGATIVE_INFINITY = np.float32(-np.inf)
MIN_TEMPERATURE = 1e-3
"""Below it float32 logits overflow before the softmax; 0 says greedy."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy; 0 (or 1 for top_p and the penalty) turns a filter off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """None draws a new seed for each generation."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        temperature = self.temperature
        is_usable = temperature == 0 or (math.isfinite(temperature) and temperature >= MIN_TEMPERATURE)
        _require(is_usable, "temperature", temperature, f"0 (greedy) or at least {MIN_TEMPERATURE}")
        _require(self.top_k >= 0, "top_k", self.top_k, ">= 0 (0 turns it off)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        penalty = self.repetition_penalty
        _require(math.isfinite(penalty) and penalty > 0, "repetition_penalty", penalty, "> 0")
        _require(self.seed is None or self.seed >= 0, "seed", self.seed, ">= 0")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise UsageError(f"{name} is {value}, expected {expected}")


def apply_repetition_penalty(logits: Float32, history: Int64, penalty: float) -> Float32:
    """Returns logits where each id of `history` is divided by `penalty` when positive and multiplied when negative.

    An id counts once, however often it occurs. Source: RepetitionPenaltyLogitsProcessor.
    """
    result = logits.copy()
    seen = logits[history]
    factor = np.float32(penalty)
    result[history] = np.where(seen < 0, seen * factor, seen / factor)
    return result


def apply_temperature(logits: Float32, temperature: float) -> Float32:
    """Returns logits / temperature."""
    return logits / np.float32(temperature)


def keep_top_k(logits: Float32, k: int) -> Float32:
    """Returns logits with all but the `k` largest excluded; ties with the k-th stay, as in TopKLogitsWarper."""
    if k >= logits.size:
        return logits
    kth = np.partition(logits, logits.size - k)[logits.size - k]
    return np.where(logits < kth, NEGATIVE_INFINITY, logits)


def keep_top_p(logits: Float32, top_p: float) -> Float32:
    """Returns logits with the least likely tail of mass <= 1 - top_p excluded; the most likely always stays.

    Source: TopPLogitsWarper. Tokens equal to the last one kept stay too: which of several equal ones transformers
    keeps depends on its sort.
    """
    ascending = np.sort(logits)
    mass = np.cumsum(softmax(ascending))
    n_removed = int(np.searchsorted(mass, 1.0 - top_p, side="right"))
    threshold = ascending[min(n_removed, logits.size - 1)]
    return np.where(logits < threshold, NEGATIVE_INFINITY, logits)


def keep_min_p(logits: Float32, min_p: float) -> Float32:
    """Returns logits with every token less likely than `min_p` times the most likely excluded (MinPLogitsWarper)."""
    probabilities = softmax(logits)
    return np.where(probabilities < min_p * probabilities.max(), NEGATIVE_INFINITY, logits)


def softmax(logits: Float32) -> NDArray[np.float64]:
    """Returns probabilities in float64, so that sums over a vocabulary do not depend on its order."""
    weights = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
    total: np.float64 = weights.sum()
    return np.divide(weights, total)


def draw(logits: Float32, generator: np.random.Generator) -> int:
    """Returns one id by inverting the cumulative distribution at one uniform number."""
    candidates = np.flatnonzero(logits > NEGATIVE_INFINITY)
    cumulative = np.cumsum(softmax(logits[candidates]))
    index = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    return int(candidates[min(index, candidates.size - 1)])


class Sampler:
    """Chooses tokens with one seeded stream of random numbers; equal seeds and logits give equal tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._generator = np.random.default_rng(params.seed)

    def __call__(self, logits: Float32, history: Int64 | Sequence[int]) -> int:
        """Returns the next id. `logits` (vocab,); `history` holds every id so far, the prompt included."""
        params = self.params
        if params.repetition_penalty != 1.0:
            logits = apply_repetition_penalty(logits, np.asarray(history, dtype=np.int64), params.repetition_penalty)
        if params.temperature == 0.0:
            return int(logits.argmax())
        return draw(self.filter(logits), self._generator)

    def filter(self, logits: Float32) -> Float32:
        """Returns logits after temperature, top-k, top-p and min-p."""
        params = self.params
        if params.temperature != 1.0:
            logits = apply_temperature(logits, params.temperature)
        if params.top_k > 0:
            logits = keep_top_k(logits, params.top_k)
        if params.top_p < 1.0:
            logits = keep_top_p(logits, params.top_p)
        if params.min_p > 0.0:
            logits = keep_min_p(logits, params.min_p)
        return logits
