"""Trains the demo's model: tower updates and projector on what each picture token shows, then the whole on questions.

    python assets/demo/train.py --out runs/demo [--see-steps 700] [--steps 1500] [--minutes M]

1. *See* (`see_step`), without the language model: every picture token learns to say which shape, color and characters
   it shows (heads that are thrown away later) and to point at the embeddings of those words. Dense labels from
   `scenes.Mark` make a reader of the tower in minutes where answers alone would take hours.
2. *Answer* (`answer_step`): cross-entropy on the answers of easy-VQA's train split and of scenes; the projector and the
   language model's low-rank updates learn, the tower rests. Most steps leave out tokens that show only the ground
   (`lessons.thinned`), so that they hold more pictures. Some steps also hold the updated language model to the
   base model's next-token distribution on plain text, so that chat without a picture stays what it was.

The run continues from `OUT/checkpoint.pt`; `OUT/log.csv` is the curve, `OUT/projector.safetensors` and
`OUT/low_rank.safetensors` are the tensors that composed.json names. Answers are scored as free greedy generation: one
is right when each of its tokens, the closing <|im_end|> included, is the likeliest of the whole vocabulary. What a step
trains on depends on the seed, the step and the worker only.

Needs torch, transformers, gguf, matplotlib's fonts and what fetch.py needs.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import torch
from fetch import fetch_data, fetch_towers
from lessons import (
    CHARACTERS,
    IGNORED,
    N_EASY_IMAGES,
    N_HELD_OUT,
    EasyVqa,
    Example,
    cells,
    embeddings,
    normalised,
    pack,
    row_length,
    scene_example,
    thinned,
)
from networks import TILE_TOKENS, Language, Projector, Tower, load_low_rank, low_rank_tensors
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

MIX = {"easy-vqa": 0.12, "objects": 0.3, "words": 0.36, "strip": 0.14, "screenshot": 0.08}
"""Share of the steps that each kind of picture gets in stage 2."""
SEE_MIX = {"objects": 0.13, "page": 0.6, "words": 0.11, "strip": 0.08, "screenshot": 0.08}
QUESTIONS = 7
"""At most so many questions a picture and step, so that pictures vary more."""
TILE_COST = 26
"""A tile through the tower costs as much as so many tokens through the language model and back."""
TEXT_EVERY = 3
TEXT_TOKENS = 192


class Heads(nn.Module):
    """What a token shows, from the downsampler's output: shape, color, first and second character."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        sizes = (len(scenes.SHAPES) + 1, len(scenes.COLORS) + 1, len(CHARACTERS) + 1, len(CHARACTERS) + 1)
        self.heads = nn.ModuleList(nn.Linear(n_channels, size) for size in sizes)

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        return [head(states) for head in self.heads]


class Run:
    """Everything one worker holds."""

    def __init__(self, rank: int, options: argparse.Namespace) -> None:
        self.rank, self.options = rank, options
        towers, archive = fetch_towers(options.cache), fetch_data(options.cache)
        torch.manual_seed(options.seed)
        self.tower = Tower(towers, options.tower_rank)
        self.language = Language(towers, options.rank)
        self.easy = EasyVqa(archive, "train")
        self.projector = self._new_projector()
        self.heads = Heads(self.tower.width)
        self.words = self._word_embeddings()
        self.step, self.elapsed_s = 0, 0.0
        lists = [list(module.parameters()) for module in (self.projector, self.heads)]
        lists += [[p for update in part.updates.values() for p in (update.down, update.up)] for part in self.parts]
        self.parameters = dict(zip(("projector", "heads", "tower", "language"), lists, strict=True))
        groups = [{"params": list(values), "name": name} for name, values in self.parameters.items()]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.98), weight_decay=0.01)

    @property
    def parts(self) -> tuple[Tower, Language]:
        return self.tower, self.language

    def _new_projector(self) -> Projector:
        """Standardises its input; its output has the deviation of the token embeddings."""
        tiles = np.concatenate([scene_example("train", -1 - index).tiles[:3] for index in range(12)])
        with torch.no_grad():
            features = self.tower(normalised(tiles))
            width = self.language.embedding.shape[1]
            mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-6
            projector = Projector(mean, std, width, self.options.hidden or width)
            projector.mlp[2].weight *= self.language.embedding.float().std() / projector(features).std()
            projector.mlp[2].bias.zero_()
        return projector

    def _word_embeddings(self) -> dict[str, torch.Tensor]:
        """Word or character → embedding (D,), for stage 1."""
        names = [*scenes.SHAPES, *scenes.COLORS]
        table = {name: self.language.embedding[self.language.ids(f" {name}")].float().mean(0) for name in names}
        return table | {c: self.language.embedding[self.language.ids(c)].float().mean(0) for c in CHARACTERS}

    def rng(self, *more: int) -> np.random.Generator:
        """Random numbers of this step and worker."""
        return np.random.default_rng([self.options.seed, self.step, self.rank, *more])

    def update(self, loss: torch.Tensor, rates: dict[str, float]) -> None:
        """One optimiser step on the workers' mean gradient; groups without a rate rest."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates.get(group["name"], 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for name in rates for p in self.parameters[name]]
        if self.options.workers > 1:
            flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in trained])
            dist.all_reduce(flat)
            for p, mean in zip(trained, (flat / self.options.workers).split([p.numel() for p in trained]), strict=True):
                p.grad = mean.view_as(p)
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()


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
        weight[0] = 0.2
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


def answer_logits(run: Run, examples: Sequence[Example], turns: Sequence[bool]) -> tuple[torch.Tensor, Any]:
    """Logits of all answer tokens of all questions, and the packed rows."""
    packed = pack(run.language, examples, turns)
    embeds = embeddings(run.language, packed, picture_embeddings(run, examples))
    states = run.language.hidden(embeds, packed.sees, packed.positions)
    return run.language.logits(states[packed.rows, packed.columns]), packed


def answer_step(run: Run, texts: torch.Tensor) -> float:
    """Stage 2: one step on questions, and on plain text every third time."""
    rng = run.rng(2)
    examples = pictures(run, rng)
    turns = [bool(rng.random() < 0.25) for _ in examples]
    logits, packed = answer_logits(run, examples, turns)
    weights = (1 / packed.lengths).repeat_interleave(packed.lengths) / len(packed.lengths)
    answers = (F.cross_entropy(logits, packed.targets, reduction="none") * weights).sum()
    loss = answers
    if run.step % TEXT_EVERY == 0:
        loss = loss + run.options.text_weight * text_divergence(run, texts, rng)
    done = run.step - run.options.see_steps
    rate = learning_rate(done, run.options)
    run.update(loss, {"projector": rate, "language": rate})
    return answers.item()


def text_divergence(run: Run, texts: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """KL of the updated from the base model's next tokens on a stretch of plain text, every second time as a chat."""
    start = int(rng.integers(len(texts) - TEXT_TOKENS))
    ids = texts[start : start + TEXT_TOKENS]
    if rng.random() < 0.5:
        opening, closing = torch.tensor(run.language.prefix_ids), torch.tensor(run.language.ids(run.language.after))
        ids = torch.cat([opening, ids[:32], closing, ids[32:]])
    sees = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
    embeds, positions = run.language.embedding[ids][None], torch.arange(len(ids))[None]
    with torch.no_grad(), run.language.base():
        expected = F.log_softmax(run.language.logits(run.language.hidden(embeds, sees, positions)[0]), 1)
    actual = F.log_softmax(run.language.logits(run.language.hidden(embeds, sees, positions)[0]), 1)
    return F.kl_div(actual, expected, reduction="batchmean", log_target=True)


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
    with torch.no_grad():
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


def train(rank: int, options: argparse.Namespace) -> None:
    """One worker's share of the run; worker 0 also logs and saves."""
    torch.set_num_threads(options.threads)
    if options.workers > 1:
        store = f"file://{(options.out / '.rendezvous').resolve()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.workers)
    started = time.monotonic()
    run = Run(rank, options)
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.is_file():
        resume(run, torch.load(checkpoint))
        say(rank, f"continuing at step {run.step}")
    elif options.start is not None:
        start_from(run, options.start)
    texts = plain_text(run.language)
    total, losses, before_s = options.see_steps + options.steps, [], run.elapsed_s
    while run.step < total and not agreed(time.monotonic() - started > options.minutes * 60, options):
        seeing = run.step < options.see_steps
        losses.append(see_step(run) if seeing else answer_step(run, texts))
        run.step += 1
        run.elapsed_s = before_s + time.monotonic() - started
        if run.step % 10 == 0:
            say(rank, f"{run.step} {np.mean(losses[-10:]):.4f} {run.elapsed_s:.0f} s")
        if run.step % options.eval_every == 0 or run.step in (options.see_steps, total):
            scores = see_accuracy(run) if seeing else validate(run)
            if rank == 0:
                row = {"step": run.step, "elapsed_s": round(run.elapsed_s), "loss": round(float(np.mean(losses)), 4)}
                log_row(options.out / "log.csv", row | {"scores": " ".join(f"{k}={v}" for k, v in scores.items())})
                save(run, checkpoint)
            losses.clear()
    if rank == 0:
        save(run, checkpoint)


def plain_text(language: Language) -> torch.Tensor:
    """Token ids of Python's own documentation, which every Python carries: text that no test of the project uses."""
    from pydoc_data import topics

    return torch.tensor(language.tokenizer("\n".join(topics.topics.values())).input_ids)


def save(run: Run, checkpoint: Path) -> None:
    """The released tensors, then the checkpoint; each appears whole."""
    low_rank = low_rank_tensors(run.tower.updates, Tower.PREFIX)
    low_rank |= low_rank_tensors(run.language.updates, Language.PREFIX)
    for name, tensors in (("projector", run.projector.tensors()), ("low_rank", low_rank)):
        path = run.options.out / f"{name}.safetensors"
        scratch = path.with_suffix(".partial")
        save_file(tensors, scratch, metadata={"format": "pt"})
        scratch.replace(path)
    state = {name: [p.data for p in values] for name, values in run.parameters.items()}
    state |= {"optimizer": run.optimizer.state_dict(), "step": run.step, "elapsed_s": run.elapsed_s}
    state |= {"mean": run.projector.mean, "std": run.projector.std}
    scratch = checkpoint.with_suffix(".partial")
    torch.save(state, scratch)
    scratch.replace(checkpoint)


def resume(run: Run, state: dict[str, Any]) -> None:
    """Puts a checkpoint's numbers where they were."""
    for name, values in run.parameters.items():
        for parameter, value in zip(values, state[name], strict=True):
            parameter.data.copy_(value)
    run.projector.mean.copy_(state["mean"])
    run.projector.std.copy_(state["std"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.elapsed_s = state["step"], state["elapsed_s"]


def start_from(run: Run, directory: Path) -> None:
    """Begins with released tensors; step and optimiser begin anew."""
    run.projector.load_tensors(load_file(directory / "projector.safetensors"))
    low_rank = load_file(directory / "low_rank.safetensors")
    for part in run.parts:
        load_low_rank(part.updates, part.PREFIX, low_rank)


def agreed(stop: bool, options: argparse.Namespace) -> bool:
    """True on every worker when it is on one."""
    if options.workers == 1:
        return stop
    flag = torch.tensor(int(stop))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def say(rank: int, text: str) -> None:
    if rank == 0:
        print(text, file=sys.stderr, flush=True)


def log_row(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{name}={value}" for name, value in row.items()), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's model.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run: checkpoint, log, tensors")
    parser.add_argument("--start", type=Path, help="directory of released tensors to begin with, such as assets/demo")
    parser.add_argument("--see-steps", type=int, default=700, help="steps of the first stage")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the second stage")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the same command goes on")
    parser.add_argument("--see-tiles", type=int, default=10, help="tiles per worker and step of the first stage")
    parser.add_argument("--tokens", type=int, default=1600, help="tokens per worker and step of the second stage")
    parser.add_argument("--thin", type=float, default=0.8, help="share of its steps that leave out most empty tokens")
    parser.add_argument("--see-rate", type=float, default=2e-3)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.5, help="last part of stage 2 in which the rate falls")
    parser.add_argument("--text-weight", type=float, default=1.5)
    parser.add_argument("--tower-rank", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8, help="rank of the language model's updates")
    parser.add_argument("--hidden", type=int, default=0, help="width of the MLP (default: the language model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each step")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--eval-every", type=int, default=150, help="steps")
    parser.add_argument("--eval-pictures", type=int, default=20, help="of easy-VQA; twice as many scenes")
    parser.add_argument("--cache", type=Path, help="fetch.py's cache directory")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / ".rendezvous").unlink(missing_ok=True)
    if options.workers == 1:
        train(0, options)
    else:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
