"""Frozen dataclasses to and from JSON, strictly: unknown keys, missing keys and wrong types are errors with a path."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
MAX_INTEGER_BITS = 64
"""Of seeds; sizes and ids have less."""


def to_json(value: Any) -> Any:
    """Returns plain dicts, lists and scalars for a (nested) dataclass instance."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def parse_json(content: bytes | str) -> Any:
    """Returns the value of a JSON text that every reader understands alike.

    Raises ValueError saying what the text 'is' or 'has' that readers disagree on or cannot hold: a key twice, NaN,
    a number beyond float64, nesting without end; or that it is no JSON in UTF-8 at all.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except _RefusedError as error:
        raise ValueError(f"is not valid JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not valid JSON (no UTF-8 text at byte {error.start})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:  # also of an integer of more than 4,300 digits
        raise ValueError(f"is not valid JSON ({error})") from None


class _RefusedError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"key {twice!r} stands twice")
    return result


def _no_constant(name: str) -> float:
    raise _RefusedError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"{text[:40]} is too large for a number")
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Builds `cls` from parsed JSON.

    Raises ValueError naming the path of the first wrong key, missing key or wrong type.
    """
    return typing.cast(T, _convert(cls, data, where or cls.__name__))


def _convert(annotation: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _convert_dataclass(annotation, data, where)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, data, where)
    if origin is Literal:
        # 1, 1.0 and True are equal, but one thing has one spelling.
        if not any(type(data) is type(choice) and data == choice for choice in arguments):
            raise ValueError(f"{where}: {data!r} is not one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        return _convert_tuple(arguments, data, where)
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    return _convert_scalar(annotation, data, where)


def _convert_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: key {name!r} is missing")
    return cls(**values)


def _convert_union(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    first_error: ValueError | None = None
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _convert(argument, data, where)
        except ValueError as error:
            first_error = first_error or error
    raise first_error or ValueError(f"{where}: null is not allowed")


def _convert_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where}: expected a list, found {type(data).__name__}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(data) != len(arguments):
        raise ValueError(f"{where}: expected {len(arguments)} items, found {len(data)}")
    pairs = enumerate(zip(arguments, data, strict=True))
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


def _convert_scalar(annotation: Any, data: Any, where: str) -> Any:
    if annotation is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        try:
            value = float(data)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            found = "a huge integer" if isinstance(data, int) else data
            raise ValueError(f"{where}: expected a finite number, found {found}")
        return value
    if annotation is int and isinstance(data, bool):
        raise ValueError(f"{where}: expected an integer, found a boolean")
    if annotation is not Any and not isinstance(data, annotation):
        raise ValueError(f"{where}: expected {annotation.__name__}, found {type(data).__name__}")
    if annotation is int and data.bit_length() > MAX_INTEGER_BITS:
        raise ValueError(f"{where}: expected an integer of at most {MAX_INTEGER_BITS} bits, found a huge one")
    if annotation is str and any("\ud800" <= char <= "\udfff" for char in data):
        raise ValueError(f"{where}: the text has a lone surrogate, which is no character")
    return data
