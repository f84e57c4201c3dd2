"""`edgevlm chat` from a pipe."""

from __future__ import annotations

import importlib
import io
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    fields = set(importlib.import_module("edgevlm.cli.chat").JSON_FIELDS)
    typed()
    assert set(as_json("chat", package)) == fields - {"error"}
    typed("/dance")
    assert set(as_json("chat", package, code=2)) == fields


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


@pytest.mark.parametrize(
    ("line", "code"), [("/image none.png", 6), ("/image", 2), ("/image /", 6), ("/image http://x/y.png", 2)]
)
def test_a_script_does_not_ask_without_its_picture(
    line: str, code: int, package: str, typed: Callable[..., None], as_json: AsJson
) -> None:
    typed(line, "What is this?", "Hello")
    found = as_json("chat", package, *SHORT, code=code)
    assert [m["content"] for m in found["messages"] if m["role"] == "user"] == ["Hello"], "only that one is not asked"
    assert found["messages"][1]["content"] == as_json("run", package, "Hello", *SHORT)["text"]
    assert found["error"]["exit_code"] == code


def test_a_picture_in_place_of_a_missing_one_is_asked_about(
    package: str, picture: str, typed: Callable[..., None], as_json: AsJson
) -> None:
    typed("/image none.png", f"/image {picture}", "What is this?")
    messages = as_json("chat", package, *SHORT, code=6)["messages"]
    assert [message["images"] for message in messages] == [[picture], []]


BAD_LINES = (
    "/dance", "/", "/save", "/save /nodir/x.json", "/save /", "/save {tmp}", "/save {tmp}/file/x", "/save \0x",
    "/quit now", "/save {tmp}/" + "n" * 300, "/save http://example.org/x", "/image {tmp}/locked.png/..",
)  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_conversation_goes_on_whatever_a_command_does(
    line: str, package: str, typed: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    typed("One", line.replace("{tmp}", str(tmp_path)), "/reset", "Two", f"/save {tmp_path / 'said.json'}")
    assert main(["chat", package, *SHORT]) in (1, 2, 6)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2, "both questions are answered"
    assert sum(said.startswith("edgevlm: error: ") for said in err.splitlines()) == 1
    assert "Traceback" not in err and "defect" not in err
    assert json.loads((tmp_path / "said.json").read_text())["messages"][0]["content"] == "Two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "said.json"]


def test_saving_to_a_full_disk_keeps_the_conversation(
    package: str, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("One", "/save /dev/full", "Two")
    assert main(["chat", package, *SHORT]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "cannot write the conversation to /dev/full (No space left on device)" in err
    assert Path("/dev/full").is_char_device(), "a device is not replaced by a file"


@pytest.mark.parametrize(
    "form", ["{}", "'{}'", '"{}"', "{escaped}", "file://{url}", "file://localhost{url}", "~/{name}"]
)
def test_names_of_pictures(
    form: str, package: str, picture: str, typed: Callable[..., None], tmp_path: Path, as_json: AsJson,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As they are typed, dragged into a terminal, or copied."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my red é 100%41.png"
    shutil.copyfile(picture, path)
    words = {"escaped": str(path).replace(" ", "\\ "), "url": quote(str(path)), "name": path.name}
    name = form.format(path, **words)
    typed(f"/image {name}", "What is this?")
    messages = as_json("chat", package, *SHORT)["messages"]
    assert messages[0]["images"] == [str(path)]
    ran = as_json("run", package, "What is this?", "--image", name, *SHORT)
    assert ran["n_image_tokens"] > 0 and ran["text"] == messages[1]["content"]


def test_a_name_with_quotes_of_its_own_is_taken_as_it_stands(
    package: str, picture: str, typed: Callable[..., None], tmp_path: Path, as_json: AsJson
) -> None:
    path = tmp_path / "'red'.png"
    shutil.copyfile(picture, path)
    typed(f"/image {path}", "What is this?")
    assert as_json("chat", package, *SHORT)["messages"][0]["images"] == [str(path)]


def test_bytes_that_are_no_text_end_nothing(package: str, child: Child) -> None:
    process = child("chat", package, *SHORT)
    process.stdin.buffer.write(b"One\ncaf\xe9 noir\nTwo\n")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(out.splitlines()) == 2
    assert err.count("standard input is not utf-8 text: byte 0xe9 behind 'caf'") == 1 and "Traceback" not in err


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


def test_no_line_ends_the_conversation(
    package: str, typed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Commands with arguments of every kind of character, none of which is a path to elsewhere."""
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(0)
    characters = "ab 'ab' \"\\\t~%:?*[]{}()$`|&;<>#!é漢🙂\udce9\x00\x1b\u202e\x7f.-=+,@^"
    commands = ("/image ", "/save ", "/reset ", "/help ", "/", "/dance ", "/image file:", "/save file:", "/image ~")
    lines = [drawn.choice(commands) + "".join(drawn.choices(characters, k=drawn.randrange(12))) for _ in range(400)]
    typed(*(line for line in lines if line.strip() != "/quit"), "/reset", "Still there?", "/save said.json")
    main(["chat", package, *SHORT])
    err = capsys.readouterr().err
    assert "Traceback" not in err and "defect" not in err, err[-3000:]
    assert [m["role"] for m in json.loads(Path("said.json").read_text())["messages"]] == ["user", "assistant"]
    assert err.count("edgevlm: error: ") > 200
