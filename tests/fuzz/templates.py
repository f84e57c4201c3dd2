"""Random chat templates: statements, expressions, filters and methods of jinja put together without sense."""

from __future__ import annotations

import random

_NAMES = (
    "messages", "message", "messages[0]", "message['content']", "message.role", "loop", "loop.index0", "loop.last",
    "bos_token", "eos_token", "tools", "add_generation_prompt", "unknown", "namespace", "range", "ns", "ns.x", "x", "y",
    "self", "caller", "varargs", "dict", "cycler", "joiner", "raise_exception", "strftime_now", "messages.__class__",
    "x.__init__.__globals__", "''.__class__.__mro__", "none", "true", "loop.cycle", "x.format", "message.items",
)  # fmt: skip
_LITERALS = (
    "0", "1", "-1", "10**9", "1e308", "''", "'a'", "'user'", "'%s'", "'{0}'", "'%1000000d'", "'{:>99999}'", "[]",
    "{}", "[1, 2]", "{'a': 1}", "()", "'\\ud800'", "'\\x00'", "999999999999999999999999", "1/0", "'a' * 100000",
)  # fmt: skip
_FILTERS = (
    "trim", "length", "tojson", "tojson(indent=4)", "join", "join(x)", "list", "string", "int", "float", "first",
    "map(attribute='role')", "selectattr('role', 'equalto', 'user')", "sort", "unique", "reverse", "upper", "last",
    "default('')", "replace('a', 'b')", "indent(100)", "center(50)", "wordwrap(0)", "batch(0)", "slice(0)", "sum",
    "groupby('role')", "round(400)", "truncate(-5)", "format(1)", "items", "dictsort", "attr('x')", "nosuchfilter",
    "min", "max", "abs", "escape", "safe", "xmlattr", "urlize", "filesizeformat", "pprint", "random", "wordcount",
    "striptags",
)  # fmt: skip
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or", "is", "|", ",")
_TESTS = ("defined", "string", "mapping", "none", "iterable", "number", "odd", "divisibleby(0)", "sameas(1)", "nosuch")
_TAGS = (
    "{% generation %}BODY{% endgeneration %}", "{% filter upper %}BODY{% endfilter %}", "{% break %}", "{% continue %}",
    "{% raw %}{{{% endraw %}", "{#", "{% include 'x' %}", "{% extends x %}", "{% set ns = namespace(x=0) %}",
    "{% call x() %}BODY{% endcall %}", "{%- endfor -%}", "{% block a %}{{ self.a() }}{% endblock %}",
)  # fmt: skip


def template(rng: random.Random) -> str:
    """Returns a random template, sometimes one that does not parse."""
    text = "".join(_statement(rng, 0) for _ in range(rng.randint(1, 4)))
    return text if rng.random() < 0.9 else text[: rng.randrange(len(text) + 1)]


def _expression(rng: random.Random, depth: int) -> str:
    choice = rng.random()
    if depth > 3 or choice < 0.3:
        return rng.choice((*_NAMES, *_LITERALS))
    inner = _expression(rng, depth + 1)
    if choice < 0.5:
        return f"({inner} {rng.choice(_OPERATORS)} {_expression(rng, depth + 1)})"
    if choice < 0.7:
        return f"{inner}|{rng.choice(_FILTERS)}"
    if choice < 0.8:
        return f"{inner}[{rng.choice((_expression(rng, depth + 1), ':', '::-1', '::0', '1:', '10**9'))}]"
    if choice < 0.87:
        return f"({inner} is {rng.choice(_TESTS)})"
    if choice < 0.94:
        return f"{inner}({', '.join(_expression(rng, depth + 2) for _ in range(rng.randrange(3)))})"
    return f"({inner} if {_expression(rng, depth + 1)} else {_expression(rng, depth + 1)})"


def _statement(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(10) if depth < 4 else 0
    expression = _expression(rng, 0)
    body = "".join(_statement(rng, depth + 1) for _ in range(rng.randint(0, 2))) if kind else ""
    if kind <= 3:
        return f"{{{{ {expression} }}}}"
    if kind == 4:
        return f"{{% for {rng.choice(('x', 'message', 'x, y', 'loop'))} in {expression} %}}{body}{{% endfor %}}"
    if kind == 5:
        return f"{{% if {expression} %}}{body}{{% else %}}{body}{{% endif %}}"
    if kind == 6:
        return f"{{% set {rng.choice(('x', 'ns.x', 'messages', 'x, y', 'ns'))} = {expression} %}}"
    if kind == 7:
        return f"{{% macro x(y={expression}) %}}{body}{{% endmacro %}}{{{{ x(1) }}}}"
    if kind == 8:
        return rng.choice(_TAGS).replace("BODY", body)
    return rng.choice(("text", "<|im_start|>", "\n", "\0", "é\u2028", "{{", "%}", "<image>"))
