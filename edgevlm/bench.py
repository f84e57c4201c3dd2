"""Measures a package on this machine: seconds per stage, medians of several runs after one that warms the caches.

The stages are those of an answer: load, encode a picture's tiles, prefill a prompt, decode. The prompt is random token
ids (a dense model's speed does not depend on them), so that its length is exactly what was asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.backends.native import MachineLimits, NativeSession
from edgevlm.backends.native_library import KernelTime
from edgevlm.backends.native_tower import NativeTower
from edgevlm.errors import UsageError
from edgevlm.image import normalize
from edgevlm.machine_memory import peak_memory_bytes
from edgevlm.model import Model, load
from edgevlm.tiling import cut_tiles

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StageResult:
    """Seconds of one stage, and how much of `unit` passes per second at the median."""

    stage: str
    median_s: float
    min_s: float
    max_s: float
    rate: float | None
    unit: str


@dataclass(frozen=True)
class KernelResult:
    """One kernel's share of a stage, and how near it comes to the machine's limits."""

    stage: str
    kernel: str
    calls: int
    seconds: float
    share: float
    """Of all kernels' seconds in the stage."""
    giga_operations_per_s: float
    giga_bytes_per_s: float


@dataclass(frozen=True)
class BenchResult:
    """What `edgevlm bench --json` prints."""

    package: str
    backend: str
    n_prompt_tokens: int
    n_new_tokens: int
    n_tiles: int
    repeat: int
    stages: tuple[StageResult, ...]
    peak_memory_bytes: int
    limits: MachineLimits | None = None
    """What this machine can do at most; null where the backend has no kernels of its own."""
    kernels: tuple[KernelResult, ...] = ()
    """Of one further run, in which every kernel is timed; the slowest of a stage first."""


@dataclass(frozen=True)
class _Run:
    seconds: dict[str, float]
    """By stage."""
    n_tiles: int
    backend: str


def measure(
    package_dir: str | Path,
    *,
    n_prompt_tokens: int = 512,
    n_new_tokens: int = 64,
    repeat: int = 3,
    image: str | Path | None = None,
    load_arguments: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Returns the medians of `repeat` runs, each of which loads the package anew.

    Raises ContextFullError when prompt and answer do not fit, UsageError for counts below 1.
    """
    for name, value in (("n_prompt_tokens", n_prompt_tokens), ("n_new_tokens", n_new_tokens), ("repeat", repeat)):
        if value < 1:
            raise UsageError(f"{name} is {value}, expected 1 or more")
    runs: list[_Run] = []
    for done in range(repeat + 1):
        runs.append(_run(package_dir, n_prompt_tokens, n_new_tokens, image, load_arguments or {}))
        if progress is not None:
            progress("bench", done + 1, repeat + 1)
    peak = peak_memory_bytes()
    limits, kernels = _profile(package_dir, n_prompt_tokens, n_new_tokens, image, load_arguments or {})
    counts = {
        "load": (0, ""),
        "encode": (runs[0].n_tiles, "tiles/s"),
        "prefill": (n_prompt_tokens, "tok/s"),
        "decode": (n_new_tokens, "tok/s"),
    }
    stages = []
    for stage in runs[0].seconds:
        values = [run.seconds[stage] for run in runs[1:]]
        median_s = statistics.median(values)
        count, unit = counts[stage]
        rate = count / median_s if count and median_s else None
        stages.append(StageResult(stage, median_s, min(values), max(values), rate, unit))
    return BenchResult(
        package=str(package_dir),
        backend=runs[0].backend,
        n_prompt_tokens=n_prompt_tokens,
        n_new_tokens=n_new_tokens,
        n_tiles=runs[0].n_tiles,
        repeat=repeat,
        stages=tuple(stages),
        peak_memory_bytes=peak,
        limits=limits,
        kernels=kernels,
    )


def _run(
    package_dir: str | Path, n_prompt_tokens: int, n_new_tokens: int, image: str | Path | None, load_arguments: Any
) -> _Run:
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with load(package_dir, **load_arguments) as model:
        seconds["load"] = time.perf_counter() - start
        n_tiles = 0
        if image is not None:
            seconds["encode"], n_tiles = _encode(model, image)
        ids = np.random.default_rng(0).integers(0, model.package.manifest.decoder.vocab_size, n_prompt_tokens)
        start = time.perf_counter()
        logits = model.session.prefill([ids.astype(np.int64)], np.arange(n_prompt_tokens, dtype=np.int64))
        seconds["prefill"] = time.perf_counter() - start
        start = time.perf_counter()
        for position in range(n_prompt_tokens, n_prompt_tokens + n_new_tokens):
            logits = model.session.step(int(logits.argmax()), position)
        seconds["decode"] = time.perf_counter() - start
        backend = "native" if isinstance(model.session, NativeSession) else "onnx"
    return _Run(seconds, n_tiles, backend)


def _profile(
    package_dir: str | Path, n_prompt_tokens: int, n_new_tokens: int, image: str | Path | None, load_arguments: Any
) -> tuple[MachineLimits | None, tuple[KernelResult, ...]]:
    """Times every kernel, of the tower too when there is a picture; nothing where no kernels of ours run."""
    with load(package_dir, **load_arguments) as model:
        session = model.session
        if not isinstance(session, NativeSession):
            return None, ()
        results: list[KernelResult] = []
        if image is not None and isinstance(session.tower, NativeTower):
            session.tower.profile(on=True)
            _encode(model, image)
            results += _kernel_results("encode", session.tower.kernel_times())
        ids = np.random.default_rng(0).integers(0, model.package.manifest.decoder.vocab_size, n_prompt_tokens)
        positions = np.arange(n_prompt_tokens, dtype=np.int64)
        logits = session.prefill([ids.astype(np.int64)], positions)
        session.truncate(0)
        session.profile(on=True)
        logits = session.prefill([ids.astype(np.int64)], positions)
        results += _kernel_results("prefill", session.kernel_times())
        session.profile(on=True)
        for position in range(n_prompt_tokens, n_prompt_tokens + n_new_tokens):
            logits = session.step(int(logits.argmax()), position)
        results += _kernel_results("decode", session.kernel_times())
        session.profile(on=False)
        return session.machine_limits(), tuple(results)


def _kernel_results(stage: str, times: tuple[KernelTime, ...]) -> list[KernelResult]:
    total_s = sum(kernel.seconds for kernel in times)
    return [
        KernelResult(
            stage, kernel.kernel, kernel.calls, kernel.seconds, kernel.seconds / total_s,
            kernel.operations / kernel.seconds / 1e9, kernel.bytes / kernel.seconds / 1e9,
        )
        for kernel in times
        if kernel.seconds > 0
    ]  # fmt: skip


def _encode(model: Model, image: str | Path) -> tuple[float, int]:
    """Returns the seconds that the tower takes, without being loaded, and the number of tiles."""
    picture = model.picture(image)
    processor = model.package.manifest.processor
    if processor is None:
        raise UsageError(f"{model.package.path} takes no pictures")
    tiles = normalize(cut_tiles(picture.image, picture.plan, processor), processor)
    loaded_before = model.session.timings.load_s
    start = time.perf_counter()
    model.session.encode(tiles)
    elapsed_s = time.perf_counter() - start
    return elapsed_s - (model.session.timings.load_s - loaded_before), len(tiles)
