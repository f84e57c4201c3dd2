"""Trains the demo's model: tower updates and projector on what each picture token shows, then the whole on questions.

    python assets/demo/train.py --out runs/demo [--see-steps 700] [--steps 1500] [--minutes M]

1. *See* (`see_step`), without the language model: every picture token learns to say which shape, color and characters
   it shows (heads that are thrown away later) and to point at the embeddings of those words. Dense labels from
   `scenes.Mark` make a reader of the tower in minutes where answers alone would take hours.
2. *Answer* (`answer_step`): cross-entropy on the answers of easy-VQA's train split and of scenes; the projector and the
   language model's low-rank updates learn, the tower rests. What is read is spelt, a token each character. Halfway
   through the language model each picture token also learns which characters it shows and how many shapes have been
   counted up to it (`heads.Midway`). Most steps leave out tokens that show only the ground (`lessons.thinned`), so that
   they hold more pictures. Every step also holds the updated language model to the base model's next-token distribution
   on plain text, most of it the base model's own, so that chat without a picture stays what it was. With `--package`
   most steps compute with the language model's weights rounded to 4 bits as that package stores them, so that it
   learns to answer with those.

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
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import torch
from answer import answer_step, plain_text, validate
from fetch import fetch_data, fetch_towers
from heads import Heads, Midway
from lessons import CHARACTERS, EasyVqa, normalised, scene_example
from networks import Language, Projector, Tower, load_low_rank, low_rank_tensors
from safetensors.torch import load_file, save_file
from see import see_accuracy, see_step
from torch import distributed as dist
from torch import nn

from edgevlm.package import open_package
from export.quant.rules import QuantPlan


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
        self.midway = Midway(self.language.embedding.shape[1])
        self.words = self._word_embeddings()
        self.plan = stored_plan(options.package)
        self.step, self.elapsed_s = 0, 0.0
        self.text_losses: list[float] = []
        self.midway_losses: list[float] = []
        lists = [list(module.parameters()) for module in (self.projector, self.heads, self.midway)]
        lists += [[p for update in part.updates.values() for p in (update.down, update.up)] for part in self.parts]
        self.parameters = dict(zip(("projector", "heads", "midway", "tower", "language"), lists, strict=True))
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


def stored_plan(package: Path | None) -> QuantPlan:
    """How a package stores each of its language model's weights; as they are, without one."""
    if package is None:
        return QuantPlan("fp32")
    quant = open_package(package).manifest.quant
    return QuantPlan(quant.language_scheme, quant.vision_scheme, quant.overrides)


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
    run.language.store(run.plan)  # a run may go on between two roundings
    kept = options.out / f"texts-{rank}.pt"
    texts = torch.load(kept) if kept.is_file() else plain_text(run)
    torch.save(texts, kept)
    total, losses, before_s = options.see_steps + options.steps, [], run.elapsed_s
    while run.step < total and not agreed(time.monotonic() - started > options.minutes * 60, options):
        seeing = run.step < options.see_steps
        losses.append(see_step(run) if seeing else answer_step(run, texts))
        run.step += 1
        run.elapsed_s = before_s + time.monotonic() - started
        if run.step % 10 == 0:
            parts = {"": losses, "midway ": run.midway_losses, "text ": run.text_losses}
            shown = " ".join(f"{name}{np.mean(values[-10:]):.4f}" for name, values in parts.items() if values)
            say(rank, f"{run.step} {shown} {run.elapsed_s:.0f} s")
        if run.step % options.eval_every == 0 or run.step in (options.see_steps, total):
            scores = see_accuracy(run) if seeing else validate(run)
            if rank == 0:
                row = {"step": run.step, "elapsed_s": round(run.elapsed_s), "loss": round(float(np.mean(losses)), 4)}
                log_row(options.out / "log.csv", row | {"scores": " ".join(f"{k}={v}" for k, v in scores.items())})
                save(run, checkpoint)
            losses.clear()
    if rank == 0:
        save(run, checkpoint)


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
    parser.add_argument("--package", type=Path, help="one of --start's tensors: train its 4-bit weights as stored")
    parser.add_argument("--stored", type=float, default=0.75, help="share of the steps with weights as stored")
    parser.add_argument("--see-tiles", type=int, default=10, help="tiles per worker and step of the first stage")
    parser.add_argument("--tokens", type=int, default=1600, help="tokens per worker and step of the second stage")
    parser.add_argument("--thin", type=float, default=0.8, help="share of its steps that leave out most empty tokens")
    parser.add_argument("--see-rate", type=float, default=2e-3)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.5, help="last part of stage 2 in which the rate falls")
    parser.add_argument("--text-weight", type=float, default=8.0)
    parser.add_argument("--midway-weight", type=float, default=1.0, help="of what the language model knows halfway")
    parser.add_argument("--texts", type=int, default=96, help="stretches of plain text that a worker has")
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
