"""Chat templates: jinja2 programs from strangers, run in a sandbox that limits what they reach, how long and how much.

The language is transformers' (version 5.24, utils/chat_template_utils.py): trimmed blocks, loop controls, the
`generation` tag, `raise_exception`, `strftime_now`, a plain `tojson`. On top of jinja2's sandbox, which stops access to
Python, every loop turn, macro, call and filter counts against a budget, and no string grows above a limit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgevlm.errors import PackageError, UsageError

if TYPE_CHECKING:
    from edgevlm.package import Package

MAX_SOURCE_CHARS = 1 << 20
MAX_CHARS = 8 << 20
"""Longest string that a template may make."""
MAX_ITEMS = 100_000
"""Longest list, and largest width or count given to a method or filter."""
MAX_STEPS = 100_000
MAX_SECONDS = 5.0
"""A template's budget; real ones need some steps per message."""

FILTERS = (
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
    "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip

_FAILURES = (
    TemplateError, MemoryError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError,
    RuntimeError, SyntaxError, AssertionError,
)  # fmt: skip

_SEQUENCES = (str, bytes, list, tuple)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Refusal(Exception):
    """The template called raise_exception."""


@dataclass
class _Budget:
    steps: int
    deadline_s: float


_budget: ContextVar[_Budget | None] = ContextVar("chat_template_budget", default=None)


class ChatTemplate:
    """The chat template of a package and the special tokens that it may name."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str] | None = None, name: str = "") -> None:
        self.source = source
        self.name = name or "the chat template"
        self.special_tokens = dict(special_tokens or {})
        self._compiled: Any = None

    @classmethod
    def open(cls, package: Package, override: str | None = None) -> ChatTemplate:
        """Returns the template of a package.

        Looked up as `override`, chat_template.jinja, chat_template.json, tokenizer_config.json; `source` is None when
        there is none (a base model).
        """
        config = _json_object(package, "tokenizer_config.json")
        names = _json_object(package, "special_tokens_map.json") | config
        special = {key: text for key in _SPECIAL_TOKENS if (text := _token_text(names.get(key))) is not None}
        if override is not None:
            return cls(override, special, "the given chat template")
        if package.has_file("chat_template.jinja"):
            path = package.file("chat_template.jinja")
            try:
                return cls(path.read_text(encoding="utf-8"), special, str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise PackageError(f"{path}: cannot be read as text ({error})") from error
        for name, found in (
            ("chat_template.json", _json_object(package, "chat_template.json")),
            ("tokenizer_config.json", config),
        ):
            source = _default_template(found.get("chat_template"))
            if source is not None:
                return cls(source, special, f"{package.path / name}, 'chat_template'")
        return cls(None, special)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation.

        Raises UsageError when the template itself refuses the messages, PackageError when it is broken or hostile.
        """
        if self.source is None:
            raise PackageError("the package has no chat template; give one, or use a plain text prompt")
        values = {**self.special_tokens, "messages": messages, "tools": None, "documents": None}
        token = _budget.set(_Budget(MAX_STEPS, time.monotonic() + MAX_SECONDS))
        try:
            if self._compiled is None:
                if len(self.source) > MAX_SOURCE_CHARS:
                    raise SecurityError(f"it has {len(self.source):,} characters; the limit is {MAX_SOURCE_CHARS:,}")
                self._compiled = _environment().from_string(self.source)
            parts: list[str] = []
            n_chars = 0
            for part in self._compiled.generate(**values, add_generation_prompt=add_generation_prompt):
                parts.append(part)
                n_chars += len(part)
                _limit(n_chars)
            return "".join(parts)
        except _Refusal as refusal:
            raise UsageError(f"{self.name} refuses these messages: {refusal}") from None
        except RecursionError as error:
            raise PackageError(f"{self.name} cannot be run: it nests or calls itself too deeply") from error
        except _FAILURES as error:
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            raise PackageError(f"{self.name} cannot be run: {reason[:200]}") from error
        finally:
            _budget.reset(token)


def _json_object(package: Package, name: str) -> dict[str, Any]:
    if not package.has_file(name):
        return {}
    path = package.file(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise PackageError(f"{path}: is a {type(value).__name__}, expected an object")
    return value


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _default_template(value: Any) -> str | None:
    """The template of an entry that is one template, or a list of named ones."""
    if isinstance(value, list):
        named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


# ---- the sandbox


def _tick() -> bool:
    budget = _budget.get()
    if budget is not None:
        budget.steps -= 1
        if budget.steps < 0 or (budget.steps % 256 == 0 and time.monotonic() > budget.deadline_s):
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps or {MAX_SECONDS:g} s")
    return True


def _limit(n_chars: float, limit: int = MAX_CHARS) -> None:
    if n_chars > limit:
        raise SecurityError(f"it makes a text or list of more than {limit:,} elements")


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
        _limit(total)
        _limit(len(stack))
    return total


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

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return cast(nodes.Node, self._extension.call_method("concat", node.nodes, lineno=node.lineno))


class _Budgeted(Extension):
    """What `_Guards` calls, and transformers' `generation` tag, which only marks a block here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tick(self) -> bool:
        return _tick()

    def concat(self, *values: Any) -> str:
        _measure(values)
        return "".join(map(str, values))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        extension = self.extensions[_Budgeted.identifier]
        guarded = cast(nodes.Template, _Guards(extension).visit(template))
        return cast(nodes.Template, guarded.set_environment(self).set_lineno(1))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
            _limit(len(left) + len(right), _longest(left))
        elif operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, _SEQUENCES) and isinstance(count, int):
                    _limit(len(items) * count, _longest(items))
            if isinstance(left, int) and isinstance(right, int):
                _limit(left.bit_length() + right.bit_length(), 4096)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _limit(left.bit_length() * abs(right), 4096)
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
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            _limit(len(result))
        return result


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Refuses a method of a plain value whose result would be too long, before it is made."""
    for value in args:
        if isinstance(value, int):
            _limit(value, MAX_ITEMS)
    if not isinstance(owner, str | bytes):
        return
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str | bytes) and isinstance(args[1], str | bytes):
        _limit(len(owner) + cast(str, owner).count(cast(str, args[0])) * len(args[1]))
    elif name == "join" and args:
        items = list(args[0])
        _limit(_measure(items) + len(owner) * len(items))
    elif name == "expandtabs":
        _limit(len(owner) * (args[0] if args and isinstance(args[0], int) else 8))
    elif name in ("format", "format_map"):
        _check_format(owner, args)


def _check_format(pattern: str | bytes, args: tuple[Any, ...]) -> None:
    """Refuses a format with a width of more than four digits, written or given."""
    if re.search(r"\d{5}|\*", str(pattern)) or ("{:{" in str(pattern) and any(isinstance(v, int) for v in args)):
        raise SecurityError("it formats with a width that is too large")
    _limit(_measure(args) * (1 + str(pattern).count("{") + str(pattern).count("%")))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that counts against the budget and refuses to make what is too large."""

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _tick()
        # Filters that take the environment or context get it first.
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        subject, rest = (values[0] if values else None), (*values[1:], *kwargs.values())
        for value in rest:
            if isinstance(value, int):
                _limit(abs(value), MAX_ITEMS)
        if name == "replace" and isinstance(subject, str) and len(rest) >= 2:
            _check_method(subject, "replace", (str(rest[0]), str(rest[1])))
        elif name in ("string", "e", "escape", "safe", "upper", "lower", "capitalize", "title", "trim", "indent"):
            size = _measure([subject])
            if name == "indent" and isinstance(subject, str):
                widths = [value if isinstance(value, int) else len(str(value)) for value in rest] or [4]
                _limit(size + (subject.count("\n") + 1) * max(widths))
        elif name == "join" and subject is not None:
            subject = list(subject)
            args = (*args[: len(args) - len(values)], subject, *values[1:])
            _limit(_measure(subject) + len(subject) * sum(len(value) for value in rest if isinstance(value, str)))
        elif name == "sum" and any(not isinstance(value, int | float | str) for value in rest):
            raise SecurityError("it sums what are not numbers")
        result = function(*args, **kwargs)
        if isinstance(result, str):
            _limit(len(result))
        return result

    return filtered


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


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise _Refusal((str(message).strip().splitlines() or ["no reason given"])[0][:200])


def _strftime_now(pattern: str) -> str:
    _limit(len(pattern), 200)
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    _tick()
    if isinstance(indent, int):
        _limit(indent, 100)
    _measure([value, indent])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _finalize(value: Any) -> Any:
    _measure([value])
    return value


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Budgeted, LoopControls], finalize=_finalize, optimized=False
    )
    known = environment.filters
    environment.filters = {name: _guarded(name, known[name]) for name in FILTERS} | {"tojson": _tojson}
    environment.globals = {
        "range": environment.globals["range"],
        "dict": _dict,
        "namespace": _TemplateNamespace,
        "joiner": environment.globals["joiner"],
        "cycler": environment.globals["cycler"],
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment
