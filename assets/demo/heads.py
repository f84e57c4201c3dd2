"""Heads that tell what a token shows: trained beside the demo's model, and thrown away with the run."""

from __future__ import annotations

import scenes
import torch
from lessons import CHARACTERS, IGNORED
from torch import nn
from torch.nn import functional as F

COUNT_WEIGHTS = (1.0, 1.0, 2.0, 2.0, 2.0)
"""Of counting to 0, 1 ... 4 in `Midway.loss`: high ordinals are rare."""
EMPTY_WEIGHT = 0.2
"""Of a token that shows nothing of a kind, among those that do."""


class Heads(nn.Module):
    """What a token shows, from the downsampler's output: shape, color, first and second character."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        sizes = (len(scenes.SHAPES) + 1, len(scenes.COLORS) + 1, len(CHARACTERS) + 1, len(CHARACTERS) + 1)
        self.heads = nn.ModuleList(nn.Linear(n_channels, size) for size in sizes)

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        return [head(states) for head in self.heads]


class Midway(nn.Module):
    """What the language model has read and counted at a picture's token, from its states after half its layers.

    First and second character, and the four of `lessons.ordinals`; thrown away later.
    """

    WEIGHTS = (*[(EMPTY_WEIGHT, *[1.0] * len(CHARACTERS))] * 2, *[COUNT_WEIGHTS] * 4)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(weights)) for weights in self.WEIGHTS)

    def loss(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of states (n, D) on labels (n, 6), over the kinds of label that are there."""
        losses = [
            F.cross_entropy(head(states.float()), wanted, torch.tensor(weights), ignore_index=IGNORED)
            for head, wanted, weights in zip(self.heads, labels.T, self.WEIGHTS, strict=True)
            if (wanted != IGNORED).any()
        ]
        return torch.stack(losses).mean() if losses else torch.zeros(())
