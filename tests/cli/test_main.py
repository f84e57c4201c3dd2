"""How the program ends: exit codes, one-line errors, closed pipes, missing packages, Ctrl-C."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgevlm import errors
from edgevlm.cli import inspect
from edgevlm.cli.main import main
from tests.signals import listen_to_sigint

ERRORS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.EdgeVLMError)]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `edgevlm inspect` raise `error`."""

    def run(args: Any) -> int:
        raise error

    monkeypatch.setattr(inspect, "run", run)


def test_exit_codes_differ() -> None:
    assert sorted(cls.exit_code for cls in ERRORS) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("cls", ERRORS)
def test_each_error(
    cls: type[errors.EdgeVLMError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, cls("the graph is\nbroken"))
    assert main(["inspect", "p"]) == cls.exit_code
    assert capsys.readouterr() == ("", "edgevlm: error: the graph is broken\n")

    assert main(["inspect", "p", "--json"]) == cls.exit_code
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "error": {"type": cls.__name__, "message": "the graph is broken", "exit_code": cls.exit_code}
    }


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, errors.PackageError("broken"))
    assert main(["inspect", "p", "--debug"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("edgevlm: error: broken\n")


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(["inspect", "p", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["type"] == "InternalError"
    assert "Traceback" in err


def test_os_error_names_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, OSError(28, "No space left on device", "out/x.onnx_data"))
    assert main(["inspect", "p"]) == 1
    assert capsys.readouterr().err == "edgevlm: error: No space left on device: out/x.onnx_data\n"


def test_control_characters_reach_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, errors.PackageError("tensor 'a\x1b[2J\0é\u202e'"))
    assert main(["inspect", "p"]) == 3
    assert capsys.readouterr().err == "edgevlm: error: tensor 'a\\x1b[2J\\x00é\\u202e'\n"


def test_warnings_of_libraries_are_for_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Any) -> int:
        warnings.warn("tag 256 had too many entries", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "p"]) == 0
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="tag 256"):
        assert main(["inspect", "p", "--debug"]) == 0


def test_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert main(["inspect", "p"]) == 130
    assert capsys.readouterr() == ("", "edgevlm: interrupted\n")


@pytest.mark.parametrize(("module", "extra"), [("onnx", "export"), ("torch.nn", "reference")])
def test_missing_extra_is_named(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert main(["inspect", "p"]) == errors.BackendError.exit_code
    err = capsys.readouterr().err
    assert f"pip install 'edgevlm[{extra}]'" in err and "Traceback" not in err


def test_export_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def without_onnx(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] in ("onnx", "gguf", "safetensors", "ml_dtypes"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments, **keywords)

    for module in [name for name in sys.modules if name.split(".")[0] in ("export", "onnx", "gguf", "safetensors")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_onnx)
    assert main(["export", str(tmp_path)]) == errors.BackendError.exit_code
    assert "pip install 'edgevlm[export]'" in capsys.readouterr().err


def test_closed_pipe_is_silent() -> None:
    loud = "import sys; from edgevlm.cli import inspect, main\n"
    loud += "def run(args):\n    for _ in range(100000): print('x' * 100)\n    return 0\n"
    loud += "inspect.run = run; sys.exit(main.main(['inspect', 'p']))"
    process = subprocess.Popen([sys.executable, "-c", loud], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_sigint_ends_with_130() -> None:
    waiting = "import sys, time; from edgevlm.cli import inspect, main\n"
    waiting += "def run(args):\n    print('ready', flush=True); time.sleep(60)\n"
    waiting += "inspect.run = run; sys.exit(main.main(['inspect', 'p']))"
    command = [sys.executable, "-c", waiting]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=listen_to_sigint)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "edgevlm: interrupted\n")
    assert time.monotonic() - started < 10


def test_sigterm_is_the_callers_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    monkeypatch.setattr(inspect, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["inspect", "p"]) == 143
    assert signal.getsignal(signal.SIGTERM) == before
