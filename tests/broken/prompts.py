"""Broken prompts and hostile chat templates: calling `case.make(tmp_path)` must raise `case.error`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import PackageError, UsageError
from edgevlm.prompt import build_segments
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from tests.broken import BrokenCase

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
ONE_TILE = TilePlan("square", 28, 1, 1, ((28, 28),), (0, 0), False)
SPEC = PromptSpec("<image>", 99, 4, content_format="list")


def templated(source: str) -> Callable[[Path], object]:
    """A call that renders one harmless message with a template."""
    return lambda tmp_path: lambda: ChatTemplate(source).render([{"role": "user", "content": "hi"}])


def prompted(
    messages: Any, source: str | None = TEMPLATE, spec: PromptSpec | None = None, n_images: int = 0
) -> Callable[[Path], object]:
    """A call that builds a prompt with a tiny tokenizer."""

    def build() -> object:
        import json

        from tokenizers import Tokenizer as Backend

        from edgevlm.tokenizer import Tokenizer
        from tests.tiny import tokenizer_json

        tokenizer = Tokenizer(Backend.from_str(json.dumps(tokenizer_json(("<image>",)))))
        return build_segments(messages, ChatTemplate(source), tokenizer, spec, [ONE_TILE] * n_images)

    return lambda tmp_path: build


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


TOO_MUCH, TOO_LONG = "more than", "more than 100,000 steps"
PICTURE = [{"type": "image"}, {"type": "text", "text": "x"}]

CASES = [
    BrokenCase("syntax error", templated("{% for x in %}"), PackageError, "the chat template cannot be run"),
    BrokenCase("unknown filter", templated("{{ 'a' | lipsum }}"), PackageError, "No filter named 'lipsum'"),
    BrokenCase("unknown test", templated("{{ 1 is prime }}"), PackageError, "No test named 'prime'"),
    BrokenCase("unknown function", templated("{{ now() }}"), PackageError, "'now' is undefined"),
    BrokenCase("long padding", templated("{{ 'a' | center(10**8) }}"), PackageError, "more than"),
    BrokenCase("formats by filter", templated("{{ '%99999999d' | format(1) }}"), PackageError, "width"),
    BrokenCase("endless dummy text", templated("{{ lipsum(10**6) }}"), PackageError, "more than"),
    BrokenCase("links in a long text", templated("{{ ('a.b ' * 99999) | urlize }}"), PackageError, "more than"),
    BrokenCase("missing variable", templated("{{ nothing.at.all }}"), PackageError, "'nothing' is undefined"),
    BrokenCase("python classes", templated("{{ ''.__class__.__mro__ }}"), PackageError, "unsafe"),
    BrokenCase(
        "python globals", templated("{{ raise_exception.__globals__['os'].system('id') }}"), PackageError, "unsafe"
    ),
    BrokenCase("attribute filter", templated("{{ (''|attr('__class__')).mro() }}"), PackageError, "unsafe"),
    BrokenCase("format attribute", templated("{{ '{0.__class__.__mro__}'.format(1) }}"), PackageError, "unsafe"),
    BrokenCase("changes a message", templated("{{ messages.append(1) }}"), PackageError, "unsafe"),
    BrokenCase("import", templated("{% import 'os' as os %}"), PackageError, "cannot be run"),
    BrokenCase("include", templated("{% include '/etc/passwd' %}"), PackageError, "cannot be run"),
    BrokenCase("range", templated("{% for i in range(10**9) %}{% endfor %}"), PackageError, "Range too big"),
    BrokenCase(
        "endless loop",
        templated("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        PackageError,
        TOO_LONG,
    ),
    BrokenCase(
        "endless condition",
        templated("{% for a in range(99999) if range(99999)|map('string')|list|length < 0 %}{% endfor %}"),
        PackageError,
        TOO_LONG,
    ),
    BrokenCase(
        "endless macro", templated("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), PackageError, "too deeply"
    ),
    BrokenCase("repeats text", templated("{{ 'a' * 10**12 }}"), PackageError, TOO_MUCH),
    BrokenCase("repeats a list", templated("{{ ([1] * 10**9)|length }}"), PackageError, TOO_MUCH),
    BrokenCase("repeats bytes", templated("{{ ('a'.encode() * 10**12)|length }}"), PackageError, TOO_MUCH),
    BrokenCase("huge number", templated("{{ 10 ** 99999999 }}"), PackageError, TOO_MUCH),
    BrokenCase("integer to bytes", templated("{{ (1).to_bytes(10**9)|length }}"), PackageError, TOO_MUCH),
    BrokenCase("negative truncate", templated("{{ 'abc'|truncate(-5) }}"), PackageError, "cannot be run"),
    BrokenCase("padding method", templated("{{ 'a'.ljust(10**10) }}"), PackageError, TOO_MUCH),
    BrokenCase("padding by attribute", templated("{{ ('a'|attr('center'))(10**10) }}"), PackageError, TOO_MUCH),
    BrokenCase("percent width", templated("{{ '%999999999d' % 1 }}"), PackageError, "width"),
    BrokenCase("percent star", templated("{{ '%*d' % (999999999, 1) }}"), PackageError, "width"),
    BrokenCase("format width", templated("{{ '{:999999999}'.format(1) }}"), PackageError, "width"),
    BrokenCase("given width", templated("{{ '{:{}}'.format(1, 999999999) }}"), PackageError, "more than"),
    BrokenCase(
        "doubles by ~",
        templated(
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
        ),
        PackageError,
        TOO_MUCH,
    ),
    BrokenCase(
        "doubles by +",
        templated(
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
        ),
        PackageError,
        TOO_MUCH,
    ),
    BrokenCase(
        "doubles by replace",
        templated(
            "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}"
        ),
        PackageError,
        TOO_MUCH,
    ),
    BrokenCase(
        "doubles by block",
        templated(
            "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
            "{% set n.x = y %}{% endfor %}"
        ),
        PackageError,
        TOO_MUCH,
    ),
    BrokenCase(
        "nested lists",
        templated(
            "{% set n = namespace(x=['a']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
            "{{ n.x|tojson }}"
        ),
        PackageError,
        TOO_MUCH,
    ),
    BrokenCase("joins", templated("{{ (['x' * 8000000] * 99999) | join }}"), PackageError, TOO_MUCH),
    BrokenCase("sums lists", templated("{{ ([[1] * 9999] * 9999)|sum(start=[])|length }}"), PackageError, "sums"),
    BrokenCase(
        "endless output", templated("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"), PackageError, TOO_MUCH
    ),
    BrokenCase("deep nesting", templated("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"), PackageError, "cannot be run"),
    BrokenCase("huge template", templated("a" * (1 << 21)), PackageError, "2,097,152 characters"),
    BrokenCase(
        "template refuses",
        templated("{{ raise_exception('roles must alternate') }}"),
        UsageError,
        "refuses these messages: roles must alternate",
    ),
    BrokenCase("no role", prompted([{"content": "x"}]), UsageError, "a message has role None"),
    BrokenCase(
        "markup in a role", prompted([{"role": "x<|im_end|>", "content": "x"}]), UsageError, "a message has role"
    ),
    BrokenCase("number as content", prompted(user(7)), UsageError, "a content part is '7'"),
    BrokenCase("unknown part", prompted(user([{"type": "audio"}])), UsageError, "{'type': 'audio'}"),
    BrokenCase("part without text", prompted(user([{"type": "text"}])), UsageError, "a content part is"),
    BrokenCase("picture without a tower", prompted(user(PICTURE), n_images=1), UsageError, "takes no pictures"),
    BrokenCase(
        "fewer pictures than parts", prompted(user(PICTURE), spec=SPEC), UsageError, "1 image parts, 0 pictures"
    ),
    BrokenCase(
        "template without pictures",
        prompted(user(PICTURE), "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}", SPEC, 1),
        PackageError,
        "writes 0 image markers for 1 pictures",
    ),
    BrokenCase(
        "wrong image token",
        prompted(user(PICTURE), "{% for m in messages %}<image>{% endfor %}", SPEC, 1),
        PackageError,
        "the prompt has 0 placeholders, the pictures have 4 (1 tiles x 4)",
    ),
    BrokenCase(
        "turns without a template",
        prompted([*user("a"), *user("b")], None),
        PackageError,
        "the package has no chat template",
    ),
    BrokenCase(
        "no content", prompted([{"role": "assistant", "content": None}]), UsageError, "a content part is 'None'"
    ),
    BrokenCase(
        "tool calls",
        prompted([{"role": "assistant", "content": "x", "tool_calls": []}]),
        UsageError,
        "the keys ['content', 'role', 'tool_calls']",
    ),
    BrokenCase(
        "reasoning of a user",
        prompted([{"role": "user", "content": "x", "reasoning_content": "y"}]),
        UsageError,
        "for the assistant perhaps 'reasoning_content'",
    ),
    BrokenCase(
        "reasoning that is no text",
        prompted([{"role": "assistant", "content": "x", "reasoning_content": ["y"]}]),
        UsageError,
        "'reasoning_content' is a list",
    ),
    BrokenCase(
        "text made unreadable",
        prompted(user("<image>"), "{% for m in messages %}{{ m['content'].encode('utf-8').hex() }}{% endfor %}"),
        PackageError,
        "does not tell what was typed from what is markup",
    ),
    BrokenCase("lone surrogate", prompted(user("a\ud800")), UsageError, "expected valid Unicode text"),
]
