"""The tables behind NFC, NFD, NFKC and NFKD, asked from `tokenizers` so that its Unicode version is ours.

Hangul is left out: its syllables follow from arithmetic.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from export.device.regex import SURROGATES

FORMS = ("nfc", "nfd", "nfkc", "nfkd")
HANGUL = range(0xAC00, 0xAC00 + 11172)
_ASSIGNED = (range(1, SURROGATES.start), range(SURROGATES.stop, 0x40000), range(0xE0000, 0xE1000))
_SEPARATOR = "\n"


@dataclass(frozen=True)
class FormTables:
    """Decomposition is complete: no entry's text decomposes further."""

    points: NDArray[np.int32]
    """Code points that decompose, ascending."""
    offsets: NDArray[np.int32]
    """Entry i decomposes to texts[offsets[i] : offsets[i + 1]]."""
    texts: NDArray[np.int32]
    marks: NDArray[np.int32]
    """Code points whose combining class is not 0, ascending."""
    mark_classes: NDArray[np.int32]
    pairs: NDArray[np.int32]
    """(n, 3): first, second, composed; sorted by first, then second. Empty for the decomposed forms."""


@lru_cache(maxsize=4)
def form_tables(form: str) -> FormTables:
    """Returns the tables of a form out of FORMS."""
    from tokenizers import normalizers

    libraries = {name: getattr(normalizers, name.upper())() for name in FORMS}
    compatible = "k" if "k" in form else ""
    decomposed = _each(libraries[f"nf{compatible}d"])
    points: list[int] = []
    offsets: list[int] = [0]
    texts: list[int] = []
    for point, text in sorted(decomposed.items()):
        if text != chr(point) and point not in HANGUL:
            points.append(point)
            texts += map(ord, text)
            offsets.append(len(texts))
    marks = _combining_classes(libraries["nfd"])
    pairs = _pairs(_each(libraries["nfd"]), libraries["nfc"]) if form in ("nfc", "nfkc") else []
    return FormTables(
        np.array(points, np.int32),
        np.array(offsets, np.int32),
        np.array(texts, np.int32),
        np.array(sorted(marks), np.int32),
        np.array([marks[point] for point in sorted(marks)], np.int32),
        np.array(sorted(pairs), np.int32).reshape(-1, 3),
    )


def _each(normalizer: object) -> dict[int, str]:
    """Returns what a normalizer makes of each character alone. A line break keeps neighbours apart."""
    result: dict[int, str] = {}
    for points in _ASSIGNED:
        text = normalizer.normalize_str(_SEPARATOR.join(map(chr, points)))  # type: ignore[attr-defined]
        single = [point for point in points if point != ord(_SEPARATOR)]
        pieces = text.split(_SEPARATOR)
        if points.start <= ord(_SEPARATOR) < points.stop:
            at = ord(_SEPARATOR) - points.start
            del pieces[at : at + 2]
        result.update(zip(single, pieces, strict=True))
    return result


def _pairs(decomposed: dict[int, str], nfc: object) -> list[tuple[int, int, int]]:
    """Primary composites: a character that NFC keeps is what its first and last parts compose to."""
    pairs = []
    for point, text in decomposed.items():
        if len(text) < 2 or point in HANGUL:
            continue
        if nfc.normalize_str(chr(point)) != chr(point):  # type: ignore[attr-defined]
            continue
        first = nfc.normalize_str(text[:-1])  # type: ignore[attr-defined]
        pairs.append((ord(first), ord(text[-1]), point))
    return pairs


def _combining_classes(nfd: object) -> dict[int, int]:
    """Returns the combining classes that are not 0, by what a character is sorted behind.

    Python's table gives the classes that exist and the value for what the library, whose Unicode version is another,
    sorts at all.
    """
    known = {point: unicodedata.combining(chr(point)) for points in _ASSIGNED for point in points}
    example: dict[int, str] = {}
    for point, value in known.items():
        if value:
            example.setdefault(value, chr(point))
    classes = sorted(example)

    def swaps(first: str, second: str) -> bool:
        return str(nfd.normalize_str(f"a{first}{second}")) == f"a{second}{first}"  # type: ignore[attr-defined]

    lowest, highest = example[classes[0]], example[classes[-1]]
    texts = {point: chr(point) for point in known if point != ord(_SEPARATOR)}
    points = list(texts)
    behind = nfd.normalize_str(_SEPARATOR.join(f"a{texts[p]}{lowest}" for p in points)).split(_SEPARATOR)  # type: ignore[attr-defined]
    before = nfd.normalize_str(_SEPARATOR.join(f"a{highest}{texts[p]}" for p in points)).split(_SEPARATOR)  # type: ignore[attr-defined]
    found = {}
    for point, after_lowest, before_highest in zip(points, behind, before, strict=True):
        char = texts[point]
        is_mark = after_lowest == f"a{lowest}{char}" or before_highest == f"a{char}{highest}"
        if is_mark:
            value = known[point]
            if not value:
                value = next((c for c in reversed(classes) if not swaps(example[c], char)), classes[0])
            found[point] = value
    return found
