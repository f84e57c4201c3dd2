"""The sandbox of chat templates: jinja2's, with a budget, and with texts that tell who wrote them.

Every loop turn, macro, call, comparison and filter counts against the budget, and no string grows above a limit. While
`Origins` are active, what looks into text goes through them.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, generate_lorem_ipsum
from jinja2.visitor import NodeTransformer

from edgevlm.origins import METHODS, Origins

MAX_SOURCE_CHARS = 1 << 20
MAX_CHARS = 8 << 20
"""Longest string that a template may make."""
MAX_ITEMS = 100_000
"""Longest list, and largest width or count given to a method or filter."""
MAX_STEPS = 100_000
MAX_SECONDS = 5.0
"""A template's budget; real ones need some steps per message."""
MAX_SLOW_CHARS = 100_000
"""Longest text for a filter of SLOW_FILTERS, whose time grows faster than its text."""

SLOW_FILTERS = frozenset(("pprint", "striptags", "title", "truncate", "urlize", "wordcount", "wordwrap", "xmlattr"))
_LOOKING_FILTERS = frozenset((
    "center", "dictsort", "e", "escape", "filesizeformat", "float", "forceescape", "groupby", "indent", "int", "max",
    "min", "pprint", "sort", "striptags", "title", "truncate", "unique", "urlencode", "urlize", "wordcount", "wordwrap",
    "xmlattr",
))  # fmt: skip
"""Filters that look into text; those of _AS_METHODS do so as the method of that name."""
_AS_METHODS = {"trim": "strip", "upper": "upper", "lower": "lower", "capitalize": "capitalize", "replace": "replace"}

_SEQUENCES = (str, bytes, list, tuple)


class Refusal(Exception):
    """The template called raise_exception."""


@dataclass
class _Budget:
    steps: int
    deadline_s: float


_budget: ContextVar[_Budget | None] = ContextVar("chat_template_budget", default=None)
_origins: ContextVar[Origins | None] = ContextVar("chat_template_origins", default=None)


@contextmanager
def budgeted(origins: Origins | None = None) -> Iterator[None]:
    """Gives what runs inside one budget, and the stand-ins of its messages."""
    tokens = _budget.set(_Budget(MAX_STEPS, time.monotonic() + MAX_SECONDS)), _origins.set(origins)
    try:
        yield
    finally:
        _budget.reset(tokens[0])
        _origins.reset(tokens[1])


def _tick() -> bool:
    budget = _budget.get()
    if budget is not None:
        budget.steps -= 1
        if budget.steps < 0 or (budget.steps % 256 == 0 and time.monotonic() > budget.deadline_s):
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps or {MAX_SECONDS:g} s")
    return True


def limit(n_chars: float, most: int = MAX_CHARS) -> None:
    """Refuses a text or list of more than `most` elements."""
    if n_chars > most:
        raise SecurityError(f"it makes a text or list of more than {most:,} elements")


def _longest(items: Any) -> int:
    return MAX_CHARS if isinstance(items, str | bytes) else MAX_ITEMS


def _measure(values: Iterable[Any]) -> int:
    """Returns about how many characters the values are as text, 16 for each nested value; refuses too many."""
    total, stack = 0, list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, Mapping):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += value
        elif isinstance(value, int):
            total += value.bit_length() // 3
        total += 16
        limit(total)
        limit(len(stack))
    return total


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda left, right: left in right, "notin": lambda left, right: left not in right,
}  # fmt: skip


class _Guards(NodeTransformer):
    """Puts the budget into loops and macros, and a length check into `~`."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def _tick(self) -> nodes.Call:
        return self._extension.call_method("tick", [])

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick()))
        if node.test is not None:
            node.test = nodes.And(self._tick(), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick()))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick()))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        result: nodes.Expr | None = None
        left = node.expr
        for operand in node.ops:
            arguments: list[nodes.Expr] = [nodes.Const(operand.op), left, operand.expr]
            found = self._extension.call_method("compare", arguments, lineno=node.lineno)
            result = found if result is None else nodes.And(result, found)
            left = operand.expr
        return cast(nodes.Node, result)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return cast(nodes.Node, self._extension.call_method("concat", node.nodes, lineno=node.lineno))


class _Budgeted(Extension):
    """What `_Guards` calls, and transformers' `generation` tag, which only marks a block here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        statements = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(statements, lineno=line)]

    def tick(self) -> bool:
        return _tick()

    def compare(self, operator: str, left: Any, right: Any) -> Any:
        origins = _origins.get()
        if origins is not None:
            left, right = origins.meant(left), origins.meant(right)
        return _COMPARISONS[operator](left, right)

    def concat(self, *values: Any) -> str:
        _measure(values)
        return "".join(map(str, values))


_LOOKING_TESTS = (
    "==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan", ">=", "ge", "in",
    "lower", "upper",
)  # fmt: skip


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def getitem(self, obj: Any, argument: Any) -> Any:
        origins = _origins.get()
        if origins is not None and isinstance(obj, dict):
            argument = origins.meant(argument)
        return super().getitem(obj, argument)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        extension = self.extensions[_Budgeted.identifier]
        guarded = cast(nodes.Template, _Guards(extension).visit(template))
        return cast(nodes.Template, guarded.set_environment(self).set_lineno(1))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
            limit(len(left) + len(right), _longest(left))
        elif operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, _SEQUENCES) and isinstance(count, int):
                    limit(len(items) * count, _longest(items))
            if isinstance(left, int) and isinstance(right, int):
                limit(left.bit_length() + right.bit_length(), 4096)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            limit(left.bit_length() * abs(right), 4096)
        elif operator == "%" and isinstance(left, str | bytes):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _tick()
        # The sandbox hands out str.format in a wrapper of its own.
        method = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int | float):
            _check_method(owner, name, (*args, *kwargs.values()))
        origins = _origins.get()
        if origins is not None and isinstance(owner, str) and name in METHODS:
            named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
            return origins.method(name, owner, args, named)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            limit(len(result))
        return result


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Refuses a method of a plain value whose result would be too long, before it is made."""
    for value in args:
        if isinstance(value, int):
            limit(value, MAX_ITEMS)
    if not isinstance(owner, str | bytes):
        return
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str | bytes) and isinstance(args[1], str | bytes):
        limit(len(owner) + cast(str, owner).count(cast(str, args[0])) * len(args[1]))
    elif name == "join" and args:
        items = list(args[0])
        limit(_measure(items) + len(owner) * len(items))
    elif name == "expandtabs":
        limit(len(owner) * (args[0] if args and isinstance(args[0], int) else 8))
    elif name in ("format", "format_map"):
        _check_format(owner, args)


def _check_format(pattern: str | bytes, args: tuple[Any, ...]) -> None:
    """Refuses a format with a width of more than four digits, written or given."""
    if re.search(r"\d{5}|\*", str(pattern)) or ("{:{" in str(pattern) and any(isinstance(v, int) for v in args)):
        raise SecurityError("it formats with a width that is too large")
    limit(_measure(args) * (1 + str(pattern).count("{") + str(pattern).count("%")))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that counts against the budget and refuses to make what is too large."""

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _tick()
        # Filters that take the environment or context get it first.
        n_passed = 1 if hasattr(function, "jinja_pass_arg") else 0
        passed, values = args[:n_passed], list(args[n_passed:])
        subject, rest = (values[0] if values else None), (*values[1:], *kwargs.values())
        if name == "join" and subject is not None:
            values[0] = subject = list(subject)
        _check_filter(name, subject, rest)
        result = _looking(name, lambda *v, **k: function(*passed, *v, **k), values, kwargs)
        if isinstance(result, str):
            limit(len(result))
        return result

    return filtered


def _looking(name: str, function: Callable[..., Any], values: list[Any], kwargs: dict[str, Any]) -> Any:
    """Returns a filter's result, in stand-ins where it looks into text."""
    origins = _origins.get()
    if origins is None:
        return function(*values, **kwargs)
    if name in _AS_METHODS and values and isinstance(values[0], str):
        arguments = [*values[1:], *(kwargs[key] for key in ("old", "new", "count", "chars") if key in kwargs)]
        if name == "replace":
            arguments = [*map(str, arguments[:2]), *arguments[2:]]
        arguments = [argument for argument in arguments if argument is not None]
        return origins.method(_AS_METHODS[name], values[0], arguments, {})
    if name in _LOOKING_FILTERS:
        return origins.lifted(function, values, kwargs)
    return function(*values, **kwargs)


def _check_filter(name: str, subject: Any, rest: tuple[Any, ...]) -> None:
    """Refuses a filter whose result would be too long, or that would take too long, before it runs."""
    for value in rest:
        if isinstance(value, int):
            limit(abs(value), MAX_ITEMS)
    if name in SLOW_FILTERS:
        limit(_measure([subject]), MAX_SLOW_CHARS)
    if name == "replace" and isinstance(subject, str) and len(rest) >= 2:
        _check_method(subject, "replace", (str(rest[0]), str(rest[1])))
    elif name == "format" and isinstance(subject, str):
        _check_format(subject, rest)
    elif name in ("string", "e", "escape", "forceescape", "safe", "upper", "lower", "capitalize", "trim", "indent"):
        size = _measure([subject])
        if name == "indent" and isinstance(subject, str):
            widths = [value if isinstance(value, int) else len(str(value)) for value in rest] or [4]
            limit(size + (subject.count("\n") + 1) * max(widths))
    elif name == "join" and subject is not None:
        limit(_measure(subject) + len(subject) * sum(len(value) for value in rest if isinstance(value, str)))
    elif name == "sum" and any(not isinstance(value, int | float | str) for value in rest):
        raise SecurityError("it sums what are not numbers")
    elif name in ("urlencode", "wordwrap", "center"):
        _measure([subject, *rest])


def _looking_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a test that is told what texts mean."""

    @wraps(function)
    def tested(*args: Any, **kwargs: Any) -> Any:
        origins = _origins.get()
        return function(*(args if origins is None else origins.meant(args)), **kwargs)

    return tested


class _TemplateNamespace(Namespace):
    """jinja2's namespace without underscored names, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        attrs = dict(*given, **kwargs)
        for name in attrs:
            _check_name(name)
        Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores the underscored name {name!r} on a namespace")


class _TemplateDict:
    """jinja2's `dict`: the type itself would give access to Python."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    limit(n * max * 16)
    return generate_lorem_ipsum(n, html, min, max)


def _raise_exception(message: Any) -> None:
    raise Refusal((str(message).strip().splitlines() or ["no reason given"])[0][:200])


def _strftime_now(pattern: str) -> str:
    limit(len(pattern), 200)
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    _tick()
    if isinstance(indent, int):
        limit(indent, 100)
    _measure([value, indent])
    options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    origins = _origins.get()
    if origins is not None:
        return origins.json(value, ensure_ascii, **options)
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _finalize(value: Any) -> Any:
    _measure([value])
    return value


def new_environment() -> ImmutableSandboxedEnvironment:
    """Returns transformers' environment of chat templates in the sandbox."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Budgeted, LoopControls], finalize=_finalize, optimized=False
    )
    environment.filters = {name: _guarded(name, found) for name, found in JINJA_FILTERS.items()}
    environment.filters["tojson"] = _tojson
    for name in _LOOKING_TESTS:
        environment.tests[name] = _looking_test(cast(Callable[..., Any], environment.tests[name]))
    environment.globals = {
        "range": environment.globals["range"],
        "dict": _TemplateDict(),
        "lipsum": _lipsum,
        "namespace": _TemplateNamespace,
        "joiner": environment.globals["joiner"],
        "cycler": environment.globals["cycler"],
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment
