"""Chat templates as small programs for a phone: device/chat.json.

The Jinja syntax tree is folded with what a phone knows (no tools, no documents, a generation prompt, the package's
special tokens, messages that have a role and a content), so that branches for tools disappear, and what is left is
written as nested lists. `edgevlm.chat_template` stays the definition; a template that uses more than the subset is
refused by name.

Statements: ["text", s] ["print", e] ["if", e, then, else] ["for", names, e, test, body, else] ["set", name, e]
["set_block", name, body] ["set_attr", name, key, e] ["break"] ["continue"].
Expressions: ["const", v] ["undefined"] ["name", n] ["item", e, k] ["slice", e, start, stop, step] ["not", e]
["and", a, b] ["or", a, b] ["compare", e, op, e, ...] ["add" "sub" "mul" "div" "mod", a, b] ["neg", e] ["concat", e...]
["cond", test, a, b] ["list", e...] ["dict", [k, e]...] ["test" "filter" "method", name, e, argument...]
["call", name, [e...], {key: e}].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser

from edgevlm.errors import UnsupportedModelError

Expression = list[Any]
Statement = list[Any]

TESTS = (
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "boolean", "true", "false", "number",
    "integer", "odd", "even", "eq", "equalto", "==", "ne", "!=", "in",
)  # fmt: skip
FILTERS = (
    "trim", "capitalize", "upper", "lower", "length", "count", "string", "first", "last", "default", "d", "join",
    "replace", "tojson", "list",
)  # fmt: skip
METHODS = (
    "strip", "lstrip", "rstrip", "startswith", "endswith", "upper", "lower", "capitalize", "split", "replace", "get",
    "items", "keys",
)  # fmt: skip
FUNCTIONS = ("namespace", "range", "raise_exception", "strftime_now")
MESSAGE_KEYS = ("role", "content", "type", "text")
LOOP_KEYS = ("index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem")

_BINARY: dict[type[nodes.Node], str] = {
    nodes.Add: "add", nodes.Sub: "sub", nodes.Mul: "mul", nodes.FloorDiv: "div", nodes.Mod: "mod",
}  # fmt: skip
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">=", "in": "in", "notin": "not in"}
UNDEFINED: Expression = ["undefined"]


class _Generation(Extension):
    """transformers' `generation` tag, which only marks a block."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_chat_template(source: str, special_tokens: Mapping[str, str]) -> list[Statement]:
    """Returns the program of a chat template. Raises UnsupportedModelError naming what is outside the subset."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, LoopControls]
    )
    try:
        tree = environment.parse(source)
    except (TemplateError, RecursionError) as error:
        raise UnsupportedModelError(f"the chat template cannot be parsed ({error})") from error
    known: dict[str, Any] = {**special_tokens, "tools": None, "documents": None, "add_generation_prompt": True}
    assigned: frozenset[str] = frozenset()
    while True:
        # What is assigned only in branches that can never run counts as never assigned; the set grows until it holds.
        compiler = _Compiler(tree, known, assigned)
        program = compiler.statements(tree.body)
        if compiler.stored <= assigned:
            if compiler.refusals:
                raise compiler.refusals[0]
            initial = [["set", name, ["const", known[name]]] for name in sorted(assigned & known.keys())]
            return [*initial, *program]
        assigned |= compiler.stored


class _Compiler:
    def __init__(self, tree: nodes.Template, known: Mapping[str, Any], assigned: frozenset[str]) -> None:
        self.constants = {name: value for name, value in known.items() if name not in assigned}
        self.variables = {"messages", "loop", *assigned}
        self.stored: set[str] = set()
        self.refusals: list[UnsupportedModelError] = []
        keys = {str(node.key) for node in tree.find_all(nodes.Keyword)}
        keys |= {node.attr for node in tree.find_all(nodes.NSRef)}
        keys |= {str(node.key.value) for node in tree.find_all(nodes.Pair) if isinstance(node.key, nodes.Const)}
        self.keys = {*MESSAGE_KEYS, *LOOP_KEYS, *keys}
        """Names after which something can be found; any other key of a message is undefined."""

    # ---- statements

    def statements(self, body: Iterable[nodes.Node]) -> list[Statement]:
        result: list[Statement] = []
        for node in body:
            try:
                found = self.statement(node)
            except UnsupportedModelError as refusal:
                # It counts only if the statement can still run when it is known what is assigned.
                self.refusals.append(refusal)
                continue
            for statement in found:
                if statement[0] == "text" and result and result[-1][0] == "text":
                    result[-1] = ["text", result[-1][1] + statement[1]]
                else:
                    result.append(statement)
        return result

    def statement(self, node: nodes.Node) -> list[Statement]:
        handler: Callable[[Any], list[Statement]] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None or not isinstance(node, nodes.Stmt):
            raise _refused(node, f"the statement {type(node).__name__}")
        return handler(node)

    def _output(self, node: nodes.Output) -> list[Statement]:
        result: list[Statement] = []
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData):
                result.append(["text", part.data])
                continue
            value = self.expression(part)
            if value[0] == "const" and isinstance(value[1], str):
                result.append(["text", value[1]])
            elif value != UNDEFINED:
                result.append(["print", value])
        return result

    def _if(self, node: nodes.If) -> list[Statement]:
        test = self.expression(node.test)
        otherwise = [nodes.If(e.test, e.body, node.elif_[i + 1 :], node.else_) for i, e in enumerate(node.elif_[:1])]
        for branch in otherwise:
            branch.set_lineno(node.lineno)
        rest: list[nodes.Node] = list(otherwise) if otherwise else list(node.else_)
        truth = constant_truth(test)
        if truth is not None:
            return self.statements(node.body if truth else rest)
        return [["if", test, self.statements(node.body), self.statements(rest)]]

    def _for(self, node: nodes.For) -> list[Statement]:
        if node.recursive:
            raise _refused(node, "a recursive loop")
        items = self.expression(node.iter)
        if constant_truth(items) is False:
            return self.statements(node.else_)
        targets = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
        names = [target.name for target in targets if isinstance(target, nodes.Name)]
        if len(names) != len(targets):
            raise _refused(node, "a loop over nested names")
        self.stored |= set(names)
        self.variables |= set(names)
        test = None if node.test is None else self.expression(node.test)
        return [["for", names, items, test, self.statements(node.body), self.statements(node.else_)]]

    def _assign(self, node: nodes.Assign) -> list[Statement]:
        value = self.expression(node.node)
        if isinstance(node.target, nodes.Name):
            self.stored.add(node.target.name)
            return [["set", node.target.name, value]]
        if isinstance(node.target, nodes.NSRef):
            return [["set_attr", node.target.name, node.target.attr, value]]
        raise _refused(node, "an assignment to several names")

    def _assignblock(self, node: nodes.AssignBlock) -> list[Statement]:
        if node.filter is not None or not isinstance(node.target, nodes.Name):
            raise _refused(node, "a filtered block assignment")
        self.stored.add(node.target.name)
        return [["set_block", node.target.name, self.statements(node.body)]]

    def _exprstmt(self, node: nodes.ExprStmt) -> list[Statement]:
        return [["if", self.expression(node.node), [], []]]

    def _scope(self, node: nodes.Scope) -> list[Statement]:
        return self.statements(node.body)

    def _break(self, node: nodes.Break) -> list[Statement]:
        return [["break"]]

    def _continue(self, node: nodes.Continue) -> list[Statement]:
        return [["continue"]]

    # ---- expressions

    def expression(self, node: nodes.Node | None) -> Expression:
        if node is None:
            return ["const", None]
        return fold(self._expression(node))

    def _expression(self, node: nodes.Node) -> Expression:
        if isinstance(node, nodes.Const):
            return ["const", node.value]
        if isinstance(node, nodes.TemplateData):
            return ["const", node.data]
        if isinstance(node, nodes.Name):
            return self._name(node)
        if isinstance(node, nodes.Getattr):
            return self._item(node.node, ["const", node.attr])
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                part = node.arg
                return ["slice", self.expression(node.node), *map(self.expression, (part.start, part.stop, part.step))]
            return self._item(node.node, self.expression(node.arg))
        if isinstance(node, nodes.Not):
            return ["not", self.expression(node.node)]
        if isinstance(node, nodes.Neg):
            return ["neg", self.expression(node.node)]
        if isinstance(node, nodes.And | nodes.Or):
            kind = "and" if isinstance(node, nodes.And) else "or"
            return [kind, self.expression(node.left), self.expression(node.right)]
        if type(node) in _BINARY and isinstance(node, nodes.BinExpr):
            return [_BINARY[type(node)], self.expression(node.left), self.expression(node.right)]
        if isinstance(node, nodes.Concat):
            return ["concat", *map(self.expression, node.nodes)]
        if isinstance(node, nodes.Compare):
            pairs = [part for op in node.ops for part in (_COMPARE[op.op], self.expression(op.expr))]
            return ["compare", self.expression(node.expr), *pairs]
        if isinstance(node, nodes.CondExpr):
            otherwise = UNDEFINED if node.expr2 is None else self.expression(node.expr2)
            return ["cond", self.expression(node.test), self.expression(node.expr1), otherwise]
        if isinstance(node, nodes.List | nodes.Tuple):
            return ["list", *map(self.expression, node.items)]
        if isinstance(node, nodes.Dict):
            return ["dict", *([self.expression(pair.key), self.expression(pair.value)] for pair in node.items)]
        if isinstance(node, nodes.Test):
            return self._applied("test", node, TESTS)
        if isinstance(node, nodes.Filter):
            return self._applied("filter", node, FILTERS)
        if isinstance(node, nodes.Call):
            return self._call(node)
        raise _refused(node, f"the expression {type(node).__name__}")

    def _name(self, node: nodes.Name) -> Expression:
        if node.name in self.constants:
            return ["const", self.constants[node.name]]
        if node.name in self.variables:
            return ["name", node.name]
        if node.name in FUNCTIONS:
            return ["function", node.name]
        return UNDEFINED

    def _item(self, node: nodes.Node, key: Expression) -> Expression:
        value = self.expression(node)
        if key[0] == "const" and isinstance(key[1], str) and key[1] not in self.keys:
            return ["item", UNDEFINED, key] if value == UNDEFINED else UNDEFINED
        return ["item", value, key]

    def _applied(self, kind: str, node: nodes.Test | nodes.Filter, known: tuple[str, ...]) -> Expression:
        subject = self.expression(node.node)
        if subject[0] == "function" and node.name in ("defined", "undefined", "none"):
            return ["const", node.name == "defined"]
        if subject[0] == "undefined" and kind == "filter" and node.name not in ("default", "d"):
            return UNDEFINED if node.name in ("tojson", "trim") else [kind, node.name, subject]
        if node.name not in known or node.kwargs or node.dyn_args or node.dyn_kwargs:
            arguments = " with named arguments" if node.name in known else ""
            raise _refused(node, f"the {kind} {node.name!r}{arguments}")
        return [kind, node.name, subject, *map(self.expression, node.args)]

    def _call(self, node: nodes.Call) -> Expression:
        if node.dyn_args or node.dyn_kwargs:
            raise _refused(node, "a call with unpacked arguments")
        arguments = [self.expression(argument) for argument in node.args]
        if isinstance(node.node, nodes.Getattr) and not node.kwargs:
            if node.node.attr not in METHODS:
                raise _refused(node, f"the method {node.node.attr!r}")
            return ["method", node.node.attr, self.expression(node.node.node), *arguments]
        if isinstance(node.node, nodes.Name) and node.node.name in FUNCTIONS:
            named = {str(keyword.key): self.expression(keyword.value) for keyword in node.kwargs}
            return ["call", node.node.name, arguments, named]
        name = node.node.name if isinstance(node.node, nodes.Name) else type(node.node).__name__
        raise _refused(node, f"a call of {name!r}")


# ---- folding


def fold(value: Expression) -> Expression:
    """Returns a simpler expression where constants decide."""
    kind: str = value[0]
    left: Expression = value[1] if len(value) > 1 and isinstance(value[1], list) else []
    if kind == "function":
        return value
    if kind == "not" and (truth := constant_truth(value[1])) is not None:
        return ["const", not truth]
    if kind in ("and", "or") and (truth := constant_truth(value[1])) is not None:
        right: Expression = value[2]
        return right if truth == (kind == "and") else left
    if kind == "cond" and (truth := constant_truth(value[1])) is not None:
        chosen: Expression = value[2] if truth else value[3]
        return chosen
    if kind == "test" and value[1] in ("defined", "undefined", "none") and value[2][0] in ("const", "undefined"):
        is_defined, is_none = value[2][0] == "const", value[2][0] == "const" and value[2][1] is None
        return ["const", {"defined": is_defined, "undefined": not is_defined, "none": is_none}[value[1]]]
    if kind == "add" and all(part[0] == "const" and isinstance(part[1], str) for part in value[1:]):
        return ["const", value[1][1] + value[2][1]]
    if kind == "add" and value[1][0] == "add" and _is_text(value[1][2]) and _is_text(value[2]):
        return ["add", value[1][1], ["const", value[1][2][1] + value[2][1]]]
    return value


def _is_text(value: Expression) -> bool:
    return value[0] == "const" and isinstance(value[1], str)


def constant_truth(value: Expression) -> bool | None:
    """Returns the truth of an expression that is known at export, else None."""
    if value[0] == "undefined":
        return False
    if value[0] == "function":
        return True
    return bool(value[1]) if value[0] == "const" else None


def _refused(node: nodes.Node, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the chat template uses {what} in line {node.lineno}, which a device's templates do not have"
    )
