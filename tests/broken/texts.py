"""Broken tokenizers and chat templates of checkpoints: an export must refuse them before it builds anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError, UsageError
from tests.broken import BrokenCase

CONFIG, JINJA = "tokenizer_config.json", "chat_template.jinja"
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}{{ m.role }}{% for p in m.content %}"
ENDS = "{% endfor %}{% endfor %}"


def _checkpoint(change: Callable[[Path], object], *words: str, vision: bool = False) -> Callable[[Path], list[Any]]:
    """Returns a maker of a sound tiny checkpoint, but for what `change` does to its directory."""

    def make(tmp_path: Path) -> list[Any]:
        from tests import tiny

        path = (tiny.make_smolvlm if vision else tiny.make_llama)(tmp_path / "model")
        change(path)
        return [path, *words]

    return make


def _template(source: str, vision: bool = False) -> Callable[[Path], list[Any]]:
    return _checkpoint(lambda path: (path / JINJA).write_text(source, encoding="utf-8"), vision=vision)


def _edited(name: str, **fields: Any) -> Callable[[Path], object]:
    """Returns a change of fields of a JSON file."""

    def change(path: Path) -> None:
        content = json.loads((path / name).read_text(encoding="utf-8")) if (path / name).exists() else {}
        (path / name).write_text(json.dumps({**content, **fields}), encoding="utf-8")

    return change


def _config(**fields: Any) -> Callable[[Path], list[Any]]:
    return _checkpoint(_edited(CONFIG, **fields))


def _without_jinja(*changes: Callable[[Path], object]) -> Callable[[Path], list[Any]]:
    def change(path: Path) -> None:
        (path / JINJA).unlink()
        for each in changes:
            each(path)

    return _checkpoint(change)


def _named(path: Path) -> None:
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("x")


def _both(*changes: Callable[[Path], object]) -> Callable[[Path], list[Any]]:
    return _checkpoint(lambda path: [change(path) for change in changes])


def _larger_vocabulary(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["zzz"] = 999
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def _token_beyond(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = len(tokenizer["model"]["vocab"])
    fillers = [f"<filler {i}>" for i in range(first, 400)]
    for token_id, text in enumerate([*fillers, "<beyond>"], start=first):
        tokenizer["added_tokens"].append({"id": token_id, "content": text, "special": True, **flags})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


TOKEN = {"content": "<extra>", "special": True}
CASES = [
    BrokenCase("syntax error", _template("{% for x in %}"), PackageError, "--no-chat-template"),
    BrokenCase("unclosed block", _template("{% if messages %}x"), PackageError, "cannot be run"),
    BrokenCase("unknown filter", _template("{{ messages | shuffle }}"), PackageError, "No filter named 'shuffle'"),
    BrokenCase("unknown test", _template("{{ messages is funny }}"), PackageError, "No test named 'funny'"),
    BrokenCase("unknown function", _template("{{ today() }}"), PackageError, "'today' is undefined"),
    BrokenCase("endless template", _template(ENDLESS), PackageError, "more than 100,000 steps"),
    BrokenCase("huge template", _template("a" * (1 << 21)), PackageError, "2,097,152 characters"),
    BrokenCase(
        "template refuses a question",
        _template("{{ raise_exception('only for tools') }}"),
        PackageError,
        "refuses these messages: only for tools",
    ),
    BrokenCase(
        "template that is not UTF-8",
        _checkpoint(lambda path: (path / JINJA).write_bytes(b"\xff\xfe{{ x }}")),
        PackageError,
        "chat_template.jinja is not UTF-8 text",
    ),
    BrokenCase(
        "template that is a number",
        _without_jinja(_edited(CONFIG, chat_template=5)),
        PackageError,
        "has '5' as its chat template",
    ),
    BrokenCase(
        "named templates without a default",
        _without_jinja(_edited(CONFIG, chat_template=[{"name": "rag", "template": "x"}])),
        PackageError,
        "none is named 'default'",
    ),
    BrokenCase(
        "only an additional template", _without_jinja(_named), PackageError, "tool_use.jinja is a chat template"
    ),
    BrokenCase(
        "syntax error in processor_config.json",
        _without_jinja(_edited("processor_config.json", chat_template="{{")),
        PackageError,
        "cannot be run",
    ),
    BrokenCase(
        "two wishes for a template",
        _checkpoint(lambda path: None, "--no-chat-template", "--chat-template", "x"),
        UsageError,
        "not allowed with argument",
    ),
    BrokenCase(
        "template without an image marker",
        _template(TURNS + "{{ p.text }}" + ENDS, vision=True),
        PackageError,
        "writes 0 image markers for 1 pictures",
    ),
    BrokenCase(
        "template with two image markers",
        _template(
            TURNS + "{% if p.type == 'image' %}<image><image>{% else %}{{ p.text }}{% endif %}" + ENDS, vision=True
        ),
        PackageError,
        "writes 2 image markers for 1 pictures",
    ),
    BrokenCase(
        "template that takes parts for text",
        _template("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", vision=True),
        PackageError,
        "cannot be run",
    ),
    BrokenCase(
        "tokenizer that is none",
        _checkpoint(_edited("tokenizer.json", model={"type": "Magic"})),
        PackageError,
        "tokenizer.json: is not a tokenizer",
    ),
    BrokenCase(
        "another id for a token",
        _config(added_tokens_decoder={"300": {"content": "<|im_end|>", "special": True, "normalized": False}}),
        PackageError,
        "gives '<|im_end|>' the id 300, tokenizer.json 2",
    ),
    BrokenCase(
        "an id that is not the next one", _config(added_tokens_decoder={"999": TOKEN}), PackageError, "the id 999"
    ),
    BrokenCase(
        "added_tokens.json of another model",
        _both(
            lambda path: (path / "added_tokens.json").write_text(json.dumps({"<extra>": 7})),
            _edited(CONFIG, added_tokens_decoder=None),
        ),
        PackageError,
        "gives '<extra>' the id 7",
    ),
    BrokenCase(
        "vocabulary larger than the embedding",
        _checkpoint(_larger_vocabulary),
        PackageError,
        "the id 999, but the model has 384 tokens",
    ),
    BrokenCase(
        "template with a token beyond the embedding",
        _both(_token_beyond, lambda path: (path / JINJA).write_text("{{ messages[0].content }}<beyond>")),
        PackageError,
        "gives the id 400, the model's embedding has 384 rows",
    ),
    BrokenCase("tokens as a list", _config(added_tokens_decoder=[1]), PackageError, "is a list, expected an object"),
    BrokenCase("token without a text", _config(added_tokens_decoder={"9": {}}), PackageError, "expected a token with"),
    BrokenCase(
        "token flag that is a number",
        _config(added_tokens_decoder={"275": {**TOKEN, "lstrip": 2}}),
        PackageError,
        "expected true or false",
    ),
    BrokenCase("id that is a word", _config(added_tokens_decoder={"x": TOKEN}), PackageError, "has the id 'x'"),
    BrokenCase("special token that is a number", _config(bos_token=1), PackageError, "'bos_token' is '1'"),
    BrokenCase(
        "special tokens as a text", _config(extra_special_tokens="x"), PackageError, "is a str, expected a list"
    ),
    BrokenCase("tokenizer class as a number", _config(tokenizer_class=3), PackageError, "expected a class's name"),
    BrokenCase(
        "tokenizer class that builds its own steps",
        _config(tokenizer_class="GemmaTokenizer"),
        UnsupportedModelError,
        "does not take tokenizer.json as it is",
    ),
    BrokenCase(
        "tokenizer class for another model",
        _both(
            _edited("tokenizer.json", model=UNIGRAM, pre_tokenizer=None, decoder=None),
            _edited(CONFIG, tokenizer_class="LlamaTokenizer"),
        ),
        UnsupportedModelError,
        "needs a BPE with merges",
    ),
    BrokenCase(
        "special tokens that are split", _config(split_special_tokens=True), UnsupportedModelError, "set it to false"
    ),
    BrokenCase(
        "answers whose spaces are cleaned",
        _both(_edited("tokenizer.json", model=UNIGRAM), _edited(CONFIG, clean_up_tokenization_spaces=True)),
        UnsupportedModelError,
        "takes spaces out of answers",
    ),
]
