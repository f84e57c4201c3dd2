"""Stage 2 of training the demo's model: questions about pictures, and plain text that must stay what it was."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scenes
import torch
from lessons import (
    N_EASY_IMAGES,
    N_HELD_OUT,
    Example,
    Packed,
    cells,
    embeddings,
    normalised,
    ordinals,
    pack,
    row_length,
    scene_example,
    thinned,
)
from networks import TILE_TOKENS
from torch import distributed as dist
from torch.nn import functional as F

if TYPE_CHECKING:
    from train import Run

MIX = {"easy-vqa": 0.05, "objects": 0.45, "words": 0.2, "strip": 0.15, "screenshot": 0.15}
"""Share of the steps that each kind of picture gets."""
QUESTIONS = 7
"""At most so many questions a picture and step, so that pictures vary more."""
TILE_COST = 26
"""A tile through the tower costs as much as so many tokens through the language model and back."""
STORED_FOR = 12
"""Steps until the weights are rounded again; in between their updates move them off the grid."""
WRITTEN_TOKENS = 192
"""Of each plain text."""
TEXT_TOKENS = 96
"""Of the part of one that a step shows."""


def answer_step(run: Run, texts: list[torch.Tensor]) -> float:
    """Stage 2: one step on questions and on a stretch of plain text."""
    rng = run.rng(2)
    examples = pictures(run, rng)
    turns = [bool(rng.random() < 0.25) for _ in examples]
    if run.step % STORED_FOR == 0:
        run.language.store(run.plan)
    with run.language.form("stored" if rng.random() < run.options.stored else "updated"):
        return answer_update(run, examples, turns, texts, rng)


def answer_update(
    run: Run, examples: list[Example], turns: list[bool], texts: list[torch.Tensor], rng: np.random.Generator
) -> float:
    """Loss of the answers, after one optimiser step on all that stage 2 asks for."""
    logits, packed = answer_logits(run, examples, turns)
    weights = (1 / packed.lengths).repeat_interleave(packed.lengths) / len(packed.lengths)
    answers = (F.cross_entropy(logits, packed.targets, reduction="none") * weights).sum()
    loss = answers + run.options.midway_weight * midway_loss(run, examples, packed)
    divergence = text_divergence(run, texts, rng)
    run.text_losses.append(divergence.item())
    loss = loss + run.options.text_weight * divergence
    done = run.step - run.options.see_steps
    rate = learning_rate(done, run.options)
    run.update(loss, {"projector": rate, "language": rate, "midway": run.options.rate})
    return answers.item()


def pictures(run: Run, rng: np.random.Generator) -> list[Example]:
    """One worker's pictures of a step: of one kind, as many as `--tokens` allows, whole or thinned."""
    kind = str(rng.choice(list(MIX), p=list(MIX.values())))
    share = float(rng.uniform(0, 0.25)) if rng.random() < thin_share(run) else 1.0
    examples: list[Example] = []
    while True:
        if kind == "easy-vqa":
            example = run.easy.example(int(rng.integers(N_EASY_IMAGES["train"] - N_HELD_OUT)))
        else:
            example = scene_example("train", int(rng.integers(2**40)), kind)
        if not example.questions:
            continue
        order = rng.permutation(len(example.questions))[:QUESTIONS]
        if kind == "easy-vqa":  # three quarters of its questions are yes/no
            is_yes_no = np.array([question.category == "yes/no" for question in example.questions])
            others, yes_no = np.flatnonzero(~is_yes_no), rng.permutation(np.flatnonzero(is_yes_no))
            order = rng.permutation(np.concatenate([others, yes_no])[:QUESTIONS])
        example.questions = [example.questions[index] for index in order]
        if share < 1 and example.marks:
            example = thinned(example, rng, share)
            if not example.n_tokens:
                continue
        grown = [*examples, example]
        tokens = len(grown) * max(row_length(run.language, e) for e in grown)
        if examples and tokens + TILE_COST * sum(map(n_encoded, grown)) > run.options.tokens:
            return examples
        examples = grown


def thin_share(run: Run) -> float:
    """Share of the steps whose pictures are thinned: `--thin`, half of it once the rate falls."""
    falls = run.step - run.options.see_steps > run.options.steps * (1 - run.options.decay)
    return float(run.options.thin * (0.5 if falls else 1.0))


def shown_tiles(example: Example) -> np.ndarray:
    """Indices of the tiles of which a token is shown."""
    return np.unique(example.shown // TILE_TOKENS)


def n_encoded(example: Example) -> int:
    """Tiles that go through the tower."""
    return len(shown_tiles(example))


def picture_embeddings(run: Run, examples: Sequence[Example]) -> torch.Tensor:
    """(shown tokens of all examples in order, D)."""
    shown = [shown_tiles(example) for example in examples]
    with torch.no_grad():
        tiles = [example.tiles[indices] for example, indices in zip(examples, shown, strict=True)]
        features = run.tower(normalised(np.concatenate(tiles)))
    embeds = run.projector(features).flatten(0, 1)
    rows, at = [], 0
    for example, indices in zip(examples, shown, strict=True):
        tile, place = np.divmod(example.shown, TILE_TOKENS)
        rows.append(at + np.searchsorted(indices, tile) * TILE_TOKENS + place)
        at += len(indices) * TILE_TOKENS
    chosen: torch.Tensor = embeds[torch.from_numpy(np.concatenate(rows))]
    return chosen


def answer_logits(run: Run, examples: Sequence[Example], turns: Sequence[bool]) -> tuple[torch.Tensor, Packed]:
    """Logits of all answer tokens of all questions, and the packed rows."""
    packed = pack(run.language, examples, turns)
    embeds = embeddings(run.language, packed, picture_embeddings(run, examples))
    states = run.language.hidden(embeds, packed.sees, packed.positions)
    return run.language.logits(states[packed.rows, packed.columns]), packed


def midway_loss(run: Run, examples: Sequence[Example], packed: Packed) -> torch.Tensor:
    """How wrong the language model is halfway about what a picture's tokens show; 0 for pictures without marks."""
    marked = [(example, place) for example, place in zip(examples, packed.image, strict=True) if example.marks]
    if not marked:
        return torch.zeros(())
    labels = []
    for example, _ in marked:
        found = cells(example)
        spelt = np.stack([found.first.ravel(), found.second.ravel()], 1)
        labels.append(np.concatenate([spelt, ordinals(example)], 1)[example.shown])
    states = torch.cat([run.language.midway[row, start : start + n] for _, (row, start, n) in marked])
    loss = run.midway.loss(states, torch.from_numpy(np.concatenate(labels)))
    run.midway_losses.append(loss.item())
    return loss


def text_divergence(run: Run, texts: list[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    """KL of the updated from the base model's next tokens on a part of one plain text."""
    text = texts[int(rng.integers(len(texts)))]
    start = int(rng.integers(len(text) - TEXT_TOKENS + 1))
    ids = text[start : start + TEXT_TOKENS]
    sees = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
    embeds, positions = run.language.embedding[ids][None], torch.arange(len(ids))[None]
    with torch.no_grad(), run.language.form("base"):
        expected = F.log_softmax(run.language.logits(run.language.hidden(embeds, sees, positions)[0]), 1)
    actual = F.log_softmax(run.language.logits(run.language.hidden(embeds, sees, positions)[0]), 1)
    return F.kl_div(actual, expected, reduction="batchmean", log_target=True)


def plain_text(run: Run) -> list[torch.Tensor]:
    """Texts of WRITTEN_TOKENS ids that no test of the project uses.

    A quarter is Python's own documentation, which every Python carries; the rest the base model writes itself, as prose
    from a first word or as a chat from the user's first words on, so that the stretches are what it knows.
    """
    from pydoc_data import topics

    language, rng = run.language, run.rng(3)
    ids = torch.tensor(language.tokenizer("\n".join(topics.topics.values())).input_ids)
    starts = rng.integers(0, len(ids) - WRITTEN_TOKENS, run.options.texts // 4).tolist()
    stretches = [ids[start : start + WRITTEN_TOKENS] for start in starts]
    torch.manual_seed(int(rng.integers(2**31)))
    for opening in ([], language.prefix_ids):
        words = rng.permutation(scenes.WORDS)[: run.options.texts * 3 // 8]
        prompts = torch.tensor([[*opening, language.ids(word.capitalize())[0]] for word in words])
        stretches += list(language.written(prompts, WRITTEN_TOKENS))
    return stretches


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warm-up, constant, then a cosine to a fiftieth: a run can be lengthened before it decays."""
    decay_from = int(options.steps * (1 - options.decay))
    if step < 40:
        return float(options.rate * (step + 1) / 40)
    done = max(0.0, (step - decay_from) / max(1, options.steps - decay_from))
    return float(options.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))))


def validate(run: Run) -> dict[str, float]:
    """Share of right answers by source and category on pictures never trained on; the workers share the work."""
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    count, held_out = run.options.eval_pictures, N_EASY_IMAGES["train"] - N_HELD_OUT
    jobs = [("easy", index) for index in range(count)] + [("scenes", index) for index in range(2 * count)]
    run.language.store(run.plan)
    with torch.no_grad(), run.language.form("stored"):
        for source, index in jobs[run.rank :: run.options.workers]:
            example = run.easy.example(held_out + index) if source == "easy" else scene_example("validation", index)
            if not example.questions:
                continue
            logits, packed = answer_logits(run, [example], [False])
            hits = (logits.argmax(1) == packed.targets).split(packed.lengths.tolist())
            for question, hit in zip(example.questions, hits, strict=True):
                scores = right[f"{source} {question.category}"]
                scores[0] += bool(hit.all())
                scores[1] += 1
                right[source][0] += bool(hit.all())
                right[source][1] += 1
    if run.options.workers > 1:
        shares: list[Any] = [None] * run.options.workers
        dist.all_gather_object(shares, dict(right))
        right.clear()
        for share in shares:
            for name, (hits, asked) in share.items():
                right[name][0] += hits
                right[name][1] += asked
    return {name: round(hits / asked, 4) for name, (hits, asked) in sorted(right.items())}
