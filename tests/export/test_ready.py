"""What an export needs late is checked first: nothing is built and nothing is left when it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import BackendError
from export import pipeline, ready
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.pipeline import ExportOptions, export_package
from export.ready import check_ready
from tests import tiny
from tests.broken import BrokenCase
from tests.broken.exports import CASES

MAKERS = (tiny.make_llama, tiny.make_qwen2, tiny.make_bluelm_v, tiny.make_idefics3, tiny.make_smolvlm)


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were built")

    monkeypatch.setattr(pipeline, "build_model", build)
    monkeypatch.setattr(pipeline.sensitivity, "measure", build)


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_before_weights_are_built(case: BrokenCase, tmp_path: Path) -> None:
    source = case.make(tmp_path)
    with pytest.raises(case.error) as caught:
        export_package(source, tmp_path / "out" / "package", ExportOptions(reference=False))
    assert type(caught.value) is case.error and case.fragment in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_built")
def test_transformers_that_is_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.make_llama(tmp_path / "tiny")
    monkeypatch.setattr(ready, "is_available", lambda: False)
    with pytest.raises(BackendError, match="needs torch and transformers"):
        export_package(source, tmp_path / "out" / "package", ExportOptions(reference=True))
    with pytest.raises(AssertionError, match="weights were built"):  # control: the checkpoint itself is sound
        export_package(source, tmp_path / "out" / "package", ExportOptions(reference=False))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_sound_checkpoints_pass(make: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make(tmp_path / "tiny"))
    check_ready(checkpoint, arch_spec(checkpoint.config, checkpoint.files), needs_reference=False)
    assert not checkpoint.used, "no weight was read"


def test_added_tokens_may_lie_beyond_the_table(tmp_path: Path) -> None:
    """Some releases have them: never written by their templates, refused by nobody."""
    path = tiny.make_llama(tmp_path / "tiny")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    entry = {**tokenizer["added_tokens"][0], "id": 5000, "content": "<|unused|>"}
    tokenizer["added_tokens"].append(entry)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoint = open_checkpoint(path)
    check_ready(checkpoint, arch_spec(checkpoint.config, checkpoint.files), needs_reference=False)
