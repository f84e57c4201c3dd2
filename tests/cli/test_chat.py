"""`edgevlm chat` from a pipe."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgevlm.model
from edgevlm.cli.chat import HELP
from edgevlm.cli.main import main
from edgevlm.model import Model

AsJson = Callable[..., dict[str, Any]]
Child = Callable[..., "subprocess.Popen[str]"]
SHORT = ("--max-new-tokens", "6")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts lines on standard input."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_two_turns_and_a_picture(
    package: str, picture: str, typed: Callable[..., None], capsys: pytest.CaptureFixture[str], as_json: AsJson
) -> None:
    lines = (f"/image {picture}", "What is this?", "", "And now?", "/quit", "never read")
    typed(*lines)
    messages = as_json("chat", package, *SHORT)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert [message["images"] for message in messages] == [[picture], [], [], []]
    assert all(message["finish_reason"] for message in messages if message["role"] == "assistant")

    typed(*lines)
    assert main(["chat", package, *SHORT]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    assert "attached" in err and "> " not in err


def test_json_keys_are_documented(package: str, typed: Callable[..., None], as_json: AsJson) -> None:
    typed()
    assert set(as_json("chat", package)) == set(importlib.import_module("edgevlm.cli.chat").JSON_FIELDS)


def test_reset_forgets(package: str, typed: Callable[..., None], as_json: AsJson) -> None:
    typed("One", "/reset", "Two")
    messages = as_json("chat", package, *SHORT)["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Two"]
    assert messages[1]["content"] == as_json("run", package, "Two", *SHORT)["text"]


def test_save_and_help(
    package: str, typed: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("Hello", f"/save {tmp_path / 'said.json'}", "/help")
    assert main(["chat", package, *SHORT]) == 0
    out, err = capsys.readouterr()
    saved = json.loads((tmp_path / "said.json").read_text())["messages"]
    assert saved[0]["content"] == "Hello" and saved[1]["content"] + "\n" == out
    assert HELP in err


class SlowTypist(io.StringIO):
    """Has typed the question only when the picture is encoded and the tower released, or ten seconds later."""

    def __init__(self, text: str, models: list[Model]) -> None:
        super().__init__(text)
        self._models = models

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline(-1 if size is None else size)
        deadline = time.monotonic() + 10
        while not line.startswith("/") and self._encoding() and time.monotonic() < deadline:
            time.sleep(0.01)
        return line

    def _encoding(self) -> bool:
        return not any(name == "release vision" for name, _, _ in self._models[0].session.timings.events)


def test_trace_shows_encoding_while_the_user_types(
    package: str, picture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_json: AsJson
) -> None:
    models: list[Model] = []
    load = edgevlm.model.load
    monkeypatch.setattr("edgevlm.model.load", lambda *words, **more: models.append(load(*words, **more)) or models[0])
    monkeypatch.setattr("sys.stdin", SlowTypist(f"/image {picture}\nWhat is this?\n", models))
    as_json("chat", package, *SHORT, "--trace", tmp_path / "t.json")
    spans = {e["name"]: e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "X"}
    typing, answering = spans["user types"], spans["answer"]
    encoding = [span for name, span in spans.items() if name.startswith(("load vision", "encode", "release vision"))]
    assert len(encoding) >= 3
    for span in encoding:
        assert typing["ts"] <= span["ts"] and span["ts"] + span["dur"] <= typing["ts"] + typing["dur"]
    assert typing["ts"] + typing["dur"] <= answering["ts"]


@pytest.mark.parametrize(("line", "code"), [("/image none.png", 6), ("/dance", 2), ("/image", 2)])
def test_a_script_stops_at_its_first_mistake(
    line: str, code: int, package: str, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed(line, "Hello")
    assert main(["chat", package, *SHORT]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("edgevlm: error: ")


def test_interrupt_cancels_the_answer_and_the_second_one_leaves(package: str, child: Child) -> None:
    process = child("chat", package, "--max-new-tokens", 450, "--temperature", 2, "--seed", 1)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("Hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "(stopped)\n"
    process.stdin.write("Hello again\n")
    process.stdin.close()
    process.stdin = None
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
