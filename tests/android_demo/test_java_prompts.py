"""Prompts of the Java library: the ids of the Python runtime, for every architecture; templates beyond the demo's."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES
from conversations import make_conversations, python_ids

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import ParityError, UnsupportedModelError
from edgevlm.package import Package, open_package
from export.device.chat_check import check_program
from export.device.chat_program import compile_chat_template
from export.device.files import CHAT_PATH, add_device_files
from tests.chat_families import MARKUP, STRINGS, conversation
from tests.chat_families import SPECIAL as FAMILY_SPECIAL
from tests.tiny import text_files

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
ARCHITECTURES = ("llama", "qwen2", "idefics3", "smolvlm", "bluelm_v")


def java_ids(java: Any, classes: Path, package: Path, conversations: list[Any], scratch: Path) -> list[Any]:
    """Returns ids, or the kind of refusal, of each conversation."""
    given, found = scratch / "conversations.json", scratch / "results.json"
    given.write_text(json.dumps(conversations), encoding="utf-8")
    java(classes, "org.edgevlm.PromptRunner", package, given, found)
    return list(json.loads(found.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ids_are_pythons(name: str, packages: dict[str, Path], java: Any, classes: Path, tmp_path: Path) -> None:
    package = open_package(packages[name])
    conversations = make_conversations(package, 150)
    assert any(message["pictures"] for c in conversations for message in c) == package.has_vision
    expected = [python_ids(package, conversation) for conversation in conversations]
    assert java_ids(java, classes, packages[name], conversations, tmp_path) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_known_models(
    name: str, packages: dict[str, Path], java: Any, classes: Path, tmp_path: Path
) -> None:
    """The template in a copy of a package: the Java prompts are still the Python runtime's."""
    package = _with_template(packages["llama"], TEMPLATES[name], tmp_path / "package")
    conversations = make_conversations(package, 60, seed=9)
    expected = [python_ids(package, conversation) for conversation in conversations]
    assert java_ids(java, classes, package.path, conversations, tmp_path) == expected
    assert sum(isinstance(ids, list) for ids in expected) > 10


def families_for_phones() -> list[str]:
    """Those of tests/chat_families.py that a phone can do; what it cannot do is refused by name at export."""
    found = []
    for name, source in STRINGS.items():
        try:
            compile_chat_template(source, SPECIAL)
        except UnsupportedModelError as refusal:
            assert "which a device's templates do not have" in str(refusal)
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("name", families_for_phones())
@pytest.mark.parametrize("hostile", [False, True], ids=["ordinary", "hostile"])
def test_what_everybody_wrote(
    name: str, hostile: bool, packages: dict[str, Path], java: Any, classes: Path, tmp_path: Path
) -> None:
    """Thinking assistants, templates that look into texts, users who type tokens: the ids of the Python runtime."""
    tokenizer = text_files("", (*FAMILY_SPECIAL, *MARKUP), bos="<s>", eos="</s>")["tokenizer.json"]
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] not in MARKUP
    files = {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": json.dumps(SPECIAL)}
    package = _with_template(packages["llama"], STRINGS[name], tmp_path / "package", files)
    rng = random.Random(f"{name} {hostile}")
    conversations = [
        [{"role": m["role"], "text": m["content"], "pictures": []} for m in conversation(rng, False, hostile)]
        for _ in range(40)
    ]
    expected = [python_ids(package, messages) for messages in conversations]
    assert java_ids(java, classes, package.path, conversations, tmp_path) == expected
    assert sum(isinstance(ids, list) for ids in expected) >= 10


def test_most_families_are_for_phones() -> None:
    assert len(families_for_phones()) > len(STRINGS) // 2


def _with_template(source: Path, template: str, target: Path, files: dict[str, str] | None = None) -> Package:
    import shutil

    shutil.copytree(source, target)
    manifest = json.loads((target / "edgevlm.json").read_text(encoding="utf-8"))
    changed = {"chat_template.jinja": template, **(files or {})}
    for name, content in changed.items():
        (target / name).write_text(content, encoding="utf-8")
    for entry in manifest["files"]:
        if entry["path"] in changed:
            entry["size_bytes"] = (target / entry["path"]).stat().st_size
    (target / "edgevlm.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert add_device_files(target).missing == ()
    return open_package(target)


def test_another_program_is_noticed(packages: dict[str, Path], java: Any, classes: Path, tmp_path: Path) -> None:
    """The control: one changed text in the program, and ids differ."""
    package = _with_template(packages["llama"], TEMPLATES["chatml"], tmp_path / "package")
    chat = package.path / CHAT_PATH
    text = chat.read_text(encoding="utf-8")
    assert "<|im_end|>" in text
    chat.write_text(text.replace("<|im_end|>", "<|im-end|>"), encoding="utf-8")
    conversations = make_conversations(package, 5)
    expected = [python_ids(package, conversation) for conversation in conversations]
    assert java_ids(java, classes, package.path, conversations, tmp_path) != expected


def test_a_wrong_program_fails_the_export() -> None:
    template = ChatTemplate(TEMPLATES["chatml"], SPECIAL)
    program = compile_chat_template(TEMPLATES["chatml"], SPECIAL)
    assert check_program(program, template, as_list=False) > 50
    with pytest.raises(ParityError, match="renders"):
        check_program([*program, ["text", "!"]], template, as_list=False)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{% macro a() %}x{% endmacro %}{{ a() }}", "Macro"),
        ("{{ messages | map(attribute='role') | list }}", "map"),
        ("{{ messages[0].content | tojson(indent=2) }}", "named arguments"),
        ("{{ messages[0].content.encode('utf-8') }}", "encode"),
        ("{% for a in messages recursive %}{{ loop(a) }}{% endfor %}", "recursive"),
        ("{{ messages", "parsed"),
        ("{% include 'x' %}", "Include"),
    ],
)
def test_what_templates_may_not_use_is_named(source: str, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        compile_chat_template(source, {})


def test_a_branch_that_cannot_run_may_use_anything() -> None:
    source = "{% if tools %}{{ tools | map('tojson') | join }}{% endif %}{{ messages[0]['content'] }}"
    program = compile_chat_template(source, {})
    assert program == [["print", ["item", ["item", ["name", "messages"], ["const", 0]], ["const", "content"]]]]


def test_a_template_without_a_device_form_is_recorded(packages: dict[str, Path], tmp_path: Path) -> None:
    package = _with_template(packages["llama"], TEMPLATES["chatml"], tmp_path / "package")
    broken = replace(package, path=package.path)
    template = broken.path / "chat_template.jinja"
    source = "{% macro a() %}x{% endmacro %}{{ a() }}"
    template.write_text(source + " " * (template.stat().st_size - len(source)), encoding="utf-8")
    entry = add_device_files(broken.path)
    assert entry.chat is None and "Macro" in entry.missing[0]
    assert open_package(broken.path).manifest.device == entry
