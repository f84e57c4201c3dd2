"""The `edgevlm` command: parses, runs one subcommand, turns every error into one line and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence

from edgevlm.cli.interrupt import Terminated, raising_on_sigterm
from edgevlm.cli.output import OutputError, answer, drop, json_object, note, printable
from edgevlm.cli.parser import build_parser
from edgevlm.cli.streams import open_closed_streams, prepare_streams
from edgevlm.errors import INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, BackendError, EdgeVLMError
from edgevlm.telemetry import switch_off

CLOSED_PIPE_EXIT_CODE = 141
"""stdout's reader has gone (128 + SIGPIPE), as for a C program in a shell pipeline."""

SIGNAL_EXIT_CODES = (INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE)
"""The user's wish, not an error."""

EXTRA_OF_MODULE = {
    "onnx": "export",
    "gguf": "export",
    "safetensors": "export",
    "ml_dtypes": "export",
    "torch": "reference",
    "transformers": "reference",
    "tvm": "tvm",
    "tornado": "rpc",
    "cloudpickle": "rpc",
    "psutil": "rpc",
    "onnxruntime_qnn": "qnn",
}
"""Packages that an extra brings, for the message when one is missing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in words, "--debug" in words
    open_closed_streams()
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        stream=sys.stderr,
        format="edgevlm: %(levelname)s: %(message)s",
    )
    switch_off()
    try:
        prepare_streams()
        args = build_parser().parse_args(words)
        with raising_on_sigterm(), warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # libraries' remarks on damaged files; what matters is an error
            code: int = args.run(args)
        answer("", end="")
        note(end="")  # what a library left there
        return code
    except SystemExit:  # of --help and --version
        if (code := _after_help(as_json)) != 0:
            return code
        raise
    except KeyboardInterrupt:
        return _fail("KeyboardInterrupt", "interrupted", INTERRUPTED_EXIT_CODE, as_json)
    except Terminated:
        return _fail("Terminated", "terminated", TERMINATED_EXIT_CODE, as_json)
    except BrokenPipeError:
        drop(sys.stdout)
        return CLOSED_PIPE_EXIT_CODE
    except EdgeVLMError as error:
        _trace(debug)
        return _fail(type(error).__name__, str(error), error.exit_code, as_json)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_MODULE.get((error.name or "").split(".")[0])
        _trace(debug or extra is None)
        return _fail("BackendError", _missing_module(error, extra), BackendError.exit_code, as_json)
    except OSError as error:
        _trace(debug)
        what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        return _fail("OSError", what, EdgeVLMError.exit_code, as_json)
    except Exception as error:  # noqa: BLE001 - a defect of ours: shown whole, and still one line for scripts
        _trace(True)
        message = f"{type(error).__name__}: {error} (a defect in edgevlm; please report it with the lines above)"
        return _fail("InternalError", message, EdgeVLMError.exit_code, as_json)


def _after_help(as_json: bool) -> int:
    """Returns the exit code of what argparse printed, which it does not flush."""
    try:
        answer("", end="")
    except BrokenPipeError:
        drop(sys.stdout)
        return CLOSED_PIPE_EXIT_CODE
    except OutputError as error:
        return _fail(type(error).__name__, str(error), error.exit_code, as_json)
    return 0


def _missing_module(error: ModuleNotFoundError, extra: str | None) -> str:
    if extra is None:
        return f"the Python package {error.name!r} is missing; install edgevlm again"
    return f"this needs the Python package {error.name!r}; install it with: pip install 'edgevlm[{extra}]'"


def _trace(wanted: bool) -> None:
    if wanted:
        note(traceback.format_exc().rstrip())


def _fail(kind: str, message: str, exit_code: int, as_json: bool) -> int:
    one_line = printable(" ".join(message.split()))
    told = f"edgevlm: {one_line}" if exit_code in SIGNAL_EXIT_CODES else f"edgevlm: error: {one_line}"
    if not as_json or sys.stdout is None:
        note(told)
    else:
        try:
            json_object({"error": {"type": kind, "message": one_line, "exit_code": exit_code}})
        except (OutputError, BrokenPipeError):
            note(told)
            drop(sys.stdout)
    if kind == OutputError.__name__ and not as_json:
        drop(sys.stdout)
    return exit_code
