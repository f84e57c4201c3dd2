"""The pipeline on tiny real checkpoints: a package that opens, or an error and nothing."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import ParityError, UnsupportedModelError, UsageError
from edgevlm.package import open_package
from edgevlm.spec import ParityEntry
from export import pipeline
from export.graphs.ops import storage
from export.pipeline import ExportOptions, export_package, n_parameters, needed_bytes
from export.quant.rules import QuantPlan
from tests import tiny
from tests.verify_case import copy_with_config

ROOT = Path(__file__).resolve().parents[2]


def options(**values: Any) -> ExportOptions:
    return ExportOptions(**{"reference": False, **values})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llama(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


@pytest.fixture(scope="module")
def bluelm_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bluelm_v(tmp_path_factory.mktemp("checkpoints") / "tiny-bluelm-v")


def test_a_small_model_gets_the_mix_and_its_name(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages: dict[str, None] = {}
    path = export_package(llama, options=options(), progress=lambda stage, *_: stages.setdefault(stage))
    assert names(tmp_path) == ["tiny-llama-edgevlm-w4g32-mix"]
    package = open_package(path)
    package.check_hashes()
    manifest = package.manifest
    assert manifest.quant.language_scheme == "w4g32-mix" and manifest.source == "tiny-llama"
    assert (r"model\.embed_tokens\.weight", "w8") in manifest.quant.overrides
    assert 5 < manifest.quant.mean_bits_per_weight < 8.5
    assert 0 < len(manifest.quant.worst_tensors) <= 10
    errors = [tensor.relative_rms for tensor in manifest.quant.worst_tensors]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.05
    listed = {entry.path for entry in manifest.files}
    assert {"README.md", "config.json", "tokenizer.json", "onnx/decoder_model_merged_q4.onnx"} <= listed
    assert all("/" not in source and not source.startswith(".") for source in [manifest.source])
    assert any(entry.stage == "text" and entry.status == "pass" for entry in manifest.parity)
    assert list(stages)[:3] == ["embed_tokens", "decoder_model_merged", "measure 4-bit sensitivity"]
    assert any(stage.startswith("verify") for stage in stages) and "hash" in stages
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "mean KL" in card and str(tmp_path) not in card


def test_a_whole_model_with_a_picture_tower(bluelm_v: Path, tmp_path: Path) -> None:
    path = export_package(bluelm_v, tmp_path / "p", options(scheme="w4g32z", max_tiles=4, name="demo", context=64))
    manifest = open_package(path).manifest
    assert [graph.name for graph in manifest.graphs] == ["vision_encoder", "embed_tokens", "decoder_model_merged"]
    assert manifest.name == "demo" and manifest.decoder.default_context == 64
    assert manifest.processor is not None and manifest.processor.max_tiles == 4
    assert {size.component for size in manifest.sizes} >= {"vision", "connector", "embedding", "layers"}
    sizes = sum(size.size_bytes for size in manifest.sizes)
    stored = sum(entry.size_bytes for entry in manifest.files if entry.path.endswith("_data"))
    assert sizes == pytest.approx(stored, rel=0.2)


def test_the_same_export_twice_stores_the_same_weights(llama: Path, tmp_path: Path) -> None:
    first = open_package(export_package(llama, tmp_path / "a", options(verify=False))).manifest
    second = open_package(export_package(llama, tmp_path / "b", options(verify=False))).manifest
    assert first.quant == second.quant
    same = [entry for entry in first.files if entry in second.files]
    assert {entry.path for entry in first.files} - {entry.path for entry in same} <= {"README.md"}


def test_unverified_packages_say_so(llama: Path, tmp_path: Path) -> None:
    manifest = open_package(export_package(llama, tmp_path / "p", options(scheme="w8", verify=False))).manifest
    assert manifest.parity and {entry.status for entry in manifest.parity} == {"unverified"}


def test_a_failed_check_fails_the_export(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ParityEntry("text", "own fp32 graphs", "mean KL", "fail", 3.0, 0.7)
    monkeypatch.setattr(pipeline.verify, "verify_package", lambda *_, **__: (failed,))
    with pytest.raises(ParityError, match="mean KL"):
        export_package(llama, tmp_path / "p", options(scheme="w8"))
    assert names(tmp_path) == []


def test_wrong_codes_fail_the_export(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = storage.matmul_nbits_inputs

    def shifted(quantised: Any) -> Any:
        codes, scales, zero_points = pack(quantised)
        return codes[::-1].copy(), scales, zero_points

    monkeypatch.setattr(storage, "matmul_nbits_inputs", shifted)
    with pytest.raises(ParityError):
        export_package(llama, tmp_path / "p", options(scheme="w4g32"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "w5"}, "unknown scheme 'w5'"),
        ({"vision_scheme": "w4g32-mix"}, "whole language model"),
        ({"overrides": ((r".*nothing.*", "w8"),), "scheme": "w8"}, "matches no tensor"),
        ({"context": 100_000}, "100000 is more than the model's own 512"),
        ({"max_tiles": 2}, "needs a model with a vision tower"),
        ({"scheme": "w8", "mix_bits": 5.0}, "w8 is no mix"),
    ],
)
def test_options_that_do_not_fit_leave_nothing(
    llama: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_package(llama, tmp_path / "p", options(verify=False, **values))
    assert names(tmp_path) == []


def test_a_tile_budget_beyond_the_model_is_refused(bluelm_v: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes 1 to 16"):
        export_package(bluelm_v, tmp_path / "p", options(max_tiles=17))


def test_a_bare_tower_is_no_package(tmp_path: Path) -> None:
    source = tiny.make_dinov2(tmp_path / "tower")
    with pytest.raises(UnsupportedModelError, match="without a language model"):
        export_package(source, tmp_path / "p", options())
    assert names(tmp_path) == ["tower"]


def test_an_existing_package_is_replaced_only_with_force(llama: Path, tmp_path: Path) -> None:
    export_package(llama, tmp_path / "p", options(scheme="w8", verify=False))
    with pytest.raises(UsageError, match="--force"):
        export_package(llama, tmp_path / "p", options(scheme="w4g32", verify=False))
    assert open_package(tmp_path / "p").manifest.quant.language_scheme == "w8"
    export_package(llama, tmp_path / "p", options(scheme="w4g32", verify=False, force=True))
    assert open_package(tmp_path / "p").manifest.quant.language_scheme == "w4g32" and names(tmp_path) == ["p"]


def test_a_chat_template_is_carried(llama: Path, tmp_path: Path) -> None:
    path = export_package(llama, tmp_path / "p", options(scheme="w8", verify=False, chat_template="{{ messages }}"))
    assert (path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert open_package(path).has_file("chat_template.jinja")


def test_overrides_reach_the_graphs_and_the_manifest(llama: Path, tmp_path: Path) -> None:
    rule = (r"model\.layers\.1\..*", "fp16")
    manifest = open_package(
        export_package(llama, tmp_path / "p", options(scheme="w8", verify=False, overrides=(rule,)))
    ).manifest
    assert manifest.quant.overrides == (rule,)
    assert not any(".1." in t.name and t.scheme != "fp16" for t in manifest.quant.worst_tensors)


def test_more_bits_for_the_mix_store_more(llama: Path, tmp_path: Path) -> None:
    few = open_package(export_package(llama, tmp_path / "a", options(verify=False, mix_bits=4.6))).manifest
    many = open_package(export_package(llama, tmp_path / "b", options(verify=False, mix_bits=7.5))).manifest
    assert few.quant.mean_bits_per_weight < many.quant.mean_bits_per_weight - 1


def test_the_disk_estimate_covers_what_is_written(llama: Path, tmp_path: Path) -> None:
    checkpoint = pipeline.open_checkpoint(llama)
    spec = pipeline.arch_spec(checkpoint.config, checkpoint.files)
    assert spec.language is not None
    stored = sum(info.shape[0] * info.shape[1] for info in checkpoint.tensors().values() if len(info.shape) == 2)
    assert n_parameters(spec.language) == stored
    estimate = needed_bytes(checkpoint, spec, QuantPlan("w8"), options(verify=False))
    path = export_package(llama, tmp_path / "p", options(scheme="w8", verify=False))
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert written < estimate
    assert needed_bytes(checkpoint, spec, QuantPlan("w8"), options()) > estimate


def test_a_decision_that_differs_from_the_config_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = copy_with_config(tiny.make_llama(tmp_path / "tied"), tmp_path / "model", tie_word_embeddings=False)
    with caplog.at_level(logging.WARNING):
        export_package(source, tmp_path / "p", options(scheme="w8", verify=False))
    assert "model: config.json says tie_word_embeddings is false" in caplog.text
    assert caplog.text.count("the embedding is used as the head") == 1


KILLED = """
import sys, time
from export.pipeline import ExportOptions, export_package
def progress(stage, done, total):
    if stage.startswith("verify"):
        print("verifying", flush=True)
        time.sleep(60)
export_package(sys.argv[1], sys.argv[2], ExportOptions(scheme="w8", reference=False), progress)
"""


def test_kill_9_while_verifying_leaves_nothing_that_opens(llama: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(llama), str(tmp_path / "p")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "verifying\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.endswith(".partial") and not list(left[0].rglob("edgevlm.json"))
    export_package(llama, tmp_path / "p", options(scheme="w8", verify=False))
    assert names(tmp_path) == ["p"]
