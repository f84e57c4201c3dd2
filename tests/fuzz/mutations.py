"""Odd versions of a JSON file and of a text, in a fixed order.

A case is made when it is needed: ten thousand of a million characters do not fit in memory.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Make = Callable[[], bytes]
Mutant = tuple[str, Make]
"""What was done, and the bytes."""
Path = tuple[str | int, ...]

LONG = 1_000_000
_MARK = "\x01RAW\x01"
_MARK_AS_JSON = json.dumps(_MARK)
_MISSING = object()

ODD: dict[str, str] = {
    **{text: text for text in ("0", "-1", "1", "2", "7", "65536", "1000000000", "1000000000000000000", "-0.0", "0.5")},
    **{text: text for text in ("1e-320", "1e-30", "1e30", "1e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity")},
    "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000,
    "null": "null",
    "true": "true",
    "false": "false",
    "empty text": '""',
    "a word": '"word"',
    "a number in quotes": '"1"',
    "text of a million characters": '"' + "x" * LONG + '"',
    "a lone surrogate": '"\\ud800"',
    "NUL": '"a\\u0000b"',
    "a path upwards": '"../../../etc/passwd"',
    "a name in use": '"__class__"',
    "[]": "[]",
    "[null]": "[null]",
    "[[]]": "[[]]",
    "[1, 2, 3, 4, 5]": "[1, 2, 3, 4, 5]",
    "[1e999]": "[1e999]",
    '["a"]': '["a"]',
    "[{}]": "[{}]",
    "100,000 numbers": "[" + "1," * 99_999 + "1]",
    "{}": "{}",
    '{"": 0}': '{"": 0}',
    '{"content": []}': '{"content": []}',
    "900 deep": "[" * 900 + "]" * 900,
    "200 deep, objects": '{"a":' * 200 + "1" + "}" * 200,
    "100,000 deep": "[" * 100_000 + "]" * 100_000,
    "no JSON": "nul",
}
"""Name → JSON text that takes the place of a value."""


def json_mutants(tree: Any) -> Iterator[Mutant]:
    """Yields every place of `tree` with every odd value, missing, twice, and changed a little."""
    for path in places(tree):
        where = ".".join(map(str, path)) or "(all of it)"
        for name, text in [*ODD.items(), *_near(_value(tree, path))]:
            yield f"{where} = {name}", _replaced(tree, path, text)
        if path:
            yield f"{where} is missing", _replaced(tree, path, _MISSING)
            yield f"{where} twice", _twice(tree, path, None)
            for name in ("0", "null", "a word"):
                yield f"{where} twice, then {name}", _twice(tree, path, ODD[name])


def places(tree: Any) -> Iterator[Path]:
    """Yields the path of every value; of long lists and tables the first ones and the last."""
    yield ()
    if isinstance(tree, dict):
        keys = list(tree)
        children: list[tuple[str | int, Any]] = [(key, tree[key]) for key in _some(keys, 64)]
    elif isinstance(tree, list):
        children = [(index, tree[index]) for index in _some(list(range(len(tree))), 4)]
    else:
        return
    for key, child in children:
        for path in places(child):
            yield (key, *path)


def _some(items: list[Any], most: int) -> list[Any]:
    return items if len(items) <= most else [*items[:2], items[-1]]


def _value(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _near(value: Any) -> Iterator[tuple[str, str]]:
    """Yields values that are nearly right, as JSON."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int):
        for name, near in (("one more", value + 1), ("twice as much", 2 * value), ("negative", -value)):
            yield name, json.dumps(near)
    if isinstance(value, int | float):
        yield "a little more", json.dumps(value + 0.25)
        yield "the number as text", json.dumps(str(value))
        yield "the number as a float", json.dumps(float(value))
    if isinstance(value, str):
        yield "in capitals", json.dumps(value.upper())
        yield "with a NUL", json.dumps(value + "\0")
        yield "twice over", json.dumps(value + value)
    if isinstance(value, list):
        yield "one item less", json.dumps(value[:-1])
        yield "an item twice", json.dumps([*value, *value[-1:]])
        yield "backwards", json.dumps(value[::-1])
        yield "null in it", json.dumps([*value, None])
    if isinstance(value, dict):
        yield "with an unknown key", json.dumps({**value, "unknown": 1})
    yield "in a list", json.dumps([value])
    yield "in an object", json.dumps({"content": value})


def _replaced(tree: Any, path: Path, text: Any) -> Make:
    def make() -> bytes:
        if not path:
            return str(text).encode()
        changed = copy.deepcopy(tree)
        parent = _value(changed, path[:-1])
        if text is _MISSING:
            del parent[path[-1]]
        else:
            parent[path[-1]] = _MARK
        return json.dumps(changed).replace(_MARK_AS_JSON, str(text)).encode()

    return make


def _twice(tree: Any, path: Path, then: str | None) -> Make:
    """The value, and behind it another of the same name; in a list, another item."""

    def make() -> bytes:
        text = json.dumps(_value(tree, path))
        name = f"{json.dumps(path[-1])}: " if isinstance(path[-1], str) else ""
        return _replaced(tree, path, f"{text}, {name}{text if then is None else then}")()

    return make


def byte_mutants(content: bytes, count: int, seed: int) -> Iterator[Mutant]:
    """Yields `count` versions of a file with bytes changed, cut out, cut off, doubled or put in."""
    for number in range(count):
        yield f"bytes, number {number}", _damaged(content, f"{seed} {number}")


def _damaged(content: bytes, seed: str) -> Make:
    def make() -> bytes:
        rng = random.Random(seed)
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 64))
            kind = rng.randrange(6)
            if kind == 0 and data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + length]
            elif kind == 2:
                del data[at:]
            elif kind == 3:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            elif kind == 4:
                data[at:at] = rng.randbytes(length)
            else:
                data[at:at] = rng.choice(list(ODD.values())[:30]).encode()[:1000]
        return bytes(data)

    return make
