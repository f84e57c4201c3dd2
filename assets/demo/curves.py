"""Draws a training run's curves: the loss of both stages, and what was right on pictures that no step has seen.

    python assets/demo/curves.py assets/demo/training-log.csv -o assets/demo/training.png
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

SHOWN = {
    "see shape": "token: shape", "see color": "token: color", "see first": "token: character",
    "easy": "easy-VQA", "scenes shape": "scenes: shape", "scenes color": "scenes: color",
    "scenes count": "scenes: count",
    "scenes number": "scenes: number", "scenes word": "scenes: word",
}  # fmt: skip
"""Score in the log → its label."""


def read_scores(path: Path) -> tuple[list[tuple[int, float]], dict[str, list[tuple[int, float]]]]:
    """(step, loss) rows, and (step, share right) rows by score."""
    losses, scores = [], defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row["step"])
            losses.append((step, float(row["loss"])))
            words = row["scores"].replace(" ", "\0").split("\0")
            name: list[str] = []
            for word in words:
                part, equals, value = word.partition("=")
                name.append(part)
                if equals:
                    scores[" ".join(name)].append((step, float(value)))
                    name = []
    return losses, scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a training run's curves.")
    parser.add_argument("log", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("svg" if options.out.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    losses, scores = read_scores(options.log)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), gridspec_kw={"width_ratios": (1, 2)})
    left.plot(*zip(*losses, strict=True), color="0.3")
    left.set(xlabel="step", ylabel="mean loss", yscale="log", title="loss")
    for name, label in SHOWN.items():
        if name in scores:
            right.plot(*zip(*scores[name], strict=True), label=label, marker=".")
    right.set(xlabel="step", ylabel="share right", ylim=(0, 1), title="pictures not trained on")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
