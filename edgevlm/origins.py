"""Who wrote each character of a rendered chat template, found by stand-ins that move as the text does.

Every character of a message, but white space, is replaced by a stand-in of its own from the private-use planes, one
for one, before the template runs. What only moves text (loops, `+`, slices, joins) moves stand-ins just as well. What
looks into text (comparisons, `strip`, `split`, `upper`, `tojson`, ...) is given the text that is meant, and its result
is written in stand-ins again. So the template decides as it would on the real text, and what it writes still tells,
character by character, who wrote it.

A *hidden* stand-in keeps its character to itself: the template sees that something stands there, and not what. It
breaks the control tokens that a user types, so that no template takes them for markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from edgevlm.errors import UsageError

Writer = Literal["user", "assistant"]
"""The template wrote what no writer is known of. Everybody but the assistant is a user here: system texts too."""

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

ANSWERS = frozenset((
    "startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
))  # fmt: skip
"""Methods of a text that answer a question about it."""
_CASES = frozenset(("upper", "lower", "capitalize", "title", "swapcase", "casefold"))
_PARTS = frozenset((
    "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "split", "rsplit", "partition", "rpartition",
    "replace",
))  # fmt: skip
METHODS = ANSWERS | _CASES | _PARTS
"""Methods of a text that look into it; the others only move it."""


class Origins:
    """The stand-ins of one conversation; `taken` are the characters that stand for themselves somewhere in it."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._fresh = _unused(set(taken))
        self._stand_ins: dict[tuple[str, Writer], str] = {}
        self._hidden: dict[str, str] = {}
        self._writers: dict[str, Writer] = {}
        self._meant: dict[int, str] = {}
        self._true: dict[int, str] = {}

    def marker(self) -> str:
        """Returns a character that nobody writes."""
        return next(self._fresh)

    def learn(self, text: str, writer: Writer) -> None:
        """Gives the characters of `text` their stand-ins in the order of the alphabet, so that they sort alike."""
        for char in sorted(set(text)):
            self._stand_in(char, writer)

    def written(self, text: str, writer: Writer) -> str:
        """Returns `text` in stand-ins; what is a stand-in already, and white space, stays."""
        return "".join(char if char in self._writers else self._stand_in(char, writer) for char in text)

    def hidden(self, char: str) -> str:
        """Returns a stand-in for `char` that the template cannot see through."""
        found = self._hidden.get(char)
        if found is None:
            found = self._hidden[char] = next(self._fresh)
            self._writers[found] = "user"
            self._true[ord(found)] = char
        return found

    def _stand_in(self, char: str, writer: Writer) -> str:
        if char.isspace():
            return char
        found = self._stand_ins.get((char, writer))
        if found is None:
            found = self._stand_ins[char, writer] = next(self._fresh)
            self._writers[found] = writer
            self._meant[ord(found)] = self._true[ord(found)] = char
        return found

    def writer(self, char: str) -> Writer | None:
        """Returns who wrote a character; None: the template."""
        return self._writers.get(char)

    def writers(self, text: str) -> set[Writer]:
        """Returns who wrote something in `text`, beside the template."""
        return {self._writers[char] for char in set(text) if char in self._writers}

    def meant(self, value: Any) -> Any:
        """Returns what a template may see of a value: its texts without stand-ins that are not hidden."""
        if isinstance(value, str):
            return value.translate(self._meant)
        if isinstance(value, list):
            return [self.meant(item) for item in value]
        if isinstance(value, tuple):  # a group of `groupby` is equal to a plain one
            return tuple(self.meant(item) for item in value)
        if isinstance(value, dict):
            return {self.meant(key): self.meant(item) for key, item in value.items()}
        return value

    def true(self, text: str) -> str:
        """Returns `text` without any stand-in."""
        return text.translate(self._true)

    # ---- what looks into text

    def method(self, name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what a method of METHODS gives, its texts in stand-ins."""
        meant = self.meant(text)
        arguments, named = self.meant(tuple(args)), self.meant(dict(kwargs))
        real = getattr(meant, name)(*arguments, **named)
        if name in _CASES:
            return self._cased(name, text, meant, real)
        if name not in _PARTS:
            return real
        if name == "replace":
            return self._replaced(text, meant, arguments, args, named)
        if isinstance(real, str):
            at = len(meant) - len(meant.lstrip(*arguments)) if name == "strip" else 0
            if name in ("lstrip", "removeprefix"):
                at = len(meant) - len(real)
            return text[at : at + len(real)]
        separator = arguments[0] if arguments else named.get("sep")
        if separator is None:  # white space has no stand-ins
            return getattr(text, name)(*args, **kwargs)
        gap = 0 if "partition" in name else len(separator)
        pieces, at = [], 0
        for piece in real:
            pieces.append(text[at : at + len(piece)])
            at += len(piece) + gap
        return type(real)(pieces)

    def _replaced(
        self, text: str, meant: str, arguments: Sequence[Any], args: Sequence[Any], named: Mapping[str, Any]
    ) -> str:
        old, new, limit = arguments[0], args[1], (*arguments[2:], named.get("count", -1))[0]
        if not old:
            return text.replace(old, new, limit)
        pieces, at = [], 0
        while limit != 0 and (found := meant.find(old, at)) >= 0:
            pieces += [text[at:found], new]
            at, limit = found + len(old), limit - 1
        return "".join([*pieces, text[at:]])

    def _cased(self, name: str, text: str, meant: str, real: str) -> str:
        parts: Sequence[str] = real
        if len(real) != len(text):
            parts = [getattr(char, name)() for char in meant]  # a character may become two
            if "".join(parts) != real:
                return self._all_by(real, text)
        result = []
        for char, part in zip(text, parts, strict=True):
            writer = self._writers.get(char)
            is_hidden = writer is not None and ord(char) not in self._meant
            result.append(char if is_hidden else part if writer is None else self.written(part, writer))
        return "".join(result)

    def lifted(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what any function of texts gives, in stand-ins; all of it is the writers' where it cannot be told."""
        real = function(*self.meant(tuple(args)), **self.meant(dict(kwargs)))
        try:
            moved = function(*args, **kwargs)
        except (TypeError, ValueError, ArithmeticError, LookupError):
            moved = None
        if self.meant(moved) == self.meant(real) and type(moved) is type(real):
            return moved
        return self._all_by(real, str([args, kwargs])) if isinstance(real, str) else real

    def _all_by(self, real: str, sources: str) -> str:
        writers = self.writers(sources)
        return self.written(real, "user" if "user" in writers else "assistant") if writers else real

    def json(self, value: Any, ensure_ascii: bool, **options: Any) -> str:
        """Returns json.dumps of a value with texts in stand-ins."""
        text = json.dumps(value, ensure_ascii=False, **options)
        pieces = []
        for char in text:
            writer, meant = self._writers.get(char), self._meant.get(ord(char), char)
            if writer is not None and meant == char:
                pieces.append(char)  # hidden
            elif writer is not None:
                pieces.append(self.written(json.dumps(meant, ensure_ascii=ensure_ascii)[1:-1], writer))
            else:
                pieces.append(json.dumps(char)[1:-1] if ensure_ascii and not char.isascii() else char)
        return "".join(pieces)


def _unused(taken: set[str]) -> Iterator[str]:
    for code in chain.from_iterable(_PRIVATE_USE):
        if chr(code) not in taken:
            yield chr(code)
    raise UsageError("the text has more different characters than a prompt can hold (131,000)")
