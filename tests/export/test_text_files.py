"""What an export makes of a checkpoint's text files: transformers' ids as stored, and one template or none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import UsageError
from edgevlm.package import open_package
from edgevlm.prompt import build_segments, segment_ids
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Tokenizer
from export.checkpoint import Checkpoint, open_checkpoint
from export.checkpoints.chat_files import carried, own_template
from export.checkpoints.tokenizer_files import unified
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.chat_families import LISTS, STRINGS
from tests.golden import make_texts
from tests.tokenizer_file_cases import CASES, strings

GOLDEN = json.loads(gzip.decompress(make_texts.PATH.read_bytes()))
ONE_TILE = TilePlan("square", 28, 1, 1, ((28, 28),), (0, 0), False)
FAMILIES = [(name, False) for name in STRINGS] + [(name, True) for name in LISTS]
FAMILY = Tokenizer(Backend.from_str(json.dumps(make_texts.family_files()["tokenizer.json"])))


@pytest.mark.parametrize(("name", "as_list"), FAMILIES)
def test_chats_equal_transformers(name: str, as_list: bool) -> None:
    """The slow comparison with the program itself is tests/reference/test_chat_templates.py."""
    template = ChatTemplate((LISTS if as_list else STRINGS)[name], make_texts.SPECIAL_NAMES, name)
    image = FAMILY.token_id("<image>") or -1
    spec = PromptSpec("<image>", image, 1, content_format="list") if as_list else None
    found = []
    for messages in make_texts.family_conversations(name, as_list):
        n_images = sum(part["type"] == "image" for m in messages for part in m["content"]) if as_list else 0
        try:
            segments = build_segments(messages, template, FAMILY, spec, [ONE_TILE] * n_images)
            found.append(segment_ids(segments, image))
        except UsageError:
            found.append(None)
    assert found == GOLDEN["chats"][f"{name} {as_list}"]
    assert any(found)


def case_ids(files: dict[str, bytes]) -> list[list[int]]:
    tokenizer = Tokenizer(Backend.from_str(files["tokenizer.json"].decode()))
    return [tokenizer.encode(text, allow_special=True) for text in strings(3, make_texts.N_STRINGS)]


@pytest.mark.parametrize(("name", "kind", "change"), CASES, ids=[name for name, *_ in CASES])
def test_one_tokenizer_equals_transformers(name: str, kind: str, change: Any) -> None:
    """The slow comparison with the program itself is tests/reference/test_tokenizer_files.py."""
    files = make_texts.case_files(name, kind, change)
    data = {file: json.dumps(content).encode() for file, content in files.items()}
    assert case_ids(unified(data, files["config.json"]["model_type"], "here")) == GOLDEN["files"][name]


def test_tokenizer_json_alone_gives_other_ids() -> None:
    """Negative control: of the first case."""
    name, kind, change = CASES[0]
    files = make_texts.case_files(name, kind, change)
    assert case_ids({"tokenizer.json": json.dumps(files["tokenizer.json"]).encode()}) != GOLDEN["files"][name]


def test_files_that_agree_stay_as_they_are(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "source")
    files = open_checkpoint(source).files
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert files[name] == (source / name).read_bytes()


# ---- chat templates

PLACES = {
    "chat_template.jinja": "jinja",
    "additional_chat_templates/default.jinja": "additional",
    "chat_template.json": json.dumps({"chat_template": "legacy"}),
    "processor_config.json": json.dumps({"chat_template": "processor"}),
    "tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": "tokenizer"}]}),
}
PROCESSOR_ORDER = ("processor", "legacy", "jinja", "additional", "tokenizer")
TOKENIZER_ORDER = ("additional", "jinja", "tokenizer", "legacy", "processor")


@pytest.mark.parametrize(("with_processor", "order"), [(True, PROCESSOR_ORDER), (False, TOKENIZER_ORDER)])
def test_places_of_templates(with_processor: bool, order: tuple[str, ...]) -> None:
    files = {name: text.encode() for name, text in PLACES.items()}
    for expected in order:
        assert own_template(files, with_processor) == expected
        del files[next(name for name, text in PLACES.items() if expected in text and name in files)]
    assert own_template(files, with_processor) is None


@pytest.mark.reference
def test_places_are_those_of_transformers(tmp_path: Path) -> None:
    """The processor's three places, and the tokenizer's three, one taken away after the other."""
    transformers = pytest.importorskip("transformers")
    written = {**make_texts.family_files(), "config.json": {"model_type": "llama"}}
    for name, content in written.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    places = dict(PLACES)
    config = {**written["tokenizer_config.json"], **json.loads(places["tokenizer_config.json"])}
    places["tokenizer_config.json"] = json.dumps(config)
    (tmp_path / "additional_chat_templates").mkdir()
    for name, text in places.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def default(found: Any) -> Any:
        return found.get("default") if isinstance(found, dict) else found

    for expected, name in zip(
        TOKENIZER_ORDER[:3], ("additional_chat_templates/default.jinja", "chat_template.jinja", ""), strict=True
    ):
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert default(theirs.chat_template) == expected
        if name:
            (tmp_path / name).unlink()
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    for expected, name in zip(
        PROCESSOR_ORDER[:3], ("processor_config.json", "chat_template.json", "chat_template.jinja"), strict=True
    ):
        found, _ = transformers.ProcessorMixin.get_processor_dict(tmp_path)
        assert default(found["chat_template"]) == expected
        (tmp_path / name).unlink()


def test_a_template_of_the_processor_is_exported(tmp_path: Path) -> None:
    source = tiny.make_smolvlm(tmp_path / "source")
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    (source / "processor_config.json").write_text(json.dumps({"chat_template": template}))
    package = open_package(export_package(source, tmp_path / "package", ExportOptions(scheme="fp32", verify=False)))
    assert ChatTemplate.open(package).source == template


def test_a_package_without_a_template(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "source")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{% broken"}))
    options = ExportOptions(scheme="fp32", verify=False, no_chat_template=True)
    package = open_package(export_package(source, tmp_path / "package", options))
    assert ChatTemplate.open(package).source is None
    assert build_segments(
        [{"role": "user", "content": "hi"}], ChatTemplate.open(package), Tokenizer.open(package), None
    )


def test_a_template_for_conversations_with_a_system_text_is_taken(tmp_path: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(tiny.make_llama(tmp_path / "source"))
    refusal = "{% if messages[0].role != 'system' %}{{ raise_exception('a system text first') }}{% endif %}"
    needs_system = refusal + "{{ messages | length }}"
    assert carried(checkpoint, None, tiny.VOCAB, template=needs_system)["chat_template.jinja"].decode() == needs_system
