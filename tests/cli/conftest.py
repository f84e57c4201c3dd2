"""Fixtures of the command line's tests: a package, a picture, and the program in-process or as a child."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm.cli.main import main
from tests.edgevlm.tiny_package import write_package
from tests.signals import listen_to_sigint


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny package that takes pictures. Tests do not change it."""
    return str(write_package(tmp_path_factory.mktemp("packages") / "tiny"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A red picture that is cut into several tiles."""
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (120, 60), (200, 30, 30)).save(path)
    return str(path)


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command with --json and returns its object; the exit code must be the one given."""

    def run(*words: Any, code: int = 0) -> dict[str, Any]:
        assert main([*map(str, words), "--json"]) == code
        value = json.loads(capsys.readouterr().out)
        assert isinstance(value, dict)
        return value

    return run


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `edgevlm` as a child process with pipes; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgevlm", *map(str, words)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=Path.cwd(), preexec_fn=listen_to_sigint
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
