"""A quantised package against the fp32 package of the same checkpoint; needs no torch.

Two passes, so that only one model is in memory: the fp32 pass writes its logits to a file, the second one reads them
back row by row. Text is scored in windows that start from an empty cache. A picture prompt is a picture, a passage of
text and a question, answered greedily by the fp32 model; both models are scored on all that stands behind the picture.
Every model sees its own picture features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
"""Of text, and again of picture prompts."""
WINDOW_TOKENS = 544
MAX_WARM_UP_TOKENS = 32
"""Rows at a window's start that are not scored: with hardly any context, every model guesses."""
N_ANSWER_TOKENS = 24
PASSAGE_TOKENS = 320
"""Text between a picture and the question: three prompts make N_POSITIONS, and text costs a tenth of an answer."""
MIN_PASSAGE_TOKENS = 40
"""A context with less room than this gets the question alone."""
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
    """A picture drawn with `size` (height_px, width_px), as pixel values (C, 3, S, S)."""

    size: tuple[int, int]
    pixel_values: Float32


@dataclass(frozen=True)
class PicturePrompt:
    """Ids with one picture in them; `picture` is its index among the probes."""

    picture: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class StoredLogits:
    """Rows (vocab,) float32 in a file, read as they are needed: as a map, all of them would stay in memory."""

    path: Path
    vocab: int

    def rows(self, start: int, n_rows: int) -> Float32:
        """Returns rows `start` to `start + n_rows`, (n_rows, vocab)."""
        offset = start * self.vocab * np.dtype(np.float32).itemsize
        return np.fromfile(self.path, np.float32, n_rows * self.vocab, offset=offset).reshape(n_rows, self.vocab)


@dataclass(frozen=True)
class Teacher:
    """What the fp32 pass leaves for the second one."""

    windows: tuple[Window, ...]
    pictures: tuple[PictureProbe, ...]
    prompts: tuple[PicturePrompt, ...]
    answers: tuple[tuple[int, ...], ...]
    """One per prompt."""
    features: tuple[Float32, ...]
    """One per picture."""
    logits: StoredLogits
    """Counted rows of all windows, then of all picture prompts."""


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
    """Returns pictures, the cheapest first, MAX_PROBE_TILES tiles in all, one that is cut into tiles at least."""
    spec = package.manifest.processor
    if spec is None:
        return ()
    plans = {size: plan_tiles(*size, spec) for size in probes.PICTURE_SIZES}
    by_cost = sorted(plans, key=lambda size: (plans[size].n_tiles == 1, plans[size].n_tiles))
    chosen: list[tuple[int, int]] = []
    n_tiles = 0
    for size in by_cost:
        if not chosen or n_tiles + plans[size].n_tiles <= MAX_PROBE_TILES:
            chosen.append(size)
            n_tiles += plans[size].n_tiles
    return tuple(
        PictureProbe(size, normalize(cut_tiles(probes.picture(*size), plans[size], spec), spec)) for size in chosen
    )


def picture_prompts(package: Package, pictures: Sequence[PictureProbe], n_positions: int) -> tuple[PicturePrompt, ...]:
    """Returns prompts about the pictures in turn, each with the next passage of text and the question.

    Every picture is asked about, and then again until at least `n_positions` rows behind pictures are counted (fewer
    if the text ends, or if the model's context has no room for a passage).
    """
    tokenizer, image_token_id = Tokenizer.open(package), _image_token_id(package)
    text = probes.text()
    page = tokenizer.encode(text[len(text) // 2 :])  # the first half is scored without pictures
    limit = package.manifest.decoder.max_position_embeddings - N_ANSWER_TOKENS
    found: list[PicturePrompt] = []
    n_counted = used = 0
    while pictures and (len(found) < len(pictures) or (n_counted < n_positions and 0 < used < len(page))):
        index = len(found) % len(pictures)
        size = [pictures[index].size]
        ids = our_prompt_ids(package, tokenizer, probes.QUESTION, size)
        n_passage = min(PASSAGE_TOKENS, limit - len(ids) - len(ids) // 8)
        if n_passage >= MIN_PASSAGE_TOKENS:
            passage = tokenizer.decode(page[used : used + n_passage])
            used += n_passage
            ids = our_prompt_ids(package, tokenizer, f"{passage}\n\n{probes.QUESTION}", size)
        found.append(PicturePrompt(index, tuple(ids)))
        n_counted += len(ids) - last_index(ids, image_token_id) - 1 + N_ANSWER_TOKENS
    return tuple(found)


def run_teacher(
    session: Session, package: Package, scratch: Path, n_positions: int, progress: Progress | None = None
) -> Teacher:
    """Runs the fp32 `session` on the probes of `package`; its logits go to a file in `scratch`."""
    windows, pictures = text_windows(package, n_positions), picture_probes(package)
    prompts = picture_prompts(package, pictures, n_positions)
    image_token_id = _image_token_id(package)
    features = tuple(session.encode(probe.pixel_values) for probe in pictures)
    if pictures:
        session.release("vision")
    path = scratch / "teacher.f32"
    answers: list[tuple[int, ...]] = []
    with path.open("wb") as file:

        def store(rows: Float32) -> None:
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())

        for index, window in enumerate(windows):
            _report(progress, "fp32 text", index, len(windows))
            for rows in _counted_rows(session, window):
                store(rows)
        for index, prompt in enumerate(prompts):
            _report(progress, "fp32 pictures", index, len(prompts))
            rest = _prefill_picture(session, prompt, features[prompt.picture], image_token_id)
            rows = np.zeros((0, package.manifest.decoder.vocab_size), np.float32)
            for rows in chain_logits(session, rest):
                store(rows)
            answer: list[int] = []
            for _ in range(N_ANSWER_TOKENS):
                answer.append(int(rows[-1].argmax()))
                rows = session.step(answer[-1], session.n_past)[None]
                store(rows)
            answers.append(tuple(answer))
    logits = StoredLogits(path, package.manifest.decoder.vocab_size)
    return Teacher(windows, pictures, prompts, tuple(answers), features, logits)


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
            text.add(teacher.logits.rows(row, len(rows)), rows)
            row += len(rows)
    for index, prompt in enumerate(teacher.prompts):
        _report(progress, "quantised pictures", index, len(teacher.prompts))
        rest = _prefill_picture(session, prompt, features[prompt.picture], image_token_id)
        answer = np.asarray(teacher.answers[index], np.int64)
        for rows in chain_logits(session, np.concatenate([rest, answer])):
            pictures.add(teacher.logits.rows(row, len(rows)), rows)
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


def _prefill_picture(session: Session, prompt: PicturePrompt, features: Float32, image_token_id: int) -> Int64:
    """Puts the prompt up to its last image token into the empty cache; returns the ids behind."""
    session.truncate(0)
    segments, rest = split_prompt(prompt.ids, image_token_id, features)
    n_first = last_index(prompt.ids, image_token_id) + 1
    session.prefill(segments, np.arange(n_first, dtype=np.int64))
    return rest


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(f"verify: {stage}", done, total)
