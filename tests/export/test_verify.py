"""verify_package as a whole, on a package that the pipeline wrote; and what it says when it cannot run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgevlm.errors import BackendError, ParityError
from edgevlm.package import open_package
from export import parity, verify
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.verify_case import build_package, copy_with_config, corrupt


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bluelm_v(tmp_path_factory.mktemp("source") / "tiny-vlm")


@pytest.fixture(scope="module")
def package(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ExportOptions(scheme="w4g32", verify=False)
    return export_package(source, tmp_path_factory.mktemp("package") / "tiny-w4g32", options)


def test_without_torch_the_transformers_part_is_unverified_and_the_rest_runs(
    package: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "is_available", lambda: False)
    stages: list[str] = []
    entries = verify.verify_package(package, source, progress=lambda stage, done, total: stages.append(stage))
    unverified = [entry for entry in entries if entry.status == "unverified"]
    assert [entry.stage for entry in unverified] == list(parity.STAGES)
    assert all("pip install 'edgevlm[reference]'" in entry.detail for entry in unverified)
    rest = [entry for entry in entries if entry.status != "unverified"]
    assert {entry.stage for entry in rest} == {"stored weights", "text", "vision features", "picture prompts"}
    assert all(entry.status == "pass" for entry in rest), rest
    verify.raise_on_failure(entries)
    assert stages
    n_positions = {entry.stage: int(entry.detail.split()[0]) for entry in rest if entry.metric == "mean KL"}
    assert set(n_positions) == {"text", "picture prompts"} and min(n_positions.values()) >= 1000


def test_the_package_is_not_changed_and_nothing_is_left_beside_it(package: Path, source: Path) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    verify.verify_package(package, source, reference=False, n_positions=64)
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    assert [path.name for path in package.parent.iterdir()] == [package.name]


def test_reference_wanted_but_missing(package: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "is_available", lambda: False)
    with pytest.raises(BackendError, match="torch and transformers"):
        verify.verify_package(package, source, reference=True)


def test_without_the_checkpoint_everything_is_unverified(package: Path) -> None:
    entries = verify.verify_package(package, None)
    assert entries and {entry.status for entry in entries} == {"unverified"}
    assert all("--source" in entry.detail for entry in entries)


def test_a_corrupted_package_fails(package: Path, source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    corrupt(open_package(broken), "transposed scales")
    entries = verify.verify_package(broken, source, reference=False, n_positions=128)
    assert {(entry.stage, entry.status) for entry in entries} >= {("stored weights", "fail"), ("text", "fail")}
    with pytest.raises(ParityError, match="stored weights against own fp32 graphs"):
        verify.raise_on_failure(entries)


def test_another_checkpoint_is_refused_by_name(package: Path, tmp_path: Path) -> None:
    other = tiny.make_llama(tmp_path / "llama")
    with pytest.raises(ParityError, match="the package is a 'bluelm_v', llama is a 'llama'"):
        verify.verify_package(package, other, reference=False)


def test_a_checkpoint_of_other_shapes_is_refused(package: Path, source: Path, tmp_path: Path) -> None:
    other = tiny.make_bluelm_v(tmp_path / "other", text={"num_key_value_heads": 1})
    with pytest.raises(ParityError, match="other layers"):
        verify.verify_package(package, other, reference=False)


def test_other_weights_of_the_same_shapes_fail(package: Path, tmp_path: Path) -> None:
    other = tiny.make_bluelm_v(tmp_path / "other", seed=3)
    entries = verify.verify_package(package, other, reference=False, n_positions=128)
    assert {entry.stage for entry in entries if entry.status == "fail"} >= {"stored weights", "text"}


@pytest.mark.reference
def test_with_transformers_every_stage_is_verified(package: Path, source: Path) -> None:
    pytest.importorskip("torch")
    entries = verify.verify_package(package, source, reference=True, n_positions=128)
    assert {entry.status for entry in entries} == {"pass"}, entries
    assert {entry.stage for entry in entries} >= set(parity.STAGES)


@pytest.mark.reference
def test_a_template_and_a_tile_budget_of_the_user_are_compared_with(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    template = "{% for message in messages %}<|im_start|>Q: {{ message['content'] }}<|im_end|>{% endfor %}A:"
    options = ExportOptions(scheme="w8", verify=False, chat_template=template, max_tiles=4)
    package = export_package(source, tmp_path / "package", options)
    entries = verify.verify_package(package, source, reference=True, n_positions=64)
    assert {entry.status for entry in entries} == {"pass"}, entries


@pytest.mark.reference
def test_a_wrong_config_fails_against_transformers(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    wrong = copy_with_config(source, tmp_path / "wrong", text={"rms_norm_eps": 1e-2})
    from export.reference.load import load_reference

    reference = parity.expect(load_reference(source), 4)
    package = build_package(wrong, tmp_path / "package")
    from tests.verify_case import image_token_id, session_of

    entries = parity.compare(session_of(package), reference, image_token_id(package))
    assert "fail" in {entry.status for entry in entries}
