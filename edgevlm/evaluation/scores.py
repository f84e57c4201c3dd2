"""What an answer is worth: exact match with its interval, edit similarity, and how two runs differ."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
MIN_SIMILARITY = 0.5
"""ANLS: below this an answer is another word, not a misread one (Biten et al. 2019, arXiv 1905.13648, section 5.1)."""
_EDGES = " .,;:!?\"'\u201c\u201d\u2018\u2019"
"""Space, punctuation and quotation marks, straight and curly."""


@dataclass(frozen=True)
class Score:
    """Right answers of all asked, with the 95 % interval, and the mean edit similarity."""

    n_right: int
    n_asked: int
    accuracy: float
    low: float
    high: float
    similarity: float


@dataclass(frozen=True)
class Flips:
    """One run against another on the questions that both answered."""

    against: str
    n_compared: int
    n_same_text: int
    """Answers that are equal, right or wrong."""
    n_gained: int
    """Right here, wrong there."""
    n_lost: int
    """Wrong here, right there."""
    difference: float
    """Accuracy here less there."""
    p_value: float
    """Exact McNemar test: how likely a split as uneven as gained and lost is by chance alone."""


def normalised(text: str) -> str:
    """Returns what answers are compared by: NFKC, case folded, one space between words, no punctuation at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Returns whether `text` is one of `answers`, both normalised."""
    return normalised(text) in {normalised(answer) for answer in answers}


def similarity(text: str, answers: Sequence[str]) -> float:
    """Returns ANLS: 1 less the edit distance over the longer text, the best of `answers`; 0 below MIN_SIMILARITY."""
    found = normalised(text)
    best = 0.0
    for answer in map(normalised, answers):
        longest = max(len(found), len(answer))
        best = max(best, 1.0 if longest == 0 else 1 - edit_distance(found, answer) / longest)
    return best if best >= MIN_SIMILARITY else 0.0


def edit_distance(first: str, second: str) -> int:
    """Returns the Levenshtein distance: characters inserted, deleted or replaced."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def wilson(n_right: int, n_asked: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share. Source: E. B. Wilson 1927, without continuity correction."""
    rate, z2 = n_right / n_asked, Z_95**2
    centre = (rate + z2 / (2 * n_asked)) / (1 + z2 / n_asked)
    half = Z_95 / (1 + z2 / n_asked) * math.sqrt(rate * (1 - rate) / n_asked + z2 / (4 * n_asked**2))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # rounding leaves 1e-17 at the ends


def score(outcomes: Iterable[tuple[bool, float]]) -> Score:
    """Returns the score of at least one (right, similarity)."""
    rows = list(outcomes)
    n_right = sum(right for right, _ in rows)
    low, high = wilson(n_right, len(rows))
    mean = sum(value for _, value in rows) / len(rows)
    return Score(n_right, len(rows), n_right / len(rows), low, high, mean)


def flips(against: str, here: Mapping[int, tuple[bool, str]], there: Mapping[int, tuple[bool, str]]) -> Flips:
    """Compares (right, text) by question; at least one question must be in both."""
    common = sorted(here.keys() & there.keys())
    gained = sum(here[i][0] and not there[i][0] for i in common)
    lost = sum(there[i][0] and not here[i][0] for i in common)
    same = sum(here[i][1] == there[i][1] for i in common)
    return Flips(
        against, len(common), same, gained, lost, (gained - lost) / len(common), _binomial_two_sided(gained, lost)
    )


def _binomial_two_sided(first: int, second: int) -> float:
    total = first + second
    tail: int = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    return min(1.0, float(2 * tail / 2**total))
