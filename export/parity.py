"""Our stages against transformers: pixels, grids and prompt ids exactly; features, logits and greedy tokens in fp32.

The picture and prompt checks run on the package itself; features, logits and greedy tokens on an fp32 package of the
same checkpoint, through the session that users run. `expect` collects what transformers says, so that the torch model
can be dropped before ours is loaded; `compare` takes that and a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, Float32, Int64, Segment, Session
from edgevlm.errors import UsageError
from edgevlm.image import normalize
from edgevlm.model import as_messages
from edgevlm.package import Package
from edgevlm.prompt import ChatTemplate, build_segments, segment_ids
from edgevlm.spec import ParityEntry
from edgevlm.tiling import cut_tiles, plan_tiles
from edgevlm.tokenizer import Tokenizer
from export import probes
from export.reference.model import Reference, ReferencePicture

ATOL, RTOL = 1e-4, 1e-3
"""fp32 on both sides: what sums taken in another order may differ by."""
PIXEL_VALUES_ATOL = 1e-5
"""Rounding of two float32 operations on values up to 2.7."""
N_GREEDY = 32
N_ADDED_TOKENS = 300
"""Most added tokens that are looked for in text; some vocabularies reserve thousands."""
N_TEXT_TOKENS = 160
"""One chunk of 128 and a part of the next, so that the cache between chunks is covered."""

MAX_ABS_METRIC = "max abs error"
STAGES = ("pixels", "pixel values", "tile grid", "prompt ids", "vision features", "logits", "greedy tokens")


@dataclass(frozen=True)
class Difference:
    """Distance of two arrays: largest absolute difference, and largest |a - b| / (ATOL + RTOL |b|)."""

    max_abs: float
    ratio: float


@dataclass(frozen=True)
class Expected:
    """What transformers computes for the probes. Picture fields are empty for a language model, and the reverse."""

    against: str
    text_ids: tuple[int, ...] = ()
    text_logits: Float32 | None = None
    """(T, vocab), every row of `text_ids`."""
    text_greedy: tuple[int, ...] = ()
    pixel_values: Float32 | None = None
    features: Float32 | None = None
    prompt_ids: tuple[int, ...] = ()
    """Of a prompt with one picture."""
    prompt_logits: Float32 | None = None
    """(T, vocab), the rows behind the last image token."""
    prompt_greedy: tuple[int, ...] = ()


def difference(ours: NDArray[np.floating], expected: NDArray[np.floating]) -> Difference:
    """Compares in float64; another shape or a NaN is infinitely far."""
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return Difference(np.inf, np.inf)
    max_abs = ratio = 0.0
    for a, b in zip(ours, expected, strict=True):  # row by row, or tile by tile: float64 of all tiles is 0.5 GB
        wide = b.astype(np.float64)
        distance = np.abs(a - wide)
        max_abs = max(max_abs, float(distance.max()))
        ratio = max(ratio, float((distance / (ATOL + RTOL * np.abs(wide))).max()))
    return Difference(max_abs, ratio)


def check_pictures(
    package: Package, reference: Reference, sizes: Sequence[tuple[int, int]] = probes.PICTURE_SIZES
) -> list[ParityEntry]:
    """Draws a picture of each size and compares pixels (uint8), normalised values and tile grids."""
    spec = package.manifest.processor
    if spec is None:
        return []
    n_pixels, n_grids, worst = 0, 0, 0.0
    for seed, (height_px, width_px) in enumerate(sizes):
        image = probes.picture(height_px, width_px, seed)
        expected = reference.picture(image)
        plan = plan_tiles(height_px, width_px, spec)
        tiles = cut_tiles(image, plan, spec)
        grid = (max(expected.grid[0], 1), max(expected.grid[1], 1))
        if (plan.grid_rows, plan.grid_cols) != grid or tiles.shape != expected.tiles.shape:
            n_grids += 1
            n_pixels += expected.tiles.size
            worst = np.inf
            continue
        n_pixels += int((tiles != expected.tiles).sum())
        worst = max(worst, difference(normalize(tiles, spec), expected.pixel_values).max_abs)
    detail = f"{len(sizes)} pictures"
    return [
        exact("pixels", reference.name, "differing uint8 values", n_pixels, detail),
        bounded("pixel values", reference.name, MAX_ABS_METRIC, worst, PIXEL_VALUES_ATOL, detail),
        exact("tile grid", reference.name, "differing grids", n_grids, detail),
    ]


def check_prompt_ids(
    package: Package, reference: Reference, sizes: Sequence[tuple[int, int]] = probes.PICTURE_SIZES[:4]
) -> list[ParityEntry]:
    """Compares the ids of prompts: text alone, one picture of each size, two pictures, conversations, plain text.

    Plain text is a page, and each of the first added tokens between words.
    """
    tokenizer = Tokenizer.open(package)
    spec, n_prompts, n_wrong = package.manifest.processor, 0, 0
    groups: list[list[tuple[int, int]]] = [[]]
    if spec is not None:
        groups += [[size] for size in sizes] + [list(sizes[:2])]
    for group in groups:
        pictures = [reference.layout(probes.picture(*size)) for size in group]
        ours = our_prompt_ids(package, tokenizer, probes.QUESTION, [] if spec is None else group)
        n_prompts += 1
        n_wrong += ours != reference.prompt_ids(probes.QUESTION, pictures)
    for turns in probes.CONVERSATIONS:
        n_prompts += 1
        n_wrong += our_chat_ids(package, tokenizer, turns) != reference.chat_ids(turns)
    page = probes.text()[:4000]
    n_wrong += tokenizer.encode(page) != reference.text_ids(page)
    added = reference.added_tokens()[:N_ADDED_TOKENS]
    for text in (f"one {token} two{token}{token}\nthree" for token in added):
        n_wrong += tokenizer.encode(text, allow_special=True) != reference.text_ids(text)
    detail = f"{n_prompts} prompts, a page of text and {len(added)} added tokens"
    return [exact("prompt ids", reference.name, "differing prompts", n_wrong, detail)]


def our_chat_ids(package: Package, tokenizer: Tokenizer, turns: Sequence[tuple[str, str]]) -> list[int] | None:
    """Returns the ids of a conversation of (role, text); None when the template refuses it or there is none."""
    template = ChatTemplate.open(package)
    if template.source is None:
        return None
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        return segment_ids(build_segments(messages, template, tokenizer, package.manifest.prompt), -1)
    except UsageError:
        return None


def our_prompt_ids(package: Package, tokenizer: Tokenizer, text: str, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the ids of one user turn with pictures of `sizes` first, image tokens written out."""
    manifest = package.manifest
    plans = [] if manifest.processor is None else [plan_tiles(*size, manifest.processor) for size in sizes]
    template = ChatTemplate.open(package)
    segments = build_segments(as_messages(text, len(sizes)), template, tokenizer, manifest.prompt, plans)
    return segment_ids(segments, -1 if manifest.prompt is None else manifest.prompt.image_token_id)


def expect(reference: Reference, n_greedy: int = N_GREEDY) -> Expected:
    """Runs transformers on the probes: a piece of text, and a prompt with the multi-tile picture that is cheapest."""
    found = Expected(reference.name)
    features: Float32 | None = None
    if reference.has_vision:
        picture = _cheapest_picture(reference)
        features = reference.image_features(picture.pixel_values)
        found = replace(found, pixel_values=picture.pixel_values, features=features)
        if reference.has_language:
            ids = reference.prompt_ids(probes.QUESTION, [picture])
            after = last_index(ids, reference.parts.image_token_id) + 1
            found = replace(
                found,
                prompt_ids=tuple(ids),
                prompt_logits=reference.logits(ids, features)[after:],
                prompt_greedy=tuple(reference.greedy(ids, n_greedy, features)),
            )
    if reference.has_language:
        limit = int(reference.parts.language.config.max_position_embeddings) - n_greedy
        ids = reference.text_ids(probes.text()[:4000])[: min(N_TEXT_TOKENS, limit)]
        found = replace(
            found,
            text_ids=tuple(ids),
            text_logits=reference.logits(ids),
            text_greedy=tuple(reference.greedy(ids, n_greedy)),
        )
    return found


def _cheapest_picture(reference: Reference) -> ReferencePicture:
    images = [probes.picture(*size) for size in probes.PICTURE_SIZES[:5]]
    n_tiles = [len(reference.layout(image).tiles) for image in images]
    cheapest = min(range(len(images)), key=lambda index: (n_tiles[index] == 1, n_tiles[index]))
    return reference.picture(images[cheapest])


def compare_features(features: Float32, expected: Expected) -> list[ParityEntry]:
    """Compares image features (C, V, D) of the expected pixel values."""
    if expected.features is None:
        raise ValueError("the reference computed no features")
    found = difference(features, expected.features)
    return _close("vision features", expected.against, found, f"{len(features)} tiles")


def compare(session: Session, expected: Expected, image_token_id: int) -> list[ParityEntry]:
    """Compares features, logits (with their argmax) and greedy tokens; the cache is emptied before each part."""
    entries: list[ParityEntry] = []
    logits: list[tuple[Float32, Float32]] = []
    n_wrong, n_tokens = 0, 0
    features: Float32 | None = None
    if expected.pixel_values is not None:
        features = session.encode(expected.pixel_values)
        entries += compare_features(features, expected)
        session.release("vision")
    for ids, wanted, greedy in (
        (expected.text_ids, expected.text_logits, expected.text_greedy),
        (expected.prompt_ids, expected.prompt_logits, expected.prompt_greedy),
    ):
        if wanted is None:
            continue
        session.truncate(0)
        segments, rest = split_prompt(ids, image_token_id, features)
        if segments:
            n_first = sum(map(len, segments))
            session.prefill(segments, np.arange(n_first, dtype=np.int64))
        rows = np.concatenate(list(chain_logits(session, rest)))
        logits.append((rows, wanted))
        ours = greedy_tokens(session, int(rows[-1].argmax()), len(greedy))
        n_wrong += sum(a != b for a, b in zip(ours, greedy, strict=True))
        n_tokens += len(greedy)
    if logits:
        found = [difference(rows, wanted) for rows, wanted in logits]
        worst = Difference(max(one.max_abs for one in found), max(one.ratio for one in found))
        n_rows = sum(len(rows) for rows, _ in logits)
        entries += _close("logits", expected.against, worst, f"{n_rows} rows")
        n_argmax = sum(int((rows.argmax(1) != wanted.argmax(1)).sum()) for rows, wanted in logits)
        entries.append(exact("logits", expected.against, "rows of another argmax", n_argmax, f"{n_rows} rows"))
        entries.append(exact("greedy tokens", expected.against, "differing tokens", n_wrong, f"{n_tokens} tokens"))
    return entries


def split_prompt(ids: Sequence[int], image_token_id: int, features: Float32 | None) -> tuple[list[Segment], Int64]:
    """Returns the segments up to the last image token, with `features` in place of image tokens, and the ids behind."""
    array = np.asarray(ids, np.int64)
    is_image = array == image_token_id
    if features is None or not is_image.any():
        return [], array
    flat = np.ascontiguousarray(features.reshape(-1, features.shape[-1]))
    end = int(np.flatnonzero(is_image)[-1]) + 1
    segments: list[Segment] = []
    edges = [0, *(np.flatnonzero(np.diff(is_image[:end].astype(np.int8))) + 1).tolist(), end]
    used = 0
    for start, stop in pairwise(edges):
        if is_image[start]:
            segments.append(flat[used : used + stop - start])
            used += stop - start
        elif stop > start:
            segments.append(array[start:stop])
    if used != len(flat):
        raise ValueError(f"the prompt has {used} image tokens, the features have {len(flat)}")
    return segments, array[end:]


def chain_logits(session: Session, ids: Int64) -> Iterator[Float32]:
    """Appends `ids` behind what the session holds; yields their logits (at most 128, vocab) chunk by chunk."""
    for start in range(0, len(ids), PREFILL_CHUNK_TOKENS):
        part = ids[start : start + PREFILL_CHUNK_TOKENS]
        nodes = np.arange(len(part), dtype=np.int64)
        logits = session.score(part, nodes - 1, nodes + session.n_past)
        session.accept(nodes)
        yield logits


def greedy_tokens(session: Session, first: int, n_tokens: int) -> list[int]:
    """Returns `first` and the most likely tokens after it, `n_tokens` in all."""
    tokens = [first]
    while len(tokens) < n_tokens:
        tokens.append(int(session.step(tokens[-1], session.n_past).argmax()))
    return tokens


def last_index(ids: Sequence[int], token: int) -> int:
    """Returns the index of the last `token` in `ids`, -1 when there is none."""
    return max((index for index, value in enumerate(ids) if value == token), default=-1)


def exact(stage: str, against: str, metric: str, count: int, detail: str) -> ParityEntry:
    """An entry that passes at zero."""
    return ParityEntry(stage, against, metric, "pass" if count == 0 else "fail", float(count), 0.0, detail)


def bounded(stage: str, against: str, metric: str, value: float, bound: float, detail: str) -> ParityEntry:
    """An entry that passes at or below `bound`; NaN and infinity fail and are stored as the largest float."""
    return ParityEntry(stage, against, metric, "pass" if value <= bound else "fail", _stored(value), bound, detail)


def _close(stage: str, against: str, found: Difference, detail: str) -> list[ParityEntry]:
    """The bounded ratio, and the largest absolute error, which is easier to read."""
    bounded_ratio = bounded(stage, against, f"|error| / ({ATOL:g} + {RTOL:g} |reference|)", found.ratio, 1.0, detail)
    return [bounded_ratio, replace(bounded_ratio, metric=MAX_ABS_METRIC, value=_stored(found.max_abs), bound=None)]


def _stored(value: float) -> float:
    """JSON has no infinity."""
    return value if np.isfinite(value) else float(np.finfo(np.float32).max)
