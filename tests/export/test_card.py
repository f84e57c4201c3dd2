"""The model card: front matter that a YAML reader accepts, the numbers of the manifest, nothing that breaks a table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.spec import Manifest, ParityEntry, TensorError
from export.card import SCHEME_TEXT, model_card
from export.quant.scheme import parse_language_scheme
from tests import tiny
from tests.verify_case import build_package


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = tmp_path_factory.mktemp("card")
    package = build_package(tiny.make_smolvlm(directory / "source"), directory / "package", "w4g32", "w8")
    entries = (
        ParityEntry("logits", "transformers", "max |error|", "pass", 2.5e-5, 1.0, "160 rows"),
        ParityEntry("text", "own fp32 graphs", "mean KL", "unverified", detail="run\nedgevlm verify"),
    )
    return replace(package.manifest, parity=entries, versions={"edgevlm": "0.1.0", "onnxruntime": "1.32.0"})


def front_matter(card: str) -> dict[str, str]:
    assert card.startswith("---\n")
    block = card.split("---\n")[1]
    return dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)


def test_front_matter(manifest: Manifest) -> None:
    card = model_card(manifest, licence="apache-2.0", base_model="HuggingFaceTB/SmolVLM-256M-Instruct")
    fields = front_matter(card)
    assert fields["license"] == "apache-2.0"
    assert fields["base_model"] == "HuggingFaceTB/SmolVLM-256M-Instruct"
    assert fields["pipeline_tag"] == "image-text-to-text"
    assert "- w4g32\n" in card and "- smolvlm\n" in card


def test_a_licence_that_is_not_known_is_not_invented(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert "license" not in front_matter(card)
    assert "states no licence" in card


@pytest.mark.parametrize("text", ["yes", "a: b", "1.0", "- x", 'quote " and \\ slash', "#x"])
def test_odd_names_are_quoted_in_yaml(manifest: Manifest, text: str) -> None:
    value = front_matter(model_card(manifest, licence=text))["license"]
    assert value.startswith('"') and value.endswith('"')


def test_a_language_model_has_no_picture_lines(manifest: Manifest) -> None:
    card = model_card(replace(manifest, processor=None, prompt=None))
    assert front_matter(card)["pipeline_tag"] == "text-generation"
    assert "picture" not in card and "vision tower" not in card


def test_numbers_and_tables(manifest: Manifest) -> None:
    card = model_card(manifest)
    for size in manifest.sizes:
        assert f"| {size.component} | {size.parameters:,} |" in card
    assert f"| `{manifest.quant.worst_tensors[0].name}` |" in card
    assert "| logits | transformers | max \\|error\\| | 2.5e-05 | 1 | pass | 160 rows |" in card
    assert "| unverified | run edgevlm verify |" in card
    assert "at most 17 tiles of 32 px, 4 tokens each" in card


def test_tables_keep_their_columns(manifest: Manifest) -> None:
    quant = replace(manifest.quant, worst_tensors=(TensorError("a|b`c", "w8", 0.1),), overrides=((r"x|y", "w8"),))
    card = model_card(replace(manifest, quant=quant, source="a`b|c\nd"))
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block


@pytest.mark.parametrize("scheme", SCHEME_TEXT)
def test_schemes_are_real(scheme: str) -> None:
    parse_language_scheme(scheme)


def test_no_machine_path(manifest: Manifest, tmp_path: Path) -> None:
    assert str(tmp_path.parent) not in model_card(manifest)
