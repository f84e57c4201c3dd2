"""Chat templates: jinja2 programs from strangers, run in a sandbox that limits what they reach, how long and how much.

The language is transformers' (version 5.24, utils/chat_template_utils.py): trimmed blocks, loop controls, the
`generation` tag, `raise_exception`, `strftime_now`, a plain `tojson`. They run in `edgevlm.template_sandbox`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import SecurityError, TemplateError

from edgevlm.errors import PackageError, UsageError
from edgevlm.origins import Origins
from edgevlm.template_sandbox import MAX_SOURCE_CHARS, Refusal, budgeted, limit, new_environment

if TYPE_CHECKING:
    from edgevlm.package import Package

_FAILURES = (
    TemplateError, MemoryError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError,
    RuntimeError, SyntaxError, AssertionError,
)  # fmt: skip
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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

        Looked up as `override`, chat_template.jinja, chat_template.json, processor_config.json, tokenizer_config.json;
        `source` is None when there is none (a base model). An export leaves one chat_template.jinja.
        """
        config = _json_object(package, "tokenizer_config.json")
        special = special_tokens(config, _json_object(package, "special_tokens_map.json"))
        if override is not None:
            return cls(override, special, "the given chat template")
        if package.has_file("chat_template.jinja"):
            path = package.file("chat_template.jinja")
            try:
                return cls(path.read_text(encoding="utf-8"), special, str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise PackageError(f"{path}: cannot be read as text ({error})") from error
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            source = default_template(_json_object(package, name).get("chat_template"))
            if source is not None:
                return cls(source, special, f"{package.path / name}, 'chat_template'")
        return cls(None, special)

    def check_language(self) -> None:
        """Raises PackageError when the template is not in the language of chat templates."""
        with self._named_failures():
            self._program()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        origins: Origins | None = None,
    ) -> str:
        """Returns the text of a conversation; `origins` belong to the stand-ins in its messages.

        Raises UsageError when the template itself refuses the messages, PackageError when it is broken or hostile.
        """
        if self.source is None:
            raise PackageError("the package has no chat template; give one, or use a plain text prompt")
        values = {**self.special_tokens, "messages": messages, "tools": None, "documents": None}
        with self._named_failures(), budgeted(origins):
            parts: list[str] = []
            n_chars = 0
            for part in self._program().generate(**values, add_generation_prompt=add_generation_prompt):
                parts.append(part)
                n_chars += len(part)
                limit(n_chars)
            return "".join(parts)

    def _program(self) -> Any:
        if self._compiled is None:
            source = self.source or ""
            if len(source) > MAX_SOURCE_CHARS:
                raise SecurityError(f"it has {len(source):,} characters; the limit is {MAX_SOURCE_CHARS:,}")
            self._compiled = new_environment().from_string(source)
        return self._compiled

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            raise UsageError(f"{self.name} refuses these messages: {refusal}") from None
        except RecursionError as error:
            raise PackageError(f"{self.name} cannot be run: it nests or calls itself too deeply") from error
        except _FAILURES as error:
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            raise PackageError(f"{self.name} cannot be run: {reason[:200]}") from error


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


def default_template(value: Any) -> str | None:
    """The template of an entry that is one template, or several named ones."""
    if isinstance(value, list):
        value = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def special_tokens(config: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a template may name: of tokenizer_config.json, else of special_tokens_map.json."""
    names = {**others, **config}
    return {key: text for key in _SPECIAL_TOKENS if (text := _token_text(names.get(key))) is not None}
