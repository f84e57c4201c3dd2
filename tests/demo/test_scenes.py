"""The demo's own pictures: fixed for ever, answers that the marks confirm, nothing outside the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "assets/demo"))
scenes = pytest.importorskip("scenes")
pytest.importorskip("matplotlib", reason="the pictures' fonts are matplotlib's")

N_CHECKED = 40
DIGESTS = {
    "train": "97bea7711756abcea10b9f732d6322cc20435e5682768ed5ca3720e6100b75dd",
    "validation": "866929fb0d95a9cb462cdd4d5b88d127a12536464b2e6f7f0ac90a4c4bae9f10",
    "test": "fa1cfedc376912bbc2220174f0fe6bd0adbece48d88e1059a0501606d99b616f",
}
"""SHA-256 of the first 40 pictures and questions of each split: a change of the generator is a change of the data."""


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_splits_are_fixed(split: str) -> None:
    assert scenes.digest(split, N_CHECKED) == DIGESTS[split]


def test_splits_differ_and_other_numbers_give_other_pictures() -> None:
    assert len({scenes.digest(split, 3) for split in scenes.SPLITS}) == 3
    first, second = scenes.scene("test", 0), scenes.scene("test", 1)
    assert first.image.size != second.image.size or np.any(np.asarray(first.image) != np.asarray(second.image))
    with pytest.raises(ValueError, match="the split is 'tests'"):
        scenes.scene("tests", 0)


@pytest.fixture(scope="module")
def made() -> list:
    return [scenes.scene(split, index) for split in ("train", "test") for index in range(100)]


def test_answers_are_what_the_marks_say(made: list) -> None:
    asked = set()
    for scene in made:
        shapes = [mark for mark in scene.marks if mark.color]
        for question in scene.questions:
            asked.add(question.category)
            text = question.text.lower()
            if question.category == "count":
                words = text.rstrip("?.").split()
                named = [name for name, plural in scenes.PLURALS.items() if plural in words]
                colors = [name for name in scenes.COLORS if name in words]
                counted = [m for m in shapes if (not named or m.label in named) and (not colors or m.color in colors)]
                assert question.answer == str(len(counted)), (question, shapes)
            elif question.category == "color":
                (color,) = {m.color for m in shapes if m.label in text}
                assert question.answer == color
            elif question.category == "shape":
                (shape,) = {m.label for m in shapes if f"{m.color} " in text or text.endswith(f"{m.color}?")}
                assert question.answer == shape
            elif question.category in ("word", "new word", "number"):
                written = "".join(mark.label for mark in scene.marks if not mark.color)
                assert question.answer in written
    assert asked == {"color", "shape", "count", "position", "yes/no", "sentence", "word", "new word", "number"}


def test_training_never_shows_a_held_out_word(made: list) -> None:
    unseen = set(scenes.HELD_OUT_WORDS)
    assert not unseen & set(scenes.WORDS)
    answers = [{q.answer for scene in part for q in scene.questions} for part in (made[:100], made[100:])]
    assert not answers[0] & unseen
    assert answers[1] & unseen


def test_marks_lie_inside_and_where_something_is_drawn(made: list) -> None:
    for scene in made:
        pixels = np.asarray(scene.image).astype(int)
        height, width = pixels.shape[:2]
        for mark in scene.marks:
            left, top, right, bottom = mark.box
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            patch = pixels[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            if mark.color:
                centre = pixels[int((top + bottom) / 2), int((left + right) / 2)]
                assert np.abs(centre - scenes.COLORS[mark.color]).max() <= 13, mark
            else:
                assert np.ptp(patch.reshape(-1, 3), axis=0).max() > 60, mark


def test_only_small_text_needs_tiles(made: list) -> None:
    kinds = {scene.kind for scene in made}
    assert kinds == {"objects", "words", "strip", "screenshot"}
    for scene in made:
        needs = scene.attributes["needs_tiles"]
        assert not needs if scene.kind == "objects" else needs or scene.kind == "words"
