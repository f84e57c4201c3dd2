"""Runs device/chat.json in Python: the twin of the Java library's, by which an export checks the program it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from export.device.chat_program import Expression, Statement


class Refusal(Exception):
    """The template called raise_exception."""


class _Undefined:
    pass


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


UNDEFINED = _Undefined()
_EMPTY = ("", 0, False, None)
Scope = dict[str, Any]


def run_program(program: Sequence[Statement], messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of a conversation. Raises Refusal, TypeError for what the subset does not do."""
    out: list[str] = []
    _Interpreter([{"messages": list(messages)}]).run(program, out)
    return "".join(out)


class _Interpreter:
    def __init__(self, scopes: list[Scope]) -> None:
        self.scopes = scopes

    def run(self, body: Sequence[Statement], out: list[str]) -> None:
        for statement in body:
            getattr(self, f"_{statement[0]}")(out, *statement[1:])

    def _text(self, out: list[str], text: str) -> None:
        out.append(text)

    def _print(self, out: list[str], value: Expression) -> None:
        out.append(as_text(self.value(value)))

    def _if(self, out: list[str], test: Expression, then: Any, otherwise: Any) -> None:
        self.run(then if truth(self.value(test)) else otherwise, out)

    def _for(self, out: list[str], names: list[str], items: Any, test: Any, body: Any, otherwise: Any) -> None:
        kept = []
        for item in _items(self.value(items)):
            scope = _bound(names, item)
            self.scopes.append(scope)
            if test is None or truth(self.value(test)):
                kept.append(item)
            self.scopes.pop()
        for index, item in enumerate(kept):
            self.scopes.append({**_bound(names, item), "loop": _loop(kept, index)})
            try:
                self.run(body, out)
            except _Continue:
                continue
            except _Break:
                break
            finally:
                self.scopes.pop()
        if not kept:
            self.run(otherwise, out)

    def _set(self, out: list[str], name: str, value: Expression) -> None:
        self.scopes[-1][name] = self.value(value)

    def _set_block(self, out: list[str], name: str, body: Any) -> None:
        inner: list[str] = []
        self.run(body, inner)
        self.scopes[-1][name] = "".join(inner)

    def _set_attr(self, out: list[str], name: str, key: str, value: Expression) -> None:
        self._look_up(name)[key] = self.value(value)

    def _break(self, out: list[str]) -> None:
        raise _Break

    def _continue(self, out: list[str]) -> None:
        raise _Continue

    def _look_up(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return UNDEFINED

    # ---- expressions

    def value(self, node: Expression) -> Any:
        kind, rest = node[0], node[1:]
        if kind == "const":
            return rest[0]
        if kind == "undefined":
            return UNDEFINED
        if kind == "name":
            return self._look_up(rest[0])
        if kind == "and":
            left = self.value(rest[0])
            return self.value(rest[1]) if truth(left) else left
        if kind == "or":
            left = self.value(rest[0])
            return left if truth(left) else self.value(rest[1])
        if kind == "cond":
            return self.value(rest[1] if truth(self.value(rest[0])) else rest[2])
        if kind in ("test", "filter", "method"):
            arguments = [self.value(argument) for argument in rest[1:]]
            return {"test": _test, "filter": _filter, "method": _method}[kind](rest[0], *arguments)
        if kind == "call":
            return _call(rest[0], [self.value(e) for e in rest[1]], {k: self.value(e) for k, e in rest[2].items()})
        if kind == "compare":
            return self._compare(rest)
        if kind == "dict":
            return {self.value(key): self.value(value) for key, value in rest}
        values = [self.value(part) for part in rest]
        return _operation(kind, values)

    def _compare(self, parts: Sequence[Any]) -> bool:
        left = self.value(parts[0])
        for op, right_node in zip(parts[1::2], parts[2::2], strict=True):
            right = self.value(right_node)
            if not _compared(left, op, right):
                return False
            left = right
        return True


def _bound(names: list[str], item: Any) -> Scope:
    return {names[0]: item} if len(names) == 1 else dict(zip(names, item, strict=True))


def _loop(items: list[Any], index: int) -> dict[str, Any]:
    n = len(items)
    return {
        "index": index + 1, "index0": index, "first": index == 0, "last": index == n - 1, "length": n,
        "revindex": n - index, "revindex0": n - index - 1,
        "previtem": items[index - 1] if index else UNDEFINED,
        "nextitem": items[index + 1] if index + 1 < n else UNDEFINED,
    }  # fmt: skip


def truth(value: Any) -> bool:
    """Python's truth; undefined is false."""
    return value is not UNDEFINED and bool(value)


def as_text(value: Any) -> str:
    """What is printed of a value. Raises TypeError for lists and maps, which no template should print."""
    if value is UNDEFINED:
        return ""
    if isinstance(value, list | dict):
        raise TypeError("a list or map is printed")
    return str(value)


def _items(value: Any) -> list[Any]:
    if value is UNDEFINED:
        return []
    if isinstance(value, list | str | dict):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is looped over")


def _compared(left: Any, op: str, right: Any) -> bool:
    if op == "==":
        return bool(left == right)
    if op == "!=":
        return bool(left != right)
    if op in ("in", "not in"):
        if isinstance(right, str) and not isinstance(left, str):
            raise TypeError("something that is no text is looked for in a text")
        return (left in _items(right) if not isinstance(right, str) else left in right) == (op == "in")
    if isinstance(left, bool) or isinstance(right, bool) or type(left) is not type(right):
        raise TypeError("values of different kinds are compared")
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op])


def _operation(kind: str, values: list[Any]) -> Any:
    if kind == "not":
        return not truth(values[0])
    if kind == "neg":
        return -values[0]
    if kind == "concat":
        return "".join(map(as_text, values))
    if kind == "list":
        return values
    if kind == "item":
        return _item(*values)
    if kind == "slice":
        return values[0][slice(*values[1:])]
    left, right = values
    same = (isinstance(left, str) and isinstance(right, str)) or (isinstance(left, list) and isinstance(right, list))
    if kind == "add" and same:
        return left + right
    if not isinstance(left, int) or not isinstance(right, int):
        raise TypeError(f"{kind} of a {type(left).__name__} and a {type(right).__name__}")
    if kind in ("div", "mod"):
        return left // right if kind == "div" else left % right
    return {"add": left + right, "sub": left - right, "mul": left * right}[kind]


def _item(value: Any, key: Any) -> Any:
    if value is UNDEFINED:
        raise TypeError(f"the item {key!r} of something undefined")
    if isinstance(value, dict):
        return value.get(key, UNDEFINED)
    if isinstance(value, list | str) and isinstance(key, int) and -len(value) <= key < len(value):
        return value[key]
    return UNDEFINED


def _test(name: str, value: Any, *arguments: Any) -> bool:
    if name in ("eq", "equalto", "=="):
        return bool(value == arguments[0])
    if name in ("ne", "!="):
        return bool(value != arguments[0])
    if name == "in":
        return _compared(value, "in", arguments[0])
    if name in ("odd", "even"):
        return int(value % 2) == (name == "odd")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    answers = {
        "defined": value is not UNDEFINED,
        "undefined": value is UNDEFINED,
        "none": value is None,
        "string": isinstance(value, str),
        "mapping": isinstance(value, dict),
        "iterable": value is UNDEFINED or isinstance(value, list | str | dict),
        "sequence": value is UNDEFINED or isinstance(value, list | str | dict),
        "boolean": isinstance(value, bool),
        "true": value is True,
        "false": value is False,
        "number": is_number or isinstance(value, bool | float),
        "integer": is_number,
    }
    return answers[name]


def _filter(name: str, value: Any, *arguments: Any) -> Any:
    if name in ("default", "d"):
        use_false = len(arguments) > 1 and truth(arguments[1])
        missing = value is UNDEFINED or (use_false and not truth(value))
        return (arguments[0] if arguments else "") if missing else value
    if name in ("length", "count"):
        return len(_items(value))
    if name in ("first", "last"):
        items = _items(value)
        return (items[0] if name == "first" else items[-1]) if items else UNDEFINED
    if name == "list":
        return _items(value)
    if name == "join":
        return (arguments[0] if arguments else "").join(map(as_text, _items(value)))
    if name == "tojson":
        if not isinstance(value, str | int | type(None)):
            raise TypeError("tojson of a list or map")
        return json.dumps(value, ensure_ascii=False)
    text = as_text(value)
    if name == "trim":
        return text.strip(*arguments)
    if name == "string":
        return text
    if name == "replace":
        return text.replace(*arguments)
    return getattr(text, name)(*arguments)


def _method(name: str, value: Any, *arguments: Any) -> Any:
    if isinstance(value, dict) and name in ("get", "items", "keys"):
        if name == "get":
            return value.get(arguments[0], arguments[1] if len(arguments) > 1 else None)
        return [list(pair) for pair in value.items()] if name == "items" else list(value)
    if not isinstance(value, str) or name in ("get", "items", "keys"):
        raise TypeError(f"the method {name!r} of a {type(value).__name__}")
    return getattr(value, name)(*arguments)


def _call(name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    if name == "raise_exception":
        raise Refusal(str(arguments[0]) if arguments else "no reason given")
    if name == "namespace":
        return dict(named)
    if name == "range":
        return list(range(*arguments))
    from datetime import datetime

    return datetime.now().strftime(arguments[0])
