"""What each scheme costs on pictures: accuracy, KL of the answers' logits and cosine of the picture tokens.

    python -m tests.benchmarks.picture_fidelity CHECKPOINT [--set scenes] [--limit 120] [--kl 40] [--write]

CHECKPOINT is what `edgevlm export` takes. It is exported once for every language scheme and tower scheme below (and
compiled, where the engine runs it), into --out, and measured with a float and an 8-bit cache. A cell's results stay in
--out as files of `edgevlm eval --out`, so that a second run continues. KL compares the distribution of each answer's
tokens with that of the fp32 package on the same prompt, forced along its answer; cosine compares the features of the
same tiles. fp32 runs on onnxruntime, where the 8-bit cache is the engine's rounding applied behind every call. Cells
with the same tower share the features of a picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.backends.onnx import OnnxSession
from edgevlm.cancel import CancelToken
from edgevlm.evaluation.question_set import QuestionSet, choose, open_set
from edgevlm.evaluation.results import Evaluation, compare, read_results, write_results
from edgevlm.evaluation.run import DEFAULT_MAX_NEW_TOKENS, ask_all, assemble, keep_tower
from edgevlm.generate import PictureRun
from edgevlm.model import Model, as_messages, load
from edgevlm.package import Package, open_package
from edgevlm.spec import MANIFEST_NAME
from edgevlm.strict_json import from_json, to_json
from export import probes
from export.divergence import DivergenceMeter, bound_for, token_cosines
from export.pipeline import ExportOptions, export_package
from tests.benchmarks import method_page
from tests.benchmarks.kv_bits import rounded
from tvm_schedules.compile import compile_package
from tvm_schedules.key_ranges import KeyRange, measure_keys

Float32 = NDArray[np.float32]
LANGUAGE = ("fp32", "w8", "w4g32-mix", "w4g32")
VISION = ("fp32", "w8")
MAX_FORCED = 16
"""Tokens of an answer that count; the sets' answers are words and short sentences."""
CACHES = {"float": (16, 16), "int8": (8, 8)}


@dataclass(frozen=True)
class Cell:
    """One package with one form of cache."""

    language: str
    vision: str
    cache: str

    @property
    def package_name(self) -> str:
        """Directory of the package."""
        return f"{self.language}-vision-{self.vision}"


CELLS = tuple(Cell(language, vision, cache) for language in LANGUAGE for vision in VISION for cache in CACHES)


def fingerprint(checkpoint: Path) -> str:
    """Changes when a file of the checkpoint does: packages of other weights are not taken for this one's."""
    root = checkpoint if checkpoint.is_dir() else checkpoint.parent
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        stat = path.stat()
        total.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return total.hexdigest()[:8]


def package_for(cell: Cell, checkpoint: Path, out: Path) -> Package:
    """Exports and compiles what is not there yet; the exporter writes a package whole or not at all."""
    path = out / cell.package_name
    if not path.exists():
        options = ExportOptions(scheme=cell.language, vision_scheme=cell.vision, verify=False)
        export_package(checkpoint, path, options)
    package = open_package(path)
    if cell.language != "fp32" and package.compiled(host_arch()) is None and library_path().exists():
        compile_package(path, host_arch(), probes.text(), language_only=cell.vision == "fp32")
        package = open_package(path)
    return package


def opened(cell: Cell, package: Package, threads: int | None) -> tuple[Model, str]:
    """The package ready for questions, and its backend."""
    if package.compiled(host_arch()) is None:
        model = load(package.path, backend="onnx", threads=threads)
        if cell.cache == "int8":
            round_cache(model.session, measure_keys(package, probes.text()))
        return model, "onnx"
    return load(package.path, backend="native", threads=threads, kv_bits=CACHES[cell.cache]), "native"


def share_features(session: Any, store: dict[bytes, Float32]) -> None:
    """From now on `encode` looks in `store` first: the same tiles in the same tower are the same features."""
    encode = session.encode

    def looked_up(tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        key = hashlib.sha256(np.ascontiguousarray(tiles)).digest()
        if key not in store:
            store[key] = encode(tiles, cancel)
        return store[key]

    session.encode = looked_up


def round_cache(session: Any, ranges: Sequence[KeyRange]) -> None:
    """From now on rounds what `prefill` and `step` append as the engine does: 8 bits, keys centred and levelled.

    A chunk reads its own new rows before they are rounded, the engine after: the one difference.
    """
    assert isinstance(session, OnnxSession), "the engine rounds by itself"
    kinds = [entry.kind for entry in session.package.manifest.decoder.cache]

    def rounding(call: Any) -> Any:
        def run(*arguments: Any) -> Float32:
            begin = session.n_past
            logits: Float32 = call(*arguments)
            layer = 0
            for kind, array in zip(kinds, session._cache, strict=True):
                new = array[:, :, begin : session.n_past]
                if kind == "key":
                    centre, factors = (part[None, :, None] for part in (ranges[layer].centre, ranges[layer].factors))
                    new[...] = rounded((new - centre) / factors, 8) * factors + centre
                    layer += 1
                else:
                    new[...] = rounded(new, 8)
            return logits

        return run

    chosen: Any = session
    chosen.prefill, chosen.step = rounding(session.prefill), rounding(session.step)


@dataclass(frozen=True)
class Taught:
    """One question as a package answers it: its tokens with the one that ends it, their logits, the picture's rows."""

    ids: tuple[int, ...]
    logits: Float32
    rows: Float32


def answer_logits(model: Model, questions: QuestionSet, index: int, ids: Sequence[int] | None = None) -> Taught:
    """Returns logits (T, vocab) of the answer's tokens: of `ids`, or of the greedy answer where none are given."""
    question = questions.questions[index]
    picture = model.picture(questions.picture(question))
    prompt, (planned,) = model.fitted(as_messages(question.question, 1), [picture], model.options(temperature=0.0))
    assert model.encoder is not None, "a picture was accepted"
    rows = model.encoder.features(planned, CancelToken())
    segments = [
        rows[part.first_row : part.first_row + part.n_rows] if isinstance(part, PictureRun) else part
        for part in prompt.parts
    ]
    session = model.session
    session.truncate(0)
    model.loop.forget()
    logits = [session.prefill(segments, np.arange(len(prompt.keys)))]
    said: list[int] = []
    ends = model.package.manifest.generation.eos_token_ids
    while True:
        said.append(int(logits[-1].argmax()) if ids is None else ids[len(said)])
        done = len(said) == MAX_FORCED or said[-1] in ends if ids is None else len(said) == len(ids)
        if done:
            return Taught(tuple(said), np.stack(logits), rows)
        logits.append(session.step(said[-1], session.n_past))


@dataclass(frozen=True)
class Distance:
    """How far a package is from fp32 on the same questions."""

    n_positions: int
    mean_kl: float
    top1: float
    mean_cosine: float
    least_cosine: float
    """The first percentile of the tokens."""


def distance(model: Model, questions: QuestionSet, taught: dict[int, Taught], scheme: str) -> Distance:
    """Returns KL and agreement on the teacher's answers, and the cosines of the picture tokens."""
    meter = DivergenceMeter(bound_for(scheme))
    cosines: list[NDArray[np.float64]] = []
    for index, teacher in taught.items():
        found = answer_logits(model, questions, index, teacher.ids)
        meter.add(teacher.logits, found.logits)
        cosines.append(token_cosines(teacher.rows, found.rows))
    every = np.concatenate(cosines)
    return Distance(
        meter.n_positions, meter.mean_kl, meter.top1, float(every.mean()), float(np.quantile(every, 0.01))
    )  # fmt: skip


class Fidelity:
    """The cells on one set of questions; the teacher is asked when the first cell needs it."""

    def __init__(
        self, checkpoint: Path, out: Path, questions: QuestionSet, limit: int | None, n_forced: int, threads: int | None
    ) -> None:
        self.checkpoint, self.questions = checkpoint, questions
        self.out = out / f"{checkpoint.stem}-{fingerprint(checkpoint)}"
        self.out.mkdir(parents=True, exist_ok=True)
        self.limit, self.threads = limit, threads
        self.chosen = choose(questions.questions, limit, 0)
        self.forced = [i for group in choose(questions.questions, n_forced, 1) for i in group]
        self._taught: dict[int, Taught] = {}
        self._features: dict[tuple[str, type], dict[bytes, Float32]] = {}

    def opened(self, cell: Cell, package: Package) -> tuple[Model, str]:
        """The package ready for questions, with the features that another cell's same tower made, and its backend."""
        model, backend = opened(cell, package, self.threads)
        keep_tower(model)
        session: Any = model.session
        share_features(session, self._features.setdefault((cell.vision, type(session.tower)), {}))
        return model, backend

    def taught(self) -> dict[int, Taught]:
        """The fp32 package's answers."""
        if not self._taught:
            cell = CELLS[0]
            model, _ = self.opened(cell, package_for(cell, self.checkpoint, self.out))
            with model:
                self._taught = {index: answer_logits(model, self.questions, index) for index in self.forced}
        return self._taught

    def run(self, cell: Cell) -> tuple[Evaluation, Distance]:
        """Returns the cell's results, from its files when they are there."""
        package = package_for(cell, self.checkpoint, self.out)
        manifest_hash = hashlib.sha256((package.path / MANIFEST_NAME).read_bytes()).hexdigest()[:8]
        stem = f"{cell.package_name}-{cell.cache}-{manifest_hash}-{self.questions.card.sha256[:8]}-{self.limit}"
        answers_path = self.out / f"{stem}.json"
        distance_path = self.out / f"{stem}-{len(self.forced)}-distance.json"
        if not (answers_path.exists() and distance_path.exists()):
            taught = self.taught()
            model, backend = self.opened(cell, package)
            with model:
                start = time.perf_counter()
                answers, costs = ask_all(model, self.questions, self.chosen, DEFAULT_MAX_NEW_TOKENS)
                processor = package.manifest.processor
                assert processor is not None, "pictures were accepted"
                bits = (CACHES[cell.cache],) * package.manifest.decoder.num_hidden_layers
                found = assemble(
                    package, self.questions, processor, answers, costs, backend=backend, kv_bits=bits,
                    limit=self.limit, seed=0, max_new_tokens=DEFAULT_MAX_NEW_TOKENS,
                    elapsed_s=time.perf_counter() - start,
                )  # fmt: skip
                measured = distance(model, self.questions, taught, cell.language)
            write_results(found, answers_path)
            scratch = distance_path.with_suffix(".partial")
            scratch.write_text(json.dumps(to_json(measured)))
            scratch.replace(distance_path)
        return read_results(answers_path), from_json(Distance, json.loads(distance_path.read_text()))


def report(results: dict[Cell, tuple[Evaluation, Distance]]) -> str:
    """The table: one row per cell, flips against fp32 with a float cache."""
    base = results[CELLS[0]][0]
    rows = []
    for cell, (found, far) in results.items():
        score, flips = found.score, compare(found, base)
        rows.append((
            cell.language, cell.vision, cell.cache, found.backend, f"{100 * score.accuracy:.1f}",
            f"{100 * score.low:.1f} to {100 * score.high:.1f}",
            "" if found is base else f"{flips.n_gained} gained, {flips.n_lost} lost (p = {flips.p_value:.2f})",
            f"{far.mean_kl:.2e}", f"{far.top1:.3f}", f"{far.mean_cosine:.5f}", f"{far.least_cosine:.5f}",
        ))  # fmt: skip
    n_positions = results[CELLS[0]][1].n_positions
    heading = (
        "language", "tower", "cache", "backend", "right", "95 %", "against fp32", "mean KL", "same argmax",
        "mean cosine", "1st percentile",
    )  # fmt: skip
    return (
        f"{base.set.name}: {base.score.n_asked} questions about {base.cost.n_pictures} pictures; KL over {n_positions} "
        f"tokens of fp32's answers.\n\n{method_page.table(heading, rows)}"
    )


def main() -> None:
    """Measures one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--set", action="append", help="easy-vqa, scenes or a directory; repeatable, one table each (default: scenes)"
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=120, help="questions of a set (default: 120; 0 asks all)")
    parser.add_argument("--kl", type=int, default=40, metavar="N", help="questions for KL and cosine (default: 40)")
    parser.add_argument("--out", type=Path, default=Path("build/fidelity"), help="packages and results")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="write docs/method.md")
    options = parser.parse_args()
    parts = []
    for name in options.set or ["scenes"]:
        fidelity = Fidelity(
            options.checkpoint, options.out, open_set(name), options.limit or None, options.kl, options.threads
        )  # fmt: skip
        results = {}
        for cell in CELLS:
            results[cell] = fidelity.run(cell)
            found, far = results[cell]
            print(f"{cell}: {found.score.accuracy:.3f}, KL {far.mean_kl:.2e}", file=sys.stderr, flush=True)
        parts.append(report(results))
    text = "\n\n".join(parts)
    if options.write:
        method_page.write_section("fidelity", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
