"""Standard streams as callers leave them: closed, full, cut off, or with bytes that are no text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]
SHORT = "--max-new-tokens 3"


@pytest.fixture
def shell(package: str, tmp_path: Path) -> Shell:
    """Runs a line of bash in an empty folder, in which `edgevlm` is the program and $package a package."""

    def run(line: str) -> subprocess.CompletedProcess[bytes]:
        start = f'edgevlm() {{ {sys.executable} -m edgevlm "$@"; }}; package={package}; '
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(
            ["bash", "-c", start + line], capture_output=True, cwd=tmp_path, timeout=60, env={"PYTHONPATH": str(root)}
        )

    return run


NO_OUTPUT = b"edgevlm: error: standard output is closed"
FULL = b"edgevlm: error: standard output cannot be written (No space left on device)"


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        (f"edgevlm run $package - {SHORT} <&-", 2, b"edgevlm: error: standard input is closed"),
        (f"edgevlm chat $package {SHORT} <&-", 2, b"edgevlm: error: standard input is closed"),
        (f"printf 'caf\\xe9' | edgevlm run $package - {SHORT}", 2, b"edgevlm: error: standard input is not utf-8 text"),
        (f"edgevlm run $package $'caf\\xe9' {SHORT}", 2, b"edgevlm: error: the prompt is not UTF-8 text: byte 0xe9"),
        (f"edgevlm run $package Hello {SHORT} >&-", 2, NO_OUTPUT),
        ("edgevlm inspect $package --json >&-", 2, NO_OUTPUT),
        ("edgevlm --help >&-", 2, NO_OUTPUT),
        (f"edgevlm run $package Hello {SHORT} >/dev/full", 8, FULL),
        ("edgevlm inspect $package --json >/dev/full", 8, FULL),
        ("edgevlm inspect nothing --json >/dev/full", 3, b"edgevlm: error: nothing: no such package"),
        ("edgevlm --help >/dev/full", 8, FULL),
        (f"printf 'One\\nTwo\\n' | edgevlm chat $package {SHORT} >/dev/full", 8, FULL),
        (f"edgevlm run $package Hello {SHORT} <&- >&- 2>&-", 2, b""),
        ("edgevlm inspect nothing 2>&-", 3, b""),
        ("edgevlm inspect nothing 2>/dev/full", 3, b""),
        ("edgevlm inspect nothing 2> >(true)", 3, b""),
    ],
)
def test_one_sentence_and_a_code(line: str, code: int, err: bytes, shell: Shell, tmp_path: Path) -> None:
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert done.stdout == b"" and done.stderr.startswith(err)
    assert len(done.stderr.splitlines()) == bool(err), "nothing else: no traceback, no remark of the interpreter's"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["", "<&-", "2>&-", "2>/dev/full", "<&- 2>&-", "2> >(true)"])
def test_an_answer_needs_stdout_alone(closed: str, shell: Shell) -> None:
    done = shell(f"edgevlm run $package Hello {SHORT} --timings --json {closed}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["finish_reason"]


def test_no_file_gets_the_number_of_a_closed_stream(shell: Shell, tmp_path: Path) -> None:
    """What a library printed there would land in the file."""
    code = "from edgevlm.cli.streams import open_closed_streams as f; f(); print(open('x', 'w').fileno())"
    done = shell(f'{sys.executable} -c "{code}" <&- 2>&-')
    assert done.stdout == b"3\n", done.stderr


def test_a_latin_1_terminal_is_believed(shell: Shell) -> None:
    """There every byte is a character."""
    asked = f"printf 'caf\\xe9' | PYTHONIOENCODING=latin-1 edgevlm run $package - {SHORT} --json"
    direct = json.loads(shell(f"edgevlm run $package café {SHORT} --json").stdout)
    assert json.loads(shell(asked).stdout.decode("latin-1"))["n_prompt_tokens"] == direct["n_prompt_tokens"]
