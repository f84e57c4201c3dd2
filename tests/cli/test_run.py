"""`edgevlm run`, `inspect` and `bench` on a tiny package."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm.cli.main import main

AsJson = Callable[..., dict[str, Any]]
Child = Callable[..., "subprocess.Popen[str]"]


def documented(command: str) -> set[str]:
    """Returns the keys that docs/cli.md promises for --json."""
    return set(importlib.import_module(f"edgevlm.cli.{command}").JSON_FIELDS)


def test_run_streams_the_answer(
    package: str, picture: str, capsys: pytest.CaptureFixture[str], as_json: AsJson
) -> None:
    words = ["run", package, "What is this?", "--image", picture, "--max-new-tokens", "8"]
    expected = as_json(*words)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == expected["text"] + "\n"
    assert err == ""


def test_run_json(package: str, picture: str, as_json: AsJson) -> None:
    response = as_json("run", package, "What is this?", "--image", picture, "--max-new-tokens", 5)
    assert set(response) == documented("run")
    assert len(response["token_ids"]) <= 5
    assert response["n_tiles"] > 1 and response["n_image_tokens"] == 4 * response["n_tiles"]
    assert set(response["timings"]) == {"load_s", "encode_s", "prefill_s", "decode_s", "first_token_s", "total_s"}


def test_fit_uses_fewer_tiles_where_the_context_would_overflow(package: str, tmp_path: Path, as_json: AsJson) -> None:
    big = tmp_path / "big.png"
    Image.new("RGB", (84, 84), (30, 30, 200)).save(big)
    words = ("run", package, "hi", "--image", big, "--context", 110, "--max-new-tokens", 64)
    refused = as_json(*words, code=7)["error"]["message"]
    assert "10 tiles" in refused and "the context is 110" in refused and "--fit" in refused
    fitted = as_json(*words, "--fit")
    assert 1 < fitted["n_tiles"] <= fitted["tile_budget"] + 1 < 10
    assert fitted["n_prompt_tokens"] + 64 <= 110


def test_timings_go_to_stderr(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", package, "Hello", "--max-new-tokens", "3", "--timings"]) == 0
    out, err = capsys.readouterr()
    assert "prefill" in err and "tokens, " in err
    assert "encode pictures" not in err, "there was none"
    assert "prefill" not in out


def test_prompt_from_stdin(package: str, monkeypatch: pytest.MonkeyPatch, as_json: AsJson) -> None:
    direct = as_json("run", package, "Hello", "--max-new-tokens", 4)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    assert as_json("run", package, "-", "--max-new-tokens", 4)["token_ids"] == direct["token_ids"]


def test_seed_repeats_and_changes(package: str, as_json: AsJson) -> None:
    words = ("run", package, "Hello", "--max-new-tokens", 12, "--temperature", 2, "--seed")
    first, again, other = (as_json(*words, seed)["token_ids"] for seed in (1, 1, 2))
    assert first == again != other


def test_stop_text_ends_the_answer(package: str, as_json: AsJson) -> None:
    whole = as_json("run", package, "Hello", "--max-new-tokens", 12)["text"]
    assert len(whole) > 3
    stop = whole[2]
    cut = as_json("run", package, "Hello", "--max-new-tokens", 12, "--stop", stop)
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_trace(package: str, picture: str, tmp_path: Path, as_json: AsJson) -> None:
    as_json("run", package, "What?", "--image", picture, "--max-new-tokens", 2, "--trace", tmp_path / "t.json")
    names = {event["name"].split()[0] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"encode", "prefill", "decode", "release"} <= names


def test_inspect_text(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", package, "--hash"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "architecture     bluelm_v" in out and "onnx/vision_encoder.onnx" in out and "hashes           match" in out


def test_inspect_json(package: str, as_json: AsJson) -> None:
    found = as_json("inspect", package)
    assert set(found) == documented("inspect")
    assert found["hashes"] == "unchecked"
    assert found["manifest"] == json.loads((Path(package) / "edgevlm.json").read_text())


def test_bench(package: str, picture: str, as_json: AsJson, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", package, "--prompt-tokens", "140", "--new-tokens", "4", "--repeat", "2", "--image", picture]
    result = as_json(*words)
    assert set(result) == documented("bench")
    assert [stage["stage"] for stage in result["stages"]] == ["load", "encode", "prefill", "decode"]
    for stage in result["stages"]:
        assert 0 < stage["min_s"] <= stage["median_s"] <= stage["max_s"]
    prefill = result["stages"][2]
    assert prefill["rate"] == pytest.approx(140 / prefill["median_s"]) and prefill["unit"] == "tok/s"

    assert main(words) == 0
    out = capsys.readouterr().out
    assert "prefill" in out and "medians of 2" in out


def test_bench_refuses_what_does_not_fit(package: str, as_json: AsJson) -> None:
    error = as_json("bench", package, "--prompt-tokens", 512, "--new-tokens", 64, code=7)["error"]
    assert error["type"] == "ContextFullError" and "512" in error["message"]


def test_interrupt_ends_with_130(package: str, child: Child) -> None:
    process = child("run", package, "Hello", "--max-new-tokens", 400, "--temperature", 2, "--seed", 1)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "edgevlm: interrupted\n")
