"""Runs cases in this process, which ends when one takes too long; each answer is a line of JSON.

`python -m tests.fuzz.worker TARGET NUMBER` shows one case: what it was, and what came of it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from edgevlm.errors import EdgeVLMError
from tests.fuzz import targets

TIME_S = 10.0
"""Of the processor: other programs do not make a case fail."""
MEMORY_BYTES = 1 << 30
"""Of address space above what the worker has when it begins."""
RESIDENT_BYTES = 512 << 20
"""By which one case may raise the worker's peak."""
MESSAGE_CHARS = 3000


def run_job(job: dict[str, Any], say: Callable[[dict[str, Any]], object]) -> None:
    """Runs the job's cases: {'target', 'directory', 'numbers', 'time_s', 'memory_bytes'}."""
    target = targets.target(job["target"])
    with tempfile.TemporaryDirectory(dir=job.get("scratch")) as scratch:
        directory = Path(scratch) / "sound"
        shutil.copytree(job["directory"], directory)
        read = target.reader(directory)
        _limit_memory(job.get("memory_bytes", MEMORY_BYTES))
        for number, case in targets.chosen(job["target"], Path(job["directory"]), job["numbers"]):
            say({"begin": number, "target": job["target"], "case": case.name})
            path = directory / case.file
            sound = path.read_bytes()
            path.write_bytes(case.make())
            peak = _peak_bytes()
            with _time_limit(job.get("time_s", TIME_S)):
                outcome, detail = _outcome(read)
            if outcome in ("read", "refused") and _peak_bytes() - peak > RESIDENT_BYTES:
                outcome, detail = "fault", f"memory: {(_peak_bytes() - peak) >> 20} MB more, then: {outcome} {detail}"
            path.write_bytes(sound)
            say({"end": number, "outcome": outcome, "detail": detail})


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends the process with a traceback after so much time of the processor, or much more that was waited."""
    faulthandler.register(signal.SIGPROF, chain=True)  # behind the traceback the signal does what it does: it ends us
    faulthandler.dump_traceback_later(12 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()


def _outcome(read: Callable[[], object]) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's: a number that is none was computed with
            read()
        return "read", ""
    except EdgeVLMError as error:
        message = str(error)
        if len(message) > MESSAGE_CHARS:
            return "fault", f"a message of {len(message)} characters: {message[:200]}"
        return "refused", f"{type(error).__name__}: {message}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is none of Exception
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames if "site-packages" not in f.filename]
        return "fault", f"{type(error).__name__}: {str(error)[:300]} at {' < '.join(reversed(ours[-4:]))}"


def _limit_memory(n_bytes: int) -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (int(line.split()[1]) * 1024 + n_bytes, most))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Reads jobs, one a line, from stdin; answers on what was stdout."""
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    for line in sys.stdin:
        run_job(json.loads(line), lambda answer: _say(answers, answer))


def show(name: str, number: int) -> None:
    """Prints one case."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / name
        targets.target(name).prepare(directory)
        run_job({"target": name, "directory": str(directory), "numbers": [number]}, print)


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        show(sys.argv[1], int(sys.argv[2]))
    else:
        main()
