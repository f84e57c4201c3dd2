"""One evaluation as a file: the scores, what they cost, and every answer, so that a later run can be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import UsageError
from edgevlm.evaluation.question_set import SetCard
from edgevlm.evaluation.scores import Flips, Score, flips
from edgevlm.strict_json import from_json, parse_json, to_json
from edgevlm.whole_file import check_writable, write_whole

FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """One question's answer."""

    question: int
    """Line of questions.jsonl, from 0."""
    text: str
    right: bool
    similarity: float


@dataclass(frozen=True)
class PictureCost:
    """One picture with its first question; seconds are the tower's and the language model's alone."""

    image: str
    grid_rows: int
    grid_cols: int
    n_tiles: int
    n_image_tokens: int
    encode_s: float
    prefill_s: float


@dataclass(frozen=True)
class Tiling:
    """The rule that planned the pictures."""

    scheme: str
    max_rows: int
    max_cols: int
    max_tiles: int
    thumbnail: str
    relaxed_alpha: float | None
    """Of 'relaxed' alone."""


@dataclass(frozen=True)
class MeanCost:
    """Means over the pictures."""

    n_pictures: int
    n_tiles: float
    n_image_tokens: float
    encode_s: float
    prefill_s: float


@dataclass(frozen=True)
class Evaluation:
    """What `edgevlm eval --json` prints and `--out` writes."""

    format: int
    package: str
    """The package's name."""
    backend: str
    kv_bits: tuple[tuple[int, int], ...] | None
    """Per layer, as asked for; null: the package's own, or a backend with one form of cache."""
    set: SetCard
    tiling: Tiling
    limit: int | None
    seed: int
    max_new_tokens: int
    score: Score
    categories: dict[str, Score]
    groups: dict[str, dict[str, Score]]
    """By group, then by its value."""
    group_costs: dict[str, dict[str, MeanCost]]
    cost: MeanCost
    elapsed_s: float
    answers: tuple[Answer, ...]
    pictures: tuple[PictureCost, ...]
    flips: Flips | None = None

    @property
    def label(self) -> str:
        """What a comparison calls this run."""
        return f"{self.package} on {self.backend}"


def compare(here: Evaluation, there: Evaluation) -> Flips:
    """Returns how `here` differs from `there`. Raises UsageError when they have no question in common."""
    if here.set.sha256 != there.set.sha256:
        raise UsageError(
            f"the results to compare with are of another set: {there.set.name!r} ({there.set.sha256[:16]}…), these are "
            f"of {here.set.name!r} ({here.set.sha256[:16]}…)"
        )
    rows = [{a.question: (a.right, a.text) for a in run.answers} for run in (here, there)]
    if not rows[0].keys() & rows[1].keys():
        raise UsageError("the two runs have no question in common; give both the same --limit and --seed")
    label = there.label if there.tiling == here.tiling else f"{there.label}, tiling {there.tiling.scheme}"
    return flips(label, rows[0], rows[1])


def write_results(evaluation: Evaluation, path: Path) -> None:
    """Writes the results beside `path` and renames: half a file is never taken for a whole one."""
    text = json.dumps(to_json(evaluation), indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode("utf-8", "replace"), "the results")


def check_results_path(path: Path) -> None:
    """Raises UsageError for a place that cannot be written, before the work begins."""
    check_writable(path, "the results")


def read_results(path: Path) -> Evaluation:
    """Returns what `write_results` wrote. Raises UsageError for anything else."""
    try:
        data = parse_json(path.read_bytes())
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise ValueError(f"the format is {data.get('format')!r}, expected {FORMAT}")
        return from_json(Evaluation, data)
    except OSError as error:
        raise UsageError(f"{path}: cannot read these results ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: these are not results of `edgevlm eval` ({error})") from None
