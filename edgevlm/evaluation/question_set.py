"""Question sets on disk: `set.json` (SetCard), `questions.jsonl` (one Question a line) and the pictures they name.

A set is data made elsewhere (assets/demo/sets.py makes three) and carries its own digest, so that two results are
compared only when they are answers to the same questions about the same pixels.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgevlm.cache import cache_directory
from edgevlm.errors import UsageError
from edgevlm.strict_json import from_json, parse_json

CARD_NAME = "set.json"
QUESTIONS_NAME = "questions.jsonl"
KNOWN_SETS = ("easy-vqa", "scenes", "captions")
"""What `assets/demo/sets.py` makes."""
T = TypeVar("T")


@dataclass(frozen=True)
class SetCard:
    """set.json."""

    name: str
    source: str
    """Where pictures and questions come from, with the version."""
    licence: str
    n_pictures: int
    n_questions: int
    sha256: str
    """Of questions.jsonl and then of every picture, in the order of their first question (`set_digest`)."""


@dataclass(frozen=True)
class Question:
    """One line of questions.jsonl."""

    image: str
    """File of the set, with forward slashes."""
    question: str
    answers: tuple[str, ...]
    """Each is right."""
    category: str
    groups: dict[str, str] = field(default_factory=dict)
    """Further divisions, each with a table of its own: {"aspect": "2:1 to 4:1"}."""


@dataclass(frozen=True)
class QuestionSet:
    """A validated set."""

    directory: Path
    card: SetCard
    questions: tuple[Question, ...]

    def picture(self, question: Question) -> Path:
        """Returns the path of the question's picture."""
        return self.directory / question.image


def sets_directory() -> Path:
    """Returns where named sets lie."""
    return cache_directory() / "sets"


def open_set(name: str) -> QuestionSet:
    """Returns the set in directory `name`, or of that name in the cache; every byte is checked against its digest.

    Raises UsageError for a set that is missing, damaged or points outside its directory.
    """
    directory = Path(name)
    if name in KNOWN_SETS or not directory.is_dir():
        directory = sets_directory() / name
        if re.fullmatch(r"[\w.-]+", name) is None or not (directory / CARD_NAME).is_file():
            raise UsageError(_missing(name, directory))
    card = _read(SetCard, directory / CARD_NAME)
    lines = _text(directory / QUESTIONS_NAME).splitlines()
    questions = tuple(
        _parse(Question, line, f"{directory / QUESTIONS_NAME}, line {number}")
        for number, line in enumerate(lines, start=1)
    )
    if not questions:
        raise UsageError(f"{directory / QUESTIONS_NAME}: the set has no questions")
    for question in questions:
        parts = PurePosixPath(question.image)
        if parts.is_absolute() or ".." in parts.parts or not {"\\", "\0"}.isdisjoint(question.image):
            raise UsageError(f"{directory}: the picture {question.image!r} lies outside the set")
        if not question.answers:
            raise UsageError(f"{directory}: the question {question.question!r} has no answer")
    found = set_digest(directory, [question.image for question in questions])
    if found != card.sha256:
        raise UsageError(
            f"{directory}: the set's digest is {found[:16]}…, {CARD_NAME} says {card.sha256[:16]}…; it is damaged or "
            "was changed, make it again"
        )
    return QuestionSet(directory, card, questions)


def set_digest(directory: Path, images: Iterable[str]) -> str:
    """Returns the digest of a set: questions.jsonl, then each picture once in the order given.

    Raises UsageError when a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in [QUESTIONS_NAME, *dict.fromkeys(images)]:
        path = directory / name
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UsageError(
                f"{path}: cannot read this file of the set ({error.strerror}); make the set again"
            ) from None
    return digest.hexdigest()


def by_picture(questions: Sequence[Question]) -> list[list[int]]:
    """Returns the indices of the questions, one list per picture, in the order of the first question."""
    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(question.image, []).append(index)
    return list(groups.values())


def choose(questions: Sequence[Question], limit: int | None, seed: int) -> list[list[int]]:
    """Returns the indices of at most `limit` questions, one list per picture, in the set's order.

    Questions are drawn at random one by one, not picture by picture, so that the intervals of few questions hold. One
    seed gives one choice, and a smaller limit a part of it.
    """
    order = list(range(len(questions)))
    if limit is not None:
        random.Random(seed).shuffle(order)
    chosen = set(order[:limit])
    groups = ([index for index in group if index in chosen] for group in by_picture(questions))
    return [group for group in groups if group]


def _missing(name: str, directory: Path) -> str:
    if name in KNOWN_SETS:
        return f"the set {name!r} is not in {directory}; make it with `python assets/demo/sets.py {name}`"
    return (
        f"{name!r} is neither a directory nor a set in {directory.parent}; expected a directory with {CARD_NAME}, or "
        f"one of: {', '.join(KNOWN_SETS)}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot read this file of the set ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: this file of the set is not UTF-8 text") from None


def _read(cls: type[T], path: Path) -> T:
    return _parse(cls, _text(path), str(path))


def _parse(cls: type[T], text: str, where: str) -> T:
    try:
        return from_json(cls, parse_json(text))
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
