"""Writes small question sets for tests: random pictures of given sizes, questions as given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.evaluation.question_set import CARD_NAME, QUESTIONS_NAME, Question, SetCard, set_digest
from edgevlm.strict_json import to_json

SIZES = {"wide.png": (150, 60), "small.png": (20, 20)}
"""Width and height: with tiles of 28 px, several tiles and one."""


def write_set(directory: Path, questions: Sequence[Question]) -> Path:
    """Writes a set of `questions`, whose pictures are keys of SIZES; returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(directory / name, compress_level=0)  # the same bytes with any zlib
    lines = [json.dumps(to_json(question)) + "\n" for question in questions]
    (directory / QUESTIONS_NAME).write_text("".join(lines))
    images = [question.image for question in questions]
    card = SetCard("small", "tests", "CC0-1.0", len(set(images)), len(questions), set_digest(directory, images))
    (directory / CARD_NAME).write_text(json.dumps(to_json(card)))
    return directory


def questions(n: int = 6, answer: str = "yes") -> list[Question]:
    """Questions that take turns between the pictures and two categories; long, so that a prompt has several chunks."""
    names = list(SIZES)
    return [
        Question(
            names[i % 2], f"{'Look closely at everything. ' * 4}What is number {i}?", (answer,), f"kind {i % 3}",
            {"size": names[i % 2].removesuffix(".png")},
        )
        for i in range(n)
    ]  # fmt: skip
