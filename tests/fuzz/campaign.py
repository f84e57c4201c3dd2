"""Starts workers on cases and gathers what came of each.

`python -m tests.fuzz.campaign [TARGET ...] [--share N]` runs one case of N and prints the faults by kind.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.targets import SEED, TARGETS, count, target

ROOT = Path(__file__).resolve().parents[2]
N_WORKERS = 2


@dataclass
class Found:
    """What came of the cases."""

    n_cases: Counter[str] = field(default_factory=Counter)
    """By target."""
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, int, str, str]] = field(default_factory=list)
    """(target, number, case, what happened)."""

    def text(self) -> str:
        """Returns counts, and the faults, those of one kind together."""
        lines = [f"{sum(self.n_cases.values())} cases: {dict(self.outcomes)}", str(dict(self.n_cases))]
        kinds: dict[str, list[tuple[str, int, str, str]]] = {}
        for fault in self.faults:
            kinds.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|[\d.e+]+", "#", fault[3])[:120], []).append(fault)
        for held in sorted(kinds.values(), key=len, reverse=True):
            target, number, case, what = held[0]
            lines.append(f"{len(held)} x {what}\n     {target} {number}: {case}")
        return "\n".join(lines)


def prepare(names: Iterable[str], directory: Path) -> dict[str, Path]:
    """Writes the sound files of the targets and returns where they are."""
    places = {}
    for name in names:
        places[name] = directory / name
        target(name).prepare(places[name])
    return places


Job = dict[str, Any]
"""What a worker is told: {'target', 'directory', 'numbers'}, and limits where they are not the usual ones."""


def run(batches: list[list[Job]], n_workers: int = N_WORKERS) -> Found:
    """Runs batches of jobs, each in a process of its own, and returns what was found.

    A process that ends early is a fault of the case that it had begun; another one goes on behind that.
    """
    found, lock = Found(), threading.Lock()

    def work(batch: list[Job]) -> None:
        while batch:
            batch = _one_worker(batch, found, lock)

    with ThreadPoolExecutor(n_workers) as pool:
        list(pool.map(work, batches))
    return found


def _one_worker(jobs: list[Job], found: Found, lock: threading.Lock) -> list[Job]:
    """Runs jobs in one process; returns what is left of them when it ended early."""
    begun: dict[str, Any] | None = None
    done: set[tuple[str, int]] = set()
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        with worker.stdin, worker.stdout:
            worker.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
            worker.stdin.close()
            for line in worker.stdout:
                answer = json.loads(line)
                if "begin" in answer:
                    begun = answer
                    continue
                assert begun is not None and begun["begin"] == answer["end"]
                done.add((begun["target"], begun["begin"]))
                with lock:
                    _note(found, begun, answer["outcome"], answer["detail"])
                begun = None
        code = worker.wait()
        errors.seek(0)
        said = errors.read()
    if begun is None:
        if code:
            raise RuntimeError(f"a worker ended with {code} between cases: {said[-2000:]}")
        return []
    done.add((begun["target"], begun["begin"]))
    with lock:
        _note(found, begun, "fault", _end(code, said))
    left = [{**job, "numbers": [n for n in job["numbers"] if (job["target"], n) not in done]} for job in jobs]
    return [job for job in left if job["numbers"]]


def _note(found: Found, begun: dict[str, Any], outcome: str, detail: str) -> None:
    found.n_cases[begun["target"]] += 1
    found.outcomes[outcome] += 1
    if outcome == "fault":
        found.faults.append((begun["target"], begun["begin"], begun["case"], detail))


def _end(code: int, said: str) -> str:
    """What a worker says when it ends early: it took too long, or it crashed."""
    frames = re.findall(r'File ".*?([^/"]+)", line (\d+) in (\w+)', said)
    where = " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:4])
    return f"{'too long' if code in (1, -signal.SIGPROF) else f'the process ended with {code}'} at {where}"


def jobs_of(places: dict[str, Path], share: int, seed: int = SEED, size: int = 500) -> list[Job]:
    """Returns jobs of at most `size` cases: all of them, or one in `share` at random."""
    jobs: list[Job] = []
    for name, directory in places.items():
        rng = random.Random(seed)
        numbers = [number for number in range(count(name, directory)) if share == 1 or rng.randrange(share) == 0]
        for start in range(0, len(numbers), size):
            jobs.append({"target": name, "directory": str(directory), "numbers": numbers[start : start + size]})
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        places = prepare(args.targets or TARGETS, Path(scratch))
        print(run([[job] for job in jobs_of(places, args.share, args.seed)]).text())


if __name__ == "__main__":
    main()
