"""Stage 1 of training the demo's model: every picture token learns to say what it shows, without the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scenes
import torch
from heads import EMPTY_WEIGHT
from lessons import CHARACTERS, IGNORED, cells, normalised, scene_example
from torch import distributed as dist
from torch.nn import functional as F

if TYPE_CHECKING:
    from train import Run

SEE_MIX = {"objects": 0.13, "page": 0.6, "words": 0.11, "strip": 0.08, "screenshot": 0.08}
"""Share of the pictures of each kind."""


def see_step(run: Run) -> float:
    """Stage 1: one step on `--see-tiles` tiles."""
    rng = run.rng(1)
    tiles, labels, left = [], [], run.options.see_tiles
    while left > 0:
        kind = str(rng.choice(list(SEE_MIX), p=list(SEE_MIX.values())))
        example = scene_example("train", int(rng.integers(2**40)), kind)
        found = cells(example)
        shown = np.stack([found.shape, found.color, found.first, found.second], 2)
        busy = np.flatnonzero((shown > 0).any((1, 2)))
        chosen = rng.permutation(busy if len(busy) else len(shown))[: min(left, 4)]
        tiles.append(example.tiles[chosen])
        labels.append(shown[chosen])
        left -= len(chosen)
    targets = torch.from_numpy(np.concatenate(labels)).flatten(0, 1)
    states = run.projector.cells(run.tower(normalised(np.concatenate(tiles)))).flatten(0, 1)
    loss = torch.zeros(())
    for head, scores in enumerate(run.heads(states)):
        weight = torch.ones(scores.shape[1])
        weight[0] = EMPTY_WEIGHT
        loss = loss + F.cross_entropy(scores, targets[:, head], weight, ignore_index=IGNORED)
    loss = loss + pointing_loss(run, run.projector.mlp(states), targets)
    fraction = run.step / run.options.see_steps
    rate = run.options.see_rate * min(1.0, (run.step + 1) / 30) * (1 - 0.9 * fraction)
    run.update(loss, {"projector": rate, "heads": rate, "tower": rate})
    return loss.item()


def pointing_loss(run: Run, embeds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared distance to the embeddings of what a token shows, in units of their variance; empty tokens point at 0.

    A shape's token points at its color's and its shape's word, a character's at the first and, half as far, the second.
    """
    tables = [
        torch.stack([torch.zeros_like(embeds[0]), *(run.words[name] for name in names)])
        for names in (scenes.SHAPES, list(scenes.COLORS), list(CHARACTERS), list(CHARACTERS))
    ]
    known = targets.clamp(min=0)
    parts = (0.7, 0.7, 1.0, 0.5)
    goal = torch.stack([parts[i] * table[known[:, i]] for i, table in enumerate(tables)]).sum(0)
    weight = torch.where((known > 0).any(1), 1.0, 0.1)
    distance = (embeds - goal).square().mean(1) / tables[1][1:].var()
    return (distance * weight).sum() / weight.sum()


def see_accuracy(run: Run, count: int = 24) -> dict[str, float]:
    """Share of busy tokens labelled right on validation scenes, by head (stage 1)."""
    right = np.zeros((4, 2), int)
    with torch.no_grad():
        for index in range(run.rank, count, run.options.workers):
            example = scene_example("validation", index)
            found = cells(example)
            scores = run.heads(run.projector.cells(run.tower(normalised(example.tiles))))
            for head, labels in enumerate((found.shape, found.color, found.first, found.second)):
                busy = torch.from_numpy(labels > 0)
                right[head] += int((scores[head].argmax(-1).numpy() == labels)[busy.numpy()].sum()), int(busy.sum())
    counts = torch.from_numpy(right)
    if run.options.workers > 1:
        dist.all_reduce(counts)
    names = ("see shape", "see color", "see first", "see second")
    return {name: round(hits / max(asked, 1), 4) for name, (hits, asked) in zip(names, counts.tolist(), strict=True)}
