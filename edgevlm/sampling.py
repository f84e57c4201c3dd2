"""From logits to the next token id: a chain of pure functions on float32 logits, in transformers' order and semantics.

Order: repetition penalty, temperature, top-k, top-p, min-p (transformers 5.24, generation/utils.py
`_get_logits_processor`). Excluded tokens become -inf. Temperature 0 is greedy and ignores what follows the penalty.

The C engine's sampler (engine/sampler.c) returns the same token for the same logits, history and seed, on every
machine. Therefore a token's weight is a whole number, round(2^38 exp(logit - largest)), so that no sum depends on its
order; exp is a fixed sequence of float64 operations; and random numbers are SplitMix64, whose state begins at
mix(seed). A token less likely than 2^-39 of the likeliest has weight 0.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import Float32, Int64
from edgevlm.errors import BackendError, UsageError

NEGATIVE_INFINITY = np.float32(-np.inf)
MIN_TEMPERATURE = 1e-3
"""Below it float32 logits overflow before the softmax; 0 says greedy."""
WEIGHT_BITS = 38
"""Weights of 2^24 tokens, the largest vocabulary, then add up to at most 2^62."""
SMALLEST_EXPONENT = -28.0
"""exp of this is below half a unit of a weight; less counts as this."""
SEED_BITS = 64

_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
"""ln 2 in two parts; whole multiples of the first are exact."""
_ROUND_SHIFT = 1.5 * 2.0**52
_MASK = (1 << SEED_BITS) - 1


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy; 0 (or 1 for top_p and the penalty) turns a filter off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """Below 2^64. None draws a new seed for each generation."""

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
        _require(self.seed is None or 0 <= self.seed <= _MASK, "seed", self.seed, "0 to 2^64 - 1")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise UsageError(f"{name} is {value}, expected {expected}")


def apply_repetition_penalty(logits: Float32, history: Int64, penalty: float) -> Float32:
    """Returns logits where each id of `history` is divided by `penalty` when positive and multiplied when negative.

    An id counts once, however often it occurs; one without a logit stands for no text, as a picture's placeholder past
    the head does, and is left out. Source: RepetitionPenaltyLogitsProcessor.
    """
    result = logits.copy()
    history = history[(history >= 0) & (history < logits.size)]
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
    weights = token_weights(logits)
    ascending = np.sort(weights[weights > 0])
    mass = np.cumsum(ascending)
    total = int(mass[-1])
    limit = min(int((1.0 - top_p) * float(total)), total - 1)
    threshold = ascending[int(np.searchsorted(mass, limit, side="right"))]
    return np.where(weights < threshold, NEGATIVE_INFINITY, logits)


def keep_min_p(logits: Float32, min_p: float) -> Float32:
    """Returns logits with every token less likely than `min_p` times the most likely excluded (MinPLogitsWarper)."""
    return np.where(token_weights(logits) < min_p * 2.0**WEIGHT_BITS, NEGATIVE_INFINITY, logits)


def exponential(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns exp(x) for x from SMALLEST_EXPONENT to 0: x = n ln 2 + r, then Taylor's series of r up to r^13."""
    n = (x * float.fromhex("0x1.71547652b82fep+0") + _ROUND_SHIFT) - _ROUND_SHIFT
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = np.full_like(r, 1.0 / math.factorial(13))
    for power in range(12, -1, -1):
        total *= r
        total += 1.0 / math.factorial(power)
    return np.ldexp(total, n.astype(np.int32))


def token_weights(logits: Float32) -> Int64:
    """Returns the tokens' weights: whole numbers, 2^38 for the likeliest, 0 for what is excluded.

    Raises BackendError when the largest logit is not finite or one is not a number.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise BackendError(f"the largest logit is {largest}; a token can be chosen from finite numbers only")
    kept = np.flatnonzero(logits > NEGATIVE_INFINITY)
    if 4 * kept.size < logits.size:  # behind a top-k: the few that are left, alone
        few = np.zeros(logits.shape, np.int64)
        few[kept] = token_weights(logits[kept])
        return few
    below = np.subtract(logits, largest, dtype=np.float64)
    weights = exponential(np.maximum(below, SMALLEST_EXPONENT, out=below))
    weights *= 2.0**WEIGHT_BITS
    weights += 0.5
    return weights.astype(np.int64)


def draw(logits: Float32, random: RandomNumbers) -> int:
    """Returns one id by inverting the cumulative distribution at one uniform number."""
    cumulative = np.cumsum(token_weights(logits))
    place = random() * int(cumulative[-1]) >> SEED_BITS
    return int(np.searchsorted(cumulative, place, side="right"))


def mix(value: int) -> int:
    """Returns SplitMix64's scrambling of a 64-bit number (Steele, Lea, Flood, OOPSLA 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


class RandomNumbers:
    """A seeded stream of uniform 64-bit numbers: SplitMix64, begun at mix(seed)."""

    def __init__(self, seed: int) -> None:
        self._state = mix(seed)

    def __call__(self) -> int:
        """Returns the next number, 0 to 2^64 - 1."""
        self._state = self._state + 0x9E3779B97F4A7C15 & _MASK
        return mix(self._state)


class Sampler:
    """Chooses tokens with one seeded stream of random numbers; equal seeds and logits give equal tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = RandomNumbers(secrets.randbits(SEED_BITS) if params.seed is None else params.seed)

    def __call__(self, logits: Float32, history: Int64 | Sequence[int]) -> int:
        """Returns the next id. `logits` (vocab,); `history` holds every id so far, the prompt's text included."""
        params = self.params
        if params.repetition_penalty != 1.0:
            logits = apply_repetition_penalty(logits, np.asarray(history, dtype=np.int64), params.repetition_penalty)
        if params.temperature == 0.0:
            return int(logits.argmax())
        return draw(self.filter(logits), self._random)

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
