"""A quantised package against the fp32 package of the same checkpoint; needs no torch.

Two passes, so that only one model is in memory: the fp32 pass writes its logits to a file, the second one reads them
back row by row. Text is scored in windows that start from an empty cache; picture prompts are answered greedily by the
fp32 model, and both models are scored on the question and that answer. Every model sees its own picture features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm.backends.session import Float32, Int64, Session
from edgevlm.image import normalize
from edgevlm.package import Package
from edgevlm.spec import ParityEntry
from edgevlm.tiling import cut_tiles, plan_tiles
from edgevlm.tokenizer import Tokenizer
from export import probes
from export.divergence import MIN_MEAN_COSINE, DivergenceMeter, bound_for, token_cosines
from export.parity import bounded, chain_logits, last_index, our_prompt_ids, split_prompt

AGAINST = "own fp32 graphs"
N_POSITIONS = 1024
WINDOW_TOKENS = 544
MAX_WARM_UP_TOKENS = 32
"""Rows at a window's start that are not scored: with hardly any context, every model guesses."""
N_ANSWER_TOKENS = 24
MAX_PROBE_TILES = 8
"""Tiles of all picture probes together; one picture is always taken."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Window:
    """Tokens scored behind an empty cache or a picture; the first `skip` rows are not counted."""

    ids: Int64
    skip: int


@dataclass(frozen=True)
class PictureProbe:
    """A prompt whose picture is given as pixel values (C, 3, S, S)."""

    prompt_ids: tuple[int, ...]
    pixel_values: Float32


@dataclass(frozen=True)
class Teacher:
    """What the fp32 pass leaves for the second one."""

    windows: tuple[Window, ...]
    pictures: tuple[PictureProbe, ...]
    answers: tuple[tuple[int, ...], ...]
    features: tuple[Float32, ...]
    logits: np.memmap[tuple[int, int], np.dtype[np.float32]]
    """(rows, vocab): counted rows of all windows, then of all picture prompts."""


def text_windows(package: Package, n_positions: int) -> tuple[Window, ...]:
    """Returns windows of the measuring text with at least `n_positions` counted rows (fewer if the text ends)."""
    length = min(WINDOW_TOKENS, package.manifest.decoder.max_position_embeddings)
    skip = min(MAX_WARM_UP_TOKENS, length // 8)
    n_windows = -(-n_positions // (length - skip))
    ids = Tokenizer.open(package).encode(probes.text()[: 16 * n_windows * length])
    ids = ids[: n_windows * length]
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    return tuple(Window(np.asarray(piece, np.int64), skip) for piece in pieces if len(piece) > skip)


def picture_probes(package: Package) -> tuple[PictureProbe, ...]:
    """Returns prompts with one picture each, cheapest first, MAX_PROBE_TILES tiles in all, one cut picture at least."""
    spec = package.manifest.processor
    if spec is None:
        return ()
    tokenizer = Tokenizer.open(package)
    plans = {size: plan_tiles(*size, spec) for size in probes.PICTURE_SIZES}
    by_cost = sorted(plans, key=lambda size: (plans[size].n_tiles == 1, plans[size].n_tiles))
    chosen: list[tuple[int, int]] = []
    n_tiles = 0
    for size in by_cost:
        if not chosen or n_tiles + plans[size].n_tiles <= MAX_PROBE_TILES:
            chosen.append(size)
            n_tiles += plans[size].n_tiles
    found = []
    for size in chosen:
        pixels = normalize(cut_tiles(probes.picture(*size), plans[size], spec), spec)
        found.append(PictureProbe(tuple(our_prompt_ids(package, tokenizer, probes.QUESTION, [size])), pixels))
    return tuple(found)


def run_teacher(
    session: Session, package: Package, scratch: Path, n_positions: int, progress: Progress | None = None
) -> Teacher:
    """Runs the fp32 `session` on the probes of `package`; its logits go to a file in `scratch`."""
    windows, pictures = text_windows(package, n_positions), picture_probes(package)
    image_token_id = _image_token_id(package)
    features = tuple(session.encode(probe.pixel_values) for probe in pictures)
    if pictures:
        session.release("vision")
    path = scratch / "teacher.f32"
    n_rows = 0
    answers: list[tuple[int, ...]] = []
    with path.open("wb") as file:

        def store(rows: Float32) -> None:
            nonlocal n_rows
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            n_rows += len(rows)

        for index, window in enumerate(windows):
            _report(progress, "fp32 text", index, len(windows))
            for rows in _counted_rows(session, window):
                store(rows)
        for index, (probe, seen) in enumerate(zip(pictures, features, strict=True)):
            _report(progress, "fp32 pictures", index, len(pictures))
            rest = _prefill_picture(session, probe, seen, image_token_id)
            rows = np.zeros((0, package.manifest.decoder.vocab_size), np.float32)
            for rows in chain_logits(session, rest):
                store(rows)
            answer: list[int] = []
            for _ in range(N_ANSWER_TOKENS):
                answer.append(int(rows[-1].argmax()))
                rows = session.step(answer[-1], session.n_past)[None]
                store(rows)
            answers.append(tuple(answer))
    shape = (n_rows, package.manifest.decoder.vocab_size)
    logits = np.memmap(path, np.float32, "r", shape=shape)
    return Teacher(windows, pictures, tuple(answers), features, logits)


def compare_student(
    session: Session, package: Package, teacher: Teacher, progress: Progress | None = None
) -> list[ParityEntry]:
    """Runs the quantised `session` of `package` on what the teacher saw; one entry per number."""
    image_token_id = _image_token_id(package)
    features = [session.encode(probe.pixel_values) for probe in teacher.pictures]
    if features:
        session.release("vision")
    row = 0
    quant = package.manifest.quant
    text_schemes, picture_schemes = (quant.language_scheme,), (quant.language_scheme, quant.vision_scheme)
    text, pictures = DivergenceMeter(bound_for(*text_schemes)), DivergenceMeter(bound_for(*picture_schemes))
    for index, window in enumerate(teacher.windows):
        _report(progress, "quantised text", index, len(teacher.windows))
        for rows in _counted_rows(session, window):
            text.add(teacher.logits[row : row + len(rows)], rows)
            row += len(rows)
    for index, probe in enumerate(teacher.pictures):
        _report(progress, "quantised pictures", index, len(teacher.pictures))
        rest = _prefill_picture(session, probe, features[index], image_token_id)
        answer = np.asarray(teacher.answers[index], np.int64)
        for rows in chain_logits(session, np.concatenate([rest, answer])):
            pictures.add(teacher.logits[row : row + len(rows)], rows)
            row += len(rows)
    entries = divergence_entries("text", text_schemes, text)
    if teacher.pictures:
        entries.append(cosine_entry(features, teacher.features))
        entries += divergence_entries("picture prompts", picture_schemes, pictures)
    return entries


def divergence_entries(stage: str, schemes: tuple[str, ...], meter: DivergenceMeter) -> list[ParityEntry]:
    """Returns mean KL and top-1 agreement against what the meter's bound allows at these positions."""
    detail = f"{meter.n_positions} positions, {' and '.join(schemes)}"
    kl = bounded(stage, AGAINST, "mean KL", meter.mean_kl, meter.largest_mean_kl, f"{detail}, p99 {meter.p99_kl:.2g}")
    return [kl, at_least(stage, "top-1 agreement", meter.top1, meter.smallest_top1, detail)]


def cosine_entry(ours: list[Float32], teacher: tuple[Float32, ...]) -> ParityEntry:
    """Returns the mean cosine of picture tokens; the first percentile stands in the detail."""
    cosines = np.concatenate([token_cosines(a, b) for a, b in zip(ours, teacher, strict=True)])
    detail = f"{len(cosines)} tokens, 1st percentile {np.quantile(cosines, 0.01):.5f}"
    return at_least("vision features", "mean cosine", float(cosines.mean()), MIN_MEAN_COSINE, detail)


def at_least(stage: str, metric: str, value: float, bound: float, detail: str) -> ParityEntry:
    """An entry that passes at or above `bound`; NaN fails and is stored as -1."""
    passed = bool(value >= bound)
    return ParityEntry(
        stage, AGAINST, metric, "pass" if passed else "fail", value if np.isfinite(value) else -1.0, bound, detail
    )


def _image_token_id(package: Package) -> int:
    prompt = package.manifest.prompt
    return -1 if prompt is None else prompt.image_token_id


def _counted_rows(session: Session, window: Window) -> Iterator[Float32]:
    session.truncate(0)
    seen = 0
    for rows in chain_logits(session, window.ids):
        counted = rows[max(window.skip - seen, 0) :]
        seen += len(rows)
        if len(counted):
            yield counted


def _prefill_picture(session: Session, probe: PictureProbe, features: Float32, image_token_id: int) -> Int64:
    """Puts the prompt up to its last image token into the empty cache; returns the ids behind."""
    session.truncate(0)
    segments, rest = split_prompt(probe.prompt_ids, image_token_id, features)
    n_first = last_index(probe.prompt_ids, image_token_id) + 1
    session.prefill(segments, np.arange(n_first, dtype=np.int64))
    return rest


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(f"verify: {stage}", done, total)
