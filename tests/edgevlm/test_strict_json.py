"""JSON that readers would understand differently, and values that no field can hold, are refused by their place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from edgevlm.errors import MAX_MESSAGE_CHARS, PackageError
from edgevlm.strict_json import from_json, parse_json, to_json


@dataclass(frozen=True)
class Part:
    share: float
    count: int
    name: str
    kind: Literal[1, "a"] = 1
    names: dict[str, tuple[int, ...]] | None = None


SOUND = {"share": 0.5, "count": 3, "name": "é", "kind": "a", "names": {"x": [1, 2]}}


def test_a_sound_value_comes_back_as_it_was() -> None:
    part = from_json(Part, parse_json(json.dumps(SOUND)))
    assert part == Part(0.5, 3, "é", "a", {"x": (1, 2)}) and to_json(part) == SOUND
    assert from_json(Part, {**SOUND, "share": 2}).share == 2.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('{"b": {"a": 1, "a": 2}}', "'a' stands twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "1e999 is too large"),
        ("1" * 5000, "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b'"\xff"', "no UTF-8 text at byte 1"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_texts_that_are_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"share": 10**400}, "share: expected a finite number, found a huge integer"),
        ({"share": float("inf")}, "share: expected a finite number, found inf"),
        ({"share": float("nan")}, "share: expected a finite number, found nan"),
        ({"share": True}, "share: expected float, found bool"),
        ({"count": 1 << 64}, "count: expected an integer of at most 64 bits"),
        ({"count": 3.0}, "count: expected int, found float"),
        ({"count": True}, "count: expected an integer, found a boolean"),
        ({"name": "a\ud800"}, "name: the text has a lone surrogate"),
        ({"kind": True}, "kind: True is not one of 1, 'a'"),
        ({"kind": 1.0}, "kind: 1.0 is not one of 1, 'a'"),
        ({"kind": [1]}, r"kind: \[1\] is not one of"),
        ({"names": {"x": [1, None]}}, r"names.x\[1\]: expected int"),
    ],
)
def test_values_that_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_json(Part, {**SOUND, **fields})


def test_the_largest_seed_is_an_integer() -> None:
    assert from_json(Part, {**SOUND, "count": (1 << 64) - 1}).count == (1 << 64) - 1


def test_a_message_keeps_its_beginning_and_end() -> None:
    assert str(PackageError("x" * MAX_MESSAGE_CHARS)) == "x" * MAX_MESSAGE_CHARS
    text = str(PackageError(f"name {'x' * 1_000_000}: expected a number; export again"))
    assert text.startswith("name xxx") and text.endswith(": expected a number; export again")
    assert len(text) < MAX_MESSAGE_CHARS + 50
