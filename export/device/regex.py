"""Regular expressions of pre-tokenizers as tables: a phone walks them and needs no regular expression engine.

`compile_regex` reads the subset that tokenizers are written in and returns a deterministic automaton with the
semantics of a backtracking engine: at a position the first alternative that matches wins, quantifiers are greedy. Which
characters `\\p{L}` or `(?i:s)` mean is asked from `tokenizers` itself, character by character, so that its Unicode
version is ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError

N_CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
MATCH = 0x8000
"""Set in a table entry: what was read before this character is a match."""
DEAD = 0
MAX_STATES = 4096
MAX_REPEAT = 256

Bools = NDArray[np.bool_]
_CLASS_ESCAPES = "sSdDwWhHpP"
_CONTROL_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


@dataclass(frozen=True)
class Automaton:
    """State 0 is dead, state 1 the start. Class `n_classes - 1` is the end of the text."""

    starts: NDArray[np.int32]
    """First code point of each run of characters of one class, ascending, the first is 0."""
    classes: NDArray[np.int32]
    """The class of each run."""
    table: NDArray[np.uint16]
    """(states, classes): the next state, with MATCH."""

    def class_of(self, text: str) -> list[int]:
        """Returns the class of each character and, last, that of the end."""
        points = np.fromiter(map(ord, text), np.int32, len(text))
        found = self.classes[np.searchsorted(self.starts, points, side="right") - 1]
        return [*found.tolist(), self.table.shape[1] - 1]

    def find(self, text: str) -> list[tuple[int, int]]:
        """Returns [start, end) of the matches from left to right, as a search for all would."""
        classes, found, at = self.class_of(text), [], 0
        while at < len(text):
            state, here, end = 1, at, -1
            while state != DEAD:
                entry = int(self.table[state, classes[here]])
                if entry & MATCH:
                    end = here
                state, here = entry & ~MATCH, here + 1
            if end > at:
                found.append((at, end))
                at = end
            else:
                at += 1
        return found


@dataclass(frozen=True)
class _Node:
    """One state of the nondeterministic automaton."""

    kind: str
    """'char', 'look', 'split' or 'match'."""
    label: int = -1
    """Which set of characters ('char', 'look')."""
    negated: bool = False
    """'look': the next character must not be in the set; the end of the text is in no set."""
    targets: tuple[int, ...] = ()
    """Where to go, the preferred one first."""


def compile_regex(pattern: str) -> Automaton:
    """Returns the automaton of `pattern`. Raises UnsupportedModelError naming what it uses outside the subset."""
    builder = _Parser(pattern)
    start = builder.whole()
    return _determinise(builder.nodes, start, [_members(label) for label in builder.labels], pattern)


def isolated_set(name: str) -> Automaton:
    """Returns the automaton of the characters that the pre-tokenizer `name` ('Digits' or 'Punctuation') isolates."""
    return _determinise([_Node("match"), _Node("char", 0, targets=(0,))], 1, [_isolated(name)], name)


def literal(text: str) -> str:
    """Returns a pattern that matches `text` itself."""
    return "".join(rf"\x{{{ord(char):x}}}" for char in text)


# ---- parsing: recursive descent; every piece is built in front of what follows it


class _Parser:
    """Builds nodes from the end of the pattern: a piece is parsed to a tree, then `_emit` puts it before `follow`."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.nodes: list[_Node] = []
        self.labels: list[str] = []

    def whole(self) -> int:
        """Parses everything and returns the start node."""
        tree = self._alternatives(False)
        if self.at != len(self.pattern):
            raise self._refused("an unmatched ')'")
        return self._emit(tree, self._add(_Node("match")))

    def _refused(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the pre-tokenizer's pattern {self.pattern!r} uses {what} at character {self.at}, which the device "
            "tokenizer does not know"
        )

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def _alternatives(self, ignore_case: bool) -> tuple[object, ...]:
        found = [self._sequence(ignore_case)]
        while self._take("|"):
            found.append(self._sequence(ignore_case))
        return ("any", *found)

    def _sequence(self, ignore_case: bool) -> tuple[object, ...]:
        found: list[object] = []
        while self._peek() not in ("", "|", ")"):
            found.append(self._quantified(ignore_case))
        return ("all", *found)

    def _quantified(self, ignore_case: bool) -> tuple[object, ...]:
        piece = self._piece(ignore_case)
        while True:
            counts = self._counts()
            if counts is None:
                return piece
            if piece[0] == "look":
                raise self._refused("a quantifier after a look-ahead")
            greedy = not self._take("?")
            if self._peek() == "+":
                raise self._refused("a possessive quantifier")
            piece = ("repeat", piece, *counts, greedy)

    def _counts(self) -> tuple[int, int | None] | None:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        match = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.pattern, self.at)
        if match is None or not (match[1] or match[3]):
            return None
        self.at = match.end()
        low = int(match[1] or 0)
        high = (int(match[3]) if match[3] else None) if match[2] else low
        if max(low, high or 0) > MAX_REPEAT:
            raise self._refused(f"a repetition above {MAX_REPEAT}")
        return low, high

    def _piece(self, ignore_case: bool) -> tuple[object, ...]:
        if self._take("(?:") or (
            self._peek() == "(" and not self.pattern.startswith("(?", self.at) and self._take("(")
        ):
            return self._group(ignore_case)
        if self._take("(?i:"):
            return self._group(True)
        for opening, negated in (("(?!", True), ("(?=", False)):
            if self._take(opening):
                label = self._set(ignore_case)
                if not self._take(")"):
                    raise self._refused("a look-ahead of more than one character")
                return ("look", label, negated)
        if self._peek() in ("(", "^", "$", "*", "+", "?", "{"):
            raise self._refused(f"{self.pattern[self.at : self.at + 4]!r}")
        return ("char", self._set(ignore_case))

    def _group(self, ignore_case: bool) -> tuple[object, ...]:
        inner = self._alternatives(ignore_case)
        if not self._take(")"):
            raise self._refused("an unclosed group")
        return inner

    def _set(self, ignore_case: bool) -> str:
        """Returns the source of the one-character set at the cursor."""
        start = self.at
        if self._take("["):
            depth = 1
            while depth:
                char = self._peek()
                if not char:
                    raise self._refused("an unclosed character class")
                self.at += 2 if char == "\\" else 1
                depth += {"[": 1, "]": -1}.get(char, 0)
        elif self._take("\\"):
            self._escape()
        else:
            self.at += 1
        source = self.pattern[start : self.at]
        return f"(?i:{source})" if ignore_case else source

    def _escape(self) -> None:
        char = self._peek()
        self.at += 1
        if char in ("p", "P", "x") and self._peek() == "{":
            end = self.pattern.find("}", self.at)
            if end < 0:
                raise self._refused("an unclosed escape")
            self.at = end + 1
        elif char == "x" or char == "u":
            self.at += 2 if char == "x" else 4
        elif char.isalnum() and char not in _CLASS_ESCAPES and char not in _CONTROL_ESCAPES:
            raise self._refused(rf"\{char}")

    # ---- trees to nodes

    def _add(self, node: _Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _label(self, source: object) -> int:
        text = str(source)
        if text not in self.labels:
            self.labels.append(text)
        return self.labels.index(text)

    def _emit(self, tree: object, follow: int) -> int:
        """Adds the nodes of `tree` and returns the one where it begins; `follow` comes after it."""
        assert isinstance(tree, tuple)
        kind = tree[0]
        if kind == "char":
            return self._add(_Node("char", self._label(tree[1]), targets=(follow,)))
        if kind == "look":
            return self._add(_Node("look", self._label(tree[1]), bool(tree[2]), (follow,)))
        if kind == "all":
            for part in reversed(tree[1:]):
                follow = self._emit(part, follow)
            return follow
        if kind == "any":
            starts = tuple(self._emit(part, follow) for part in tree[1:])
            return starts[0] if len(starts) == 1 else self._add(_Node("split", targets=starts))
        _, part, low, high, greedy = tree
        return self._repeat(part, low, high, bool(greedy), follow)

    def _repeat(self, part: object, low: int, high: int | None, greedy: bool, follow: int) -> int:
        def choice(more: int) -> tuple[int, ...]:
            return (more, follow) if greedy else (follow, more)

        if high is None:
            loop = self._add(_Node("split"))
            self.nodes[loop] = _Node("split", targets=choice(self._emit(part, loop)))
            start = loop
        else:
            start = follow
            for _ in range(high - low):
                start = self._add(_Node("split", targets=choice(self._emit(part, start))))
        for _ in range(low):
            start = self._emit(part, start)
        return start


# ---- character sets


@lru_cache(maxsize=256)
def _members(source: str) -> Bools:
    """Returns for every code point whether the one-character pattern `source` matches it."""
    from tokenizers import Regex, pre_tokenizers

    if len(source) == 1 and source != ".":
        only = np.zeros(N_CODE_POINTS, np.bool_)
        only[ord(source)] = True
        return only
    try:
        split = pre_tokenizers.Split(Regex(f"(?:{source})+"), "removed")
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedModelError(f"the pattern {source!r} is no regular expression ({error})") from error
    members = np.ones(N_CODE_POINTS, np.bool_)
    members[SURROGATES.start : SURROGATES.stop] = False
    for points in _PROBED:
        for _, (start, end) in split.pre_tokenize_str("".join(map(chr, points))):
            members[points.start + start : points.start + end] = False
    return _filled(members)


@lru_cache(maxsize=2)
def _isolated(name: str) -> Bools:
    """Returns for every code point whether the pre-tokenizer `name` cuts it out of letters around it."""
    from tokenizers import pre_tokenizers

    split = (
        pre_tokenizers.Digits(individual_digits=True) if name == "Digits" else pre_tokenizers.Punctuation("isolated")
    )
    members = np.zeros(N_CODE_POINTS, np.bool_)
    for points in _PROBED:
        for _, (start, end) in split.pre_tokenize_str("a" + "".join(f"{chr(point)}a" for point in points)):
            if start % 2 == 1 and end == start + 1:
                members[points.start + start // 2] = True
    return _filled(members)


def _filled(members: Bools) -> Bools:
    for where, probe in _FILLED:
        members[where] = members[probe]
    return members


_PROBED = (range(SURROGATES.start), range(SURROGATES.stop, 0x40000), range(0xE0000, 0xE1000), range(0xF0000, 0xF0001))
_FILLED = ((slice(0x40000, 0xE0000), 0x3FFFF), (slice(0xE1000, 0xF0000), 0x3FFFF), (slice(0xF0001, None), 0xF0000))
"""Planes 4 to 13 hold no characters and 15 and 16 private ones only, so that one of each kind is asked."""


def runs(values: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns where runs of equal values start, and their values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1)).astype(np.int32)
    return starts, values[starts].astype(np.int32)


# ---- determinisation


def _determinise(nodes: list[_Node], start: int, members: list[Bools], pattern: str) -> Automaton:
    signature = np.zeros(N_CODE_POINTS, np.int64)
    for bit, member in enumerate(members):
        signature |= member.astype(np.int64) << bit
    signature[SURROGATES.start : SURROGATES.stop] = signature[SURROGATES.start - 1]
    kinds, classes = np.unique(signature, return_inverse=True)
    columns: list[int | None] = [*kinds.tolist(), None]
    states: dict[tuple[int, ...], int] = {(): DEAD, (start,): 1}
    table = [[DEAD] * len(columns)]
    pending: list[tuple[int, ...]] = [(start,)]
    for state in pending:
        row = []
        for column in columns:
            targets, matched = _step(nodes, state, column)
            if targets not in states:
                states[targets] = len(states)
                pending.append(targets)
                if len(states) > MAX_STATES:
                    raise UnsupportedModelError(f"the pre-tokenizer's pattern {pattern!r} needs too many states")
            row.append(states[targets] | (MATCH if matched else 0))
        table.append(row)
    if any(entry & MATCH for entry in table[1]):
        raise UnsupportedModelError(f"the pre-tokenizer's pattern {pattern!r} matches the empty text")
    starts, values = runs(classes)
    return Automaton(starts, values, np.array(table, np.uint16))


def _step(nodes: list[_Node], state: tuple[int, ...], column: int | None) -> tuple[tuple[int, ...], bool]:
    """Returns the states after a character of signature `column` (None: the end), and whether a match ended before it.

    What stands behind a match in the order of preference is dropped, as a backtracking engine never tries it.
    """
    seen: set[int] = set()
    targets: dict[int, None] = {}
    stack = list(reversed(state))
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        node = nodes[index]
        inside = column is not None and node.label >= 0 and bool(column >> node.label & 1)
        if node.kind == "match":
            return tuple(targets), True
        if node.kind == "split" or (node.kind == "look" and inside != node.negated):
            stack += reversed(node.targets)
        elif node.kind == "char" and inside:
            targets[node.targets[0]] = None
    return tuple(targets), False
