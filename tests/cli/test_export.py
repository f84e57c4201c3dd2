"""`edgevlm export` and `verify` on tiny checkpoints."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.main import main
from export.quant.rules import DEFAULT_VISION
from tests.tiny import make_bluelm_v, make_llama

AsJson = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random bluelm_v checkpoint."""
    return make_bluelm_v(tmp_path_factory.mktemp("checkpoints") / "small")


def documented(command: str) -> set[str]:
    """Returns the keys that docs/cli.md promises for --json."""
    return set(importlib.import_module(f"edgevlm.cli.{command}").JSON_FIELDS)


def test_export_prints_the_path_and_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), "--scheme", "w4g32", "--no-reference"]) == 0
    out, err = capsys.readouterr()
    assert out == "small-edgevlm-w4g32\n"
    assert "connector" in err and "total" in err
    assert "largest quantisation errors" in err and "mean KL" in err and "unverified" in err
    assert main(["run", out.strip(), "What is this?", "--max-new-tokens", "2"]) == 0


def test_json_and_force(checkpoint: Path, tmp_path: Path, as_json: AsJson) -> None:
    words = ("export", checkpoint, "-o", tmp_path / "package", "--scheme", "w8", "--no-verify", "--name", "renamed")
    found = as_json(*words, "--override", ".*down_proj.weight=fp16", "--context", 128)
    assert set(found) == documented("export")
    assert (found["name"], found["language_scheme"], found["vision_scheme"]) == ("renamed", "w8", DEFAULT_VISION)
    assert {size["component"] for size in found["sizes"]} >= {"vision", "connector", "layers"}
    manifest = as_json("inspect", found["package"])["manifest"]
    assert manifest["decoder"]["default_context"] == 128
    assert manifest["quant"]["overrides"] == [[".*down_proj.weight", "fp16"]]

    assert as_json(*words, code=2)["error"]["type"] == "UsageError"
    assert as_json(*words, "--force")["package"] == found["package"]


def test_chat_template_is_carried(checkpoint: Path, tmp_path: Path, as_json: AsJson) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    package = tmp_path / "package"
    as_json("export", checkpoint, "-o", package, "--scheme", "fp32", "--no-verify", "--chat-template", template)
    assert (package / "chat_template.jinja").read_text() == template.read_text()
    assert "cannot be read" in as_json("export", checkpoint, "--chat-template", "none", code=2)["error"]["message"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--scheme", "w3g32"), 2),
        (("--override", "nothing_matches=w8"), 2),
        (("--override", "(=w8"), 2),
        (("--context", "100000"), 2),
        (("--max-tiles", "1000"), 2),
    ],
)
def test_refused_options(words: tuple[str, ...], code: int, checkpoint: Path, tmp_path: Path, as_json: AsJson) -> None:
    as_json("export", checkpoint, "-o", tmp_path / "package", "--no-verify", *words, code=code)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_model_names_the_field(tmp_path: Path, as_json: AsJson) -> None:
    source = make_llama(tmp_path / "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_act": "tanh_of_mine"}))
    error = as_json("export", source, "-o", tmp_path / "package", code=4)["error"]
    assert error["type"] == "UnsupportedModelError" and "hidden_act" in error["message"]


def test_verify(checkpoint: Path, tmp_path: Path, as_json: AsJson, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "package"
    as_json("export", checkpoint, "-o", package, "--scheme", "w8", "--no-verify")
    found = as_json("verify", package, "--source", checkpoint, "--no-reference")
    assert set(found) == documented("verify") - {"error"}
    assert found["passed"] is True
    assert {entry["status"] for entry in found["parity"]} == {"pass", "unverified"}

    other = make_bluelm_v(tmp_path / "other", seed=1)
    failed = as_json("verify", package, "--source", other, "--no-reference", code=5)
    assert set(failed) == documented("verify") and failed["passed"] is False
    assert failed["error"]["exit_code"] == 5 and "fail" in {entry["status"] for entry in failed["parity"]}
    assert main(["verify", str(package), "--source", str(other), "--no-reference"]) == 5
    out, err = capsys.readouterr()
    assert "fail" in out and err.startswith("edgevlm: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, child: Callable[..., subprocess.Popen[str]], number: int, code: int, word: str
) -> None:
    process = child("export", checkpoint, "-o", tmp_path / "package", "--no-reference")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".package.*.partial/onnx/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", f"edgevlm: {word}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_applied_is_told_and_kept(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "no_repeat_ngram_size": 3}))
    assert main(["export", str(source), "-o", str(tmp_path / "package"), "--no-verify"]) == 0
    told = "source: generation_config.json: no_repeat_ngram_size 3 is not applied when an answer is made"
    assert caplog.messages == [told]
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "package")]) == 0
    assert "no_repeat_ngram_size 3 (of generation_config.json)" in capsys.readouterr().out
