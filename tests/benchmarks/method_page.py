"""Tables and plots of docs/method.md: markdown between its markers, PNG files beside it in docs/method/."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevlm.evaluation.question_set import Question
from edgevlm.evaluation.results import Evaluation, compare
from edgevlm.evaluation.scores import Flips, Score

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "method.md"
PLOTS = DOCS / "method"
RULES = ("relaxed", "llava-next", "internvl", "fixed:1x1", "fixed:2x2")
PEERS = ("llava-next", "internvl")
RULE_HEADING = ("rule", "right", "95 %", "tiles", "picture tokens", "encode s", "prefill s", "against relaxed")
SIGNIFICANT = 0.05
Results = Mapping[str, Mapping[str, Evaluation]]
GROUPS = ("aspect ratio", "text height in one tile", "reading", "kind")
"""Divisions of the scenes set (assets/demo/sets.py)."""


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replaces what stands between the page's markers of `name`; the rest of the page is written by hand."""
    whole = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    changed, count = block.subn(lambda match: match[1] + text.rstrip("\n") + "\n" + match[2], whole)
    if count != 1:
        raise SystemExit(f"{page} has {count} blocks between {name}:begin and {name}:end; expected one")
    page.write_text(changed, encoding="utf-8")


def ablation_tables(
    results: Results, questions: Mapping[str, Sequence[Question]], alphas: Sequence[float], budgets: Sequence[int]
) -> str:
    """The section 'ablation'; `questions` are those of each set, in its order."""
    parts: list[str] = []
    for set_name, cells in results.items():
        base = cells["relaxed"]
        parts += [
            f"**{set_name}**: {base.score.n_asked} questions about {base.cost.n_pictures} pictures, package "
            f"`{base.package}` on {base.backend}.",
            table(
                RULE_HEADING,
                [_rule_row(name, cells[name], base) for name in cells if name.split(",")[0] in RULES],
            ),
        ]
    if "scenes" in results:
        cells = results["scenes"]
        for group in GROUPS:
            if group in cells["relaxed"].groups:
                parts += [f"scenes by {group}: right answers, and tiles of a picture in brackets.", _by(group, cells)]
        parts += [
            "Relaxed matching on scenes by alpha, and by the largest number of grid tiles:",
            _sweep("alpha", [(f"{a:g}", cells[f"alpha {a:g}"]) for a in alphas], cells["relaxed"]),
            _sweep("grid tiles", [(f"at most {n}", cells[f"at most {n}"]) for n in budgets], cells["relaxed"]),
        ]
        parts += [
            "![right answers by rule, alpha and budget](method/tilings.png)",
            "![right answers by ratio and by height of the text](method/groups.png)",
        ]
    parts += [
        "What follows for the paper's claim, fewer tiles at equal or better accuracy "
        f"(a loss counts when its p is below {SIGNIFICANT}):",
        "\n".join(_verdicts(results, questions)),
    ]
    return "\n\n".join(parts)


def downsampler_tables(results: Mapping[int, Results]) -> str:
    """The section 'downsampler': each set by the tokens that a tile becomes, `results` by those, merged ones first."""
    merged = next(iter(results.values()))
    parts = []
    for set_name, cells in merged.items():
        base = cells["relaxed"]
        found = {tokens: sets[set_name]["relaxed"] for tokens, sets in results.items()}
        heading = ("tokens a tile", *RULE_HEADING[1:-1], "against merged")
        by_category = [
            (name, f"{score.n_asked}", *(_percent(cell.categories[name].accuracy) for cell in found.values()))
            for name, score in base.categories.items()
        ]
        parts += [
            f"**{set_name}**: {base.score.n_asked} questions about {base.cost.n_pictures} pictures on {base.backend}.",
            table(heading, [_rule_row(f"{tokens}", cell, base) for tokens, cell in found.items()]),
            table(("category", "questions", *(f"{tokens} tokens" for tokens in found)), by_category),
        ]
    return "\n\n".join(parts)


def _rule_row(name: str, cell: Evaluation, base: Evaluation) -> tuple[str, ...]:
    score, cost = cell.score, cell.cost
    return (
        name, _percent(score.accuracy), _interval(score), f"{cost.n_tiles:.2f}", f"{cost.n_image_tokens:.0f}",
        f"{cost.encode_s:.3f}", f"{cost.prefill_s:.3f}", "" if cell is base else _flipped(compare(cell, base)),
    )  # fmt: skip


def _by(group: str, cells: Mapping[str, Evaluation]) -> str:
    rows = []
    for value, score in cells["relaxed"].groups[group].items():
        found = [(cells[rule].groups[group][value], cells[rule].group_costs[group][value]) for rule in RULES]
        shown = [f"{_percent(each.accuracy)} ({cost.n_tiles:.1f})" for each, cost in found]
        rows.append((value, f"{score.n_asked}", *shown))
    return table((group, "questions", *RULES), rows)


def _sweep(name: str, rows: Sequence[tuple[str, Evaluation]], base: Evaluation) -> str:
    return table(
        (name, *RULE_HEADING[1:]),
        [(label, *_rule_row(label, cell, base)[1:]) for label, cell in rows],
    )


def _verdicts(results: Results, questions: Mapping[str, Sequence[Question]]) -> Iterator[str]:
    """One line for each set and peer, and below it one for each ratio and text height."""
    for set_name, cells in results.items():
        ours = cells["relaxed"]
        for peer in PEERS:
            theirs = cells[peer]
            said = verdict(ours.cost.n_tiles, theirs.cost.n_tiles, compare(ours, theirs))
            yield f"- {set_name}, {peer}: {said}"
            for group in GROUPS[:2]:
                for value, cost in ours.group_costs.get(group, {}).items():
                    part = [_only(cell, questions[set_name], group, value) for cell in (ours, theirs)]
                    their_tiles = theirs.group_costs[group][value].n_tiles
                    yield f"  - {group} {value}: {verdict(cost.n_tiles, their_tiles, compare(*part))}"


def _only(cell: Evaluation, questions: Sequence[Question], group: str, value: str) -> Evaluation:
    """The cell with the answers of one group's value alone."""
    return replace(
        cell, answers=tuple(a for a in cell.answers if questions[a.question].groups.get(group) == value)
    )  # fmt: skip


def verdict(tiles: float, their_tiles: float, found: Flips) -> str:
    """Says whether the claim holds: fewer tiles, and no accuracy lost that chance does not explain."""
    fewer = tiles < their_tiles
    worse = found.difference < 0 and found.p_value < SIGNIFICANT
    better = found.difference > 0 and found.p_value < SIGNIFICANT
    numbers = (
        f"{tiles:.2f} tiles against {their_tiles:.2f}, accuracy {found.difference * 100:+.1f} points "
        f"({found.n_gained} gained, {found.n_lost} lost of {found.n_compared}, p = {found.p_value:.2f})"
    )
    if fewer and not worse:
        return f"holds, with {'more' if better else 'about the same number of'} right answers: {numbers}."
    reasons = ([] if fewer else ["no fewer tiles"]) + (["fewer right answers"] if worse else [])
    return f"does not hold, {' and '.join(reasons)}: {numbers}."


def plot_ablation(results: Results, alphas: Sequence[float], budgets: Sequence[int], folder: Path = PLOTS) -> None:
    """Writes tilings.png (right answers over picture tokens, the sweeps of alpha and budget) and groups.png."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    cells = results["scenes"]
    for name in RULES:
        _point(axes[0], cells[name], name)
    axes[0].set(xlabel="picture tokens", ylabel="right answers, %", title="scenes: the rules")
    axes[0].legend()
    _line(axes[1], alphas, [cells[f"alpha {alpha:g}"] for alpha in alphas], "alpha", "relaxed matching by alpha")
    _line(axes[2], budgets, [cells[f"at most {n}"] for n in budgets], "most grid tiles", "relaxed matching by budget")
    figure.savefig(folder / "tilings.png", dpi=110)
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axis, group in zip(figure.subplots(1, 2), GROUPS[:2], strict=True):
        values = list(cells["relaxed"].groups.get(group, {}))
        for name in RULES:
            scores = [cells[name].groups[group][value] for value in values]
            axis.plot(values, [100 * score.accuracy for score in scores], marker="o", label=name)
        axis.set(ylabel="right answers, %", title=f"scenes by {group}")
        axis.legend()
    figure.savefig(folder / "groups.png", dpi=110)


def plot_sizes(
    chunks: Mapping[int, Sequence[float]], batches: Mapping[int, Sequence[float]], folder: Path = PLOTS
) -> None:
    """Writes sizes.png: seconds of every run (least, median, most) by tokens and by tiles of a call."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    shown = (("tokens of a prefill call", chunks), ("tiles of a tower call", batches))
    for axis, (name, seconds) in zip(figure.subplots(1, 2), shown, strict=True):
        medians = [statistics.median(runs) for runs in seconds.values()]
        below = [median - min(runs) for median, runs in zip(medians, seconds.values(), strict=True)]
        above = [max(runs) - median for median, runs in zip(medians, seconds.values(), strict=True)]
        axis.errorbar([str(size) for size in seconds], medians, [below, above], marker="o", capsize=3)
        axis.set(xlabel=name, ylabel="s", ylim=(0, None))
    figure.savefig(folder / "sizes.png", dpi=110)


def _point(axis: Any, cell: Evaluation, label: str) -> None:
    score = cell.score
    errors = [[100 * (score.accuracy - score.low)], [100 * (score.high - score.accuracy)]]
    axis.errorbar([cell.cost.n_image_tokens], [100 * score.accuracy], errors, fmt="o", capsize=3, label=label)


def _line(axis: Any, values: Sequence[float], cells: Sequence[Evaluation], name: str, title: str) -> None:
    scores = [cell.score for cell in cells]
    axis.fill_between(values, [100 * s.low for s in scores], [100 * s.high for s in scores], alpha=0.2)
    axis.plot(values, [100 * s.accuracy for s in scores], marker="o", label="right answers, %")
    axis.set(xlabel=name, ylabel="right answers, %", title=title)
    tiles = axis.twinx()
    tiles.plot(values, [cell.cost.n_tiles for cell in cells], color="tab:orange", marker="s")
    tiles.set_ylabel("tiles of a picture (squares)")


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(score: Score) -> str:
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _flipped(found: Flips) -> str:
    return f"{found.n_gained} gained, {found.n_lost} lost (p = {found.p_value:.2f})"
