"""Measures an exported package on easy-VQA's test split, as a user would: load, ask about a picture, read the text.

    python assets/demo/evaluate.py PACKAGE [--limit N] [--json]

Answers are free greedy generation, up to 8 tokens, compared after trimming and lower-casing; nothing restricts them to
the 13 words of the data set. Prints accuracy by category with the 95 % Wilson interval. `--limit` takes that many
questions at random (seed 0), the same ones each time.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fetch import fetch_data
from PIL import Image

import edgevlm

SHAPES = ("circle", "rectangle", "triangle")
CATEGORIES = ("yes/no", "color", "shape")
Z_95 = 1.96  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    image: int

    @property
    def category(self) -> str:
        return "yes/no" if self.answer in ("yes", "no") else "shape" if self.answer in SHAPES else "color"


@dataclass(frozen=True)
class Score:
    """Right answers of all asked, with the 95 % interval."""

    n_right: int
    n_asked: int
    accuracy: float
    low: float
    high: float


def score(results: Iterable[bool]) -> Score:
    """Source of the interval: E. B. Wilson 1927, the score interval without continuity correction."""
    outcomes = list(results)
    n_asked, n_right = len(outcomes), sum(outcomes)
    if n_asked == 0:
        return Score(0, 0, math.nan, math.nan, math.nan)
    rate, z2 = n_right / n_asked, Z_95**2
    centre = (rate + z2 / (2 * n_asked)) / (1 + z2 / n_asked)
    half = Z_95 / (1 + z2 / n_asked) * math.sqrt(rate * (1 - rate) / n_asked + z2 / (4 * n_asked**2))
    return Score(n_right, n_asked, rate, centre - half, centre + half)


def test_questions(archive: zipfile.ZipFile, limit: int | None) -> list[Question]:
    """The test split's questions, picture by picture so that a runtime may reuse an encoded picture."""
    rows = json.loads(archive.read("easy_vqa/data/test/questions.json"))
    questions = [Question(*row) for row in rows]
    if limit is not None and limit < len(questions):
        questions = random.Random(0).sample(questions, limit)
    return sorted(questions, key=lambda question: question.image)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an exported package on easy-VQA's test split.")
    parser.add_argument("package", type=Path, help="directory that 'edgevlm export' wrote")
    parser.add_argument("--limit", type=int, help="ask only this many questions, chosen at random (seed 0)")
    parser.add_argument("--cache", type=Path, help="fetch.py's cache directory (default: EDGEVLM_CACHE or XDG)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be at least 1, found {options.limit}")

    model = edgevlm.load(options.package)
    outcomes: dict[str, list[bool]] = {name: [] for name in CATEGORIES}
    started = time.monotonic()
    with zipfile.ZipFile(fetch_data(options.cache)) as archive:
        questions = test_questions(archive, options.limit)
        for number, question in enumerate(questions, start=1):
            picture = Image.open(io.BytesIO(archive.read(f"easy_vqa/data/test/images/{question.image}.png")))
            reply = model.generate(question.text, images=[picture], max_new_tokens=8, temperature=0.0)
            outcomes[question.category].append(reply.text.strip().lower() == question.answer)
            if number % 100 == 0 or number == len(questions):
                right = sum(map(sum, outcomes.values()))
                print(f"{number}/{len(questions)}: {right / number:.3f}", file=sys.stderr, flush=True)
    elapsed_s = time.monotonic() - started

    scores = {"all": score(hit for hits in outcomes.values() for hit in hits)}
    scores |= {name: score(hits) for name, hits in outcomes.items()}
    if options.json:
        rows = {name: asdict(value) for name, value in scores.items() if value.n_asked}
        print(json.dumps({"package": str(options.package), "elapsed_s": round(elapsed_s, 1), "scores": rows}))
        return
    print(f"{'category':10} {'right':>6} {'asked':>6} {'accuracy':>9}   95 % interval")
    for name, value in scores.items():
        if value.n_asked:
            counts = f"{name:10} {value.n_right:6} {value.n_asked:6} {value.accuracy:9.3f}"
            print(f"{counts}   {value.low:.3f} to {value.high:.3f}")
    print(f"{elapsed_s / len(questions):.2f} s per question")


if __name__ == "__main__":
    main()
