"""Searches the declared space of a variant on real machines and keeps what was found in the architecture's record.

Slot by slot (`tune_space.SLOTS`): every legal shape is built, checked against its oracle and timed in turn with the
default on the same board; the best get every unrolling; the best of all are compared once more with more samples, the
default with itself beside them. The record is written after every candidate.
"""

from __future__ import annotations

import math
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Lock

from edgevlm import __version__
from edgevlm.errors import BackendError, UsageError
from tvm_schedules import tune_space
from tvm_schedules.targets import Variant
from tvm_schedules.tune_measure import Board, Built, build, compare
from tvm_schedules.tune_models import works_of
from tvm_schedules.tune_record import (
    LEAST_GAIN,
    Measured,
    Record,
    Refused,
    Shape,
    SlotRecord,
    read_record,
    with_slot,
    write_record,
)
from tvm_schedules.tune_space import Point, Slot
from tvm_schedules.tune_work import Work

Progress = Callable[[str, int, int], None]
SCREEN_SAMPLES = 3
"""Alternations per workload of every candidate."""
FINALISTS = 3
UNROLLED = 2
"""Best shapes whose unrollings are tried."""


@dataclass(frozen=True)
class Settings:
    """How much is measured: `samples` alternations in the last comparison, a third of it for every candidate."""

    samples: int = 9
    works: Callable[[Slot, str], Sequence[Work]] = works_of
    build: Callable[[Sequence[Work], Variant, Path], Built] = build


def tune(
    variants: Sequence[Variant], slots: Sequence[Slot], boards: Sequence[Board], cpu: str, path: Path,
    settings: Settings, progress: Progress,
) -> Record:
    """Tunes the slots of the variants, all of one architecture, and returns the record that now stands at `path`.

    Raises PackageError when the file at `path` is no record of the architecture, UsageError for nothing to do.
    """  # fmt: skip
    if not variants or not slots or not boards:
        raise UsageError("tuning needs at least one variant, one slot and one board")
    record = read_record(path, variants[0].arch)
    for default in variants:
        variant = default
        for slot in (slot for slot in tune_space.SLOTS if slot in slots):
            search = _Search(variant, slot, boards, cpu, settings, progress)
            for entry in search.run():
                record = with_slot(record, variant.name, slot, entry)
                write_record(path, record)
            if entry.gain > LEAST_GAIN:
                variant = tune_space.with_point(variant, slot, entry.best)
    return record


@dataclass(frozen=True)
class _Outcome:
    """What became of a candidate on one board."""

    point: Point
    board: str
    medians: tuple[tuple[float, float], ...] = ()
    reason: str = ""


class _Search:
    """The search of one slot of one variant."""

    def __init__(
        self, variant: Variant, slot: Slot, boards: Sequence[Board], cpu: str, settings: Settings, progress: Progress
    ) -> None:
        self.variant, self.slot, self.boards, self.cpu, self.settings = variant, slot, boards, cpu, settings
        self.progress = progress
        self.works = settings.works(slot, variant.arch)
        self.default = tune_space.point_of(variant, slot)
        self.measured: list[Measured] = []
        self.refused: list[Refused] = []
        self.n_built = 0
        self.compiling = Lock()

    def run(self) -> Iterator[SlotRecord]:
        """Yields the slot's entry after every candidate, the last one finished."""
        with tempfile.TemporaryDirectory() as name:
            self.scratch = Path(name)
            self.reference = self._built(self.default)
            points = tune_space.points(self.variant, self.slot)[1:]
            unroll = self.default.get("unroll")
            yield from self._screened([p for p in points if p.get("unroll") == unroll])
            shapes = [self.default, *(m.point for m in self._ranked())][: UNROLLED + 1]
            yield from self._screened([
                p for p in points if p.get("unroll") != unroll and {**p, "unroll": unroll} in shapes
            ])  # fmt: skip
            yield self._finished()

    def _screened(self, points: list[Point]) -> Iterator[SlotRecord]:
        samples = max(1, self.settings.samples // SCREEN_SAMPLES)
        for done, outcome in enumerate(self._outcomes(points, samples)):
            self.progress(f"{self.variant.name} {self.slot}", done + 1, len(points))
            if outcome.reason:
                self.refused.append(Refused(outcome.point, outcome.reason))
            else:
                self.measured.append(Measured(outcome.point, round(self._gain(outcome.medians), 4), outcome.board))
            best = next(iter(self._ranked()), None)
            yield self._entry(best.point if best else self.default, best.gain if best else 1.0, 1.0, False, ())

    def _finished(self) -> SlotRecord:
        board = self.boards[0]
        samples = self.settings.samples
        noise = self._outcome(self.default, board, samples)
        best, medians, gain = self.default, noise.medians, 1.0
        for finalist in self._ranked()[:FINALISTS]:
            outcome = self._outcome(finalist.point, board, samples)
            if not outcome.reason and self._gain(outcome.medians) > gain:
                best, medians, gain = finalist.point, outcome.medians, self._gain(outcome.medians)
        return self._entry(best, gain, self._gain(noise.medians), True, medians)

    def _ranked(self) -> list[Measured]:
        """Candidates better than the default, the best first."""
        return sorted((m for m in self.measured if m.gain > 1), key=lambda m: -m.gain)

    def _outcomes(self, points: Sequence[Point], samples: int) -> Iterator[_Outcome]:
        """Candidates in the order in which they are ready; each board takes the next one when it is free."""
        if len(self.boards) == 1:
            yield from (self._outcome(point, self.boards[0], samples) for point in points)
            return
        free: queue.Queue[Board] = queue.Queue()
        for board in self.boards:
            free.put(board)
        ready: queue.Queue[_Outcome] = queue.Queue()

        def job(point: Point) -> None:
            board = free.get()
            try:
                ready.put(self._outcome(point, board, samples))
            finally:
                free.put(board)

        with ThreadPoolExecutor(len(self.boards)) as pool:
            jobs = [pool.submit(job, point) for point in points]
            try:
                for _ in jobs:
                    while True:
                        try:
                            yield ready.get(timeout=1)
                            break
                        except queue.Empty:
                            broken = next((j for j in jobs if j.done() and j.exception() is not None), None)
                            if broken is not None:
                                broken.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _outcome(self, point: Point, board: Board, samples: int) -> _Outcome:
        """Builds, checks and times one candidate on `board`; a candidate that fails carries the reason."""
        try:
            candidate = self._built(point)
            for work in {work.kernel_name(candidate.variant): work for work in self.works}.values():
                error = board.error(candidate, work)
                if error > 1:
                    name = work.kernel_name(candidate.variant)
                    return _Outcome(point, board.name, reason=f"{name} is {error:.3g} times the bound off its oracle")
            medians = compare(board, self.reference, candidate, self.works, samples)
            board.forget(candidate)
        except BackendError as error:
            return _Outcome(point, board.name, reason=str(error))
        return _Outcome(point, board.name, tuple(medians))

    def _built(self, point: Point) -> Built:
        variant = tune_space.with_point(self.variant, self.slot, point)
        with self.compiling:
            self.n_built += 1
            path = self.scratch / f"{self.variant.name}-{self.slot}-{self.n_built}.so"
            return self.settings.build(self.works, variant, path)

    def _gain(self, medians: Sequence[tuple[float, float]]) -> float:
        """Geometric mean over the models of the default's time in a pass of the model over the candidate's."""
        totals: dict[str, list[float]] = {}
        for work, (default_s, candidate_s) in zip(self.works, medians, strict=True):
            total = totals.setdefault(work.model, [0.0, 0.0])
            total[0] += work.calls * default_s
            total[1] += work.calls * candidate_s
        return math.prod(default_s / candidate_s for default_s, candidate_s in totals.values()) ** (1 / len(totals))

    def _entry(
        self, best: Point, gain: float, noise: float, finished: bool, medians: Sequence[tuple[float, float]]
    ) -> SlotRecord:
        shapes = tuple(
            Shape(work.model, work.name, round(work.calls, 2), round(default_s * 1e6, 2), round(best_s * 1e6, 2))
            for work, (default_s, best_s) in zip(self.works, medians, strict=bool(medians))
        )
        return SlotRecord(
            best=best, default=self.default, gain=round(gain, 4), noise=round(noise, 4), finished=finished,
            date=datetime.now(UTC).date().isoformat(), cpu=self.cpu,
            versions={"edgevlm": __version__, "apache-tvm": version("apache-tvm")}, clock="thread_cpu",
            samples=self.settings.samples, shapes=shapes, candidates=tuple(self.measured), refused=tuple(self.refused),
        )  # fmt: skip


def cpu_name() -> str:
    """Returns this machine's processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(("model name", "Hardware"))]
    return names[0] if names else "unknown"


@dataclass(frozen=True)
class SlotSpace:
    """The declared axes of a slot, how many points they make, and those that the rules leave."""

    variant: str
    slot: Slot
    axes: dict[str, tuple[int, ...]]
    n_points: int
    default: Point
    legal: tuple[Point, ...]


def spaces(variants: Sequence[Variant], slots: Sequence[Slot]) -> list[SlotSpace]:
    """Returns the space of each slot of each variant."""
    return [
        SlotSpace(
            variant.name, slot, tune_space.AXES[slot], math.prod(map(len, tune_space.AXES[slot].values())),
            tune_space.point_of(variant, slot), tuple(tune_space.points(variant, slot)),
        )
        for variant in variants
        for slot in slots
    ]  # fmt: skip
