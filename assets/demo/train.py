"""Trains the demo's projector on easy-VQA's train split, between a frozen tower and a frozen language model.

    python assets/demo/train.py --steps 1200 --out runs/demo [--minutes 40] [--check]

Only the 2x2 downsampler and the two-layer MLP learn, so plain chat stays what it was, bit for bit. The run continues
from `OUT/checkpoint.pt` when there is one; `OUT/log.csv` has the curve and `OUT/projector.safetensors` the best tensors
so far, in the layout that `composed.json` names. `--check` scores that file on easy-VQA's test split instead.

Two things make it affordable on a laptop's CPU. The tower runs once: its features are kept on disk in fp16. And all
questions of a picture share one pass: [system prompt][64 picture tokens][question 1][question 2]..., under a mask by
which a question sees the prompt, the picture and itself, with positions that start again after the picture. That is
exactly the computation of one question per pass, at a quarter of the price. The fixed prompt's keys and values are
computed once and reused.

Answers are scored as free greedy generation: an answer is right when every one of its tokens, the closing <|im_end|>
included, is the most likely of the whole vocabulary, which is when greedy decoding would produce exactly it.

Needs torch, transformers, gguf, pillow and what fetch.py needs. One seed gives one run on one machine and thread count.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import LANGUAGE, VISION_DIR, fetch_data, fetch_towers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

HERE = Path(__file__).resolve().parent
COMPOSED = json.loads((HERE / "composed.json").read_text())
TILE_PX: int = COMPOSED["tile_px"]
PATCH_PX = 14
GRID = TILE_PX // PATCH_PX
N_IMAGE_TOKENS = (GRID // 2) ** 2

PAD_TO = 32  # few different lengths, so that oneDNN finds its compiled kernels again

N_TRAIN_IMAGES, N_TEST_IMAGES = 4000, 1000
N_IMAGES = {"train": N_TRAIN_IMAGES, "test": N_TEST_IMAGES}
N_HELD_OUT_IMAGES = 200  # the last pictures of the train split: validation, never trained on
SHAPES = ("circle", "rectangle", "triangle")
CATEGORIES = ("yes/no", "color", "shape")


def category(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"


class Projector(nn.Module):
    """(B, GRID*GRID, C) tower features → (B, N_IMAGE_TOKENS, D) embeddings: 2x2 downsampler, then an MLP.

    Trained on standardised features; `tensors()` folds mean and deviation into the downsampler.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, width: int, hidden: int) -> None:
        super().__init__()
        n_channels = mean.numel()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.downsampler = nn.Linear(4 * n_channels, n_channels)
        self.mlp = nn.Sequential(nn.Linear(n_channels, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grid = ((features - self.mean) / self.std).unflatten(1, (GRID, GRID))
        return self.mlp(self.downsampler(concat_2x2(grid)))

    def tensors(self) -> dict[str, torch.Tensor]:
        weight, bias = self.downsampler.weight.detach(), self.downsampler.bias.detach()
        mean, std = self.mean.repeat(4), self.std.repeat(4)
        folded = weight / std
        named = {"downsampler.weight": folded, "downsampler.bias": bias - folded @ mean}
        named |= {f"mlp.{name}": value for name, value in self.mlp.state_dict().items()}
        return {name: value.to(torch.float16).contiguous() for name, value in named.items()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes the folded tensors back (mean 0, deviation 1)."""
        self.mean.zero_()
        self.std.fill_(1.0)
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)


def concat_2x2(grid: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) → (B, H/2*W/2, 4C); each 2x2 block in (dy, dx, channel) order; odd sides get a row of zeros."""
    grid = F.pad(grid, (0, 0, 0, grid.shape[2] % 2, 0, grid.shape[1] % 2))
    batch, height, width, channels = grid.shape
    blocks = grid.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, (height // 2) * (width // 2), 4 * channels)


@dataclass(frozen=True)
class Question:
    image: int
    answer: str
    category: str
    prompt_ids: list[int]  # from the question's text to the end of the assistant's header
    answer_ids: list[int]  # the answer and <|im_end|>


class Language:
    """The frozen language model, its chat template cut at the picture, and the prompt's precomputed keys and values."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        gguf = Path(LANGUAGE.member).name
        self.tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf)
        self.model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=gguf, dtype=dtype).eval()
        self.model.requires_grad_(False)
        self.embedding = self.model.get_input_embeddings().weight
        self.dtype = dtype
        self.known_ids: dict[str, list[int]] = {}
        marker = COMPOSED["image_token"]
        message = {"role": "user", "content": f"{marker}\n{marker}"}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, _, self.after = text.split(marker)
        self.prefix_ids: list[int] = self.tokenizer(before).input_ids
        cache = DynamicCache()
        with torch.no_grad():
            self.model.model(inputs_embeds=self.embedding[self.prefix_ids][None], past_key_values=cache, use_cache=True)
        self.prefix_kv = [(layer.keys, layer.values) for layer in cache.layers]

    def ids(self, text: str) -> list[int]:
        if text not in self.known_ids:  # the data set repeats a few hundred sentences
            self.known_ids[text] = self.tokenizer(text).input_ids
        return self.known_ids[text]

    def question(self, text: str, answer: str, image: int) -> Question:
        answer_ids = [*self.ids(answer), self.tokenizer.eos_token_id]
        return Question(image, answer, category(answer), self.ids(text + self.after), answer_ids)

    def answer_logits(
        self, image_embeds: torch.Tensor, questions: Sequence[Sequence[Question]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict each answer token, and the tokens, over all questions of all pictures in order.

        image_embeds (B, N_IMAGE_TOKENS, D); questions[b] belong to picture b. Returns (n, vocabulary), (n,).
        """
        n_prefix = len(self.prefix_ids)
        lengths = [sum(len(q.prompt_ids) + len(q.answer_ids) - 1 for q in group) for group in questions]
        n_text = -(-max(lengths) // PAD_TO) * PAD_TO
        batch, total = len(questions), N_IMAGE_TOKENS + n_text
        ids = torch.zeros(batch, n_text, dtype=torch.long)
        positions = torch.zeros(batch, total, dtype=torch.long)
        segments = torch.full((batch, total), -1)
        rows, columns, targets = [], [], []
        positions[:, :N_IMAGE_TOKENS] = torch.arange(n_prefix, n_prefix + N_IMAGE_TOKENS)
        segments[:, :N_IMAGE_TOKENS] = 0
        for row, group in enumerate(questions):
            at = 0
            for index, question in enumerate(group, start=1):
                tokens = question.prompt_ids + question.answer_ids[:-1]
                n_tokens, n_answer = len(tokens), len(question.answer_ids)
                start = N_IMAGE_TOKENS + at
                ids[row, at : at + n_tokens] = torch.tensor(tokens)
                first = n_prefix + N_IMAGE_TOKENS
                positions[row, start : start + n_tokens] = torch.arange(first, first + n_tokens)
                segments[row, start : start + n_tokens] = index
                rows += [row] * n_answer
                columns += range(start + n_tokens - n_answer, start + n_tokens)
                targets += question.answer_ids
                at += n_tokens

        order = torch.arange(total)
        same = segments[:, :, None] == segments[:, None, :]
        sees = (same | (segments[:, None, :] == 0)) & (order[None, :] <= order[:, None])
        sees = torch.cat([torch.ones(batch, total, n_prefix, dtype=torch.bool), sees], dim=2)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.prefix_kv):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        hidden = self.model.model(
            inputs_embeds=torch.cat([image_embeds.to(self.dtype), self.embedding[ids]], dim=1),
            attention_mask=sees[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.lm_head(hidden[rows, columns]).float(), torch.tensor(targets)


class Tower:
    """The frozen vision tower; indexing with picture numbers gives their patch tokens (n, GRID*GRID, C) in fp32."""

    def __init__(self, split: str, towers: Path, archive: Path) -> None:
        self.model = AutoModel.from_pretrained(towers / VISION_DIR).eval()
        self.split, self.wheel = split, zipfile.ZipFile(archive)

    def __getitem__(self, images: list[int]) -> np.ndarray:
        names = [f"easy_vqa/data/{self.split}/images/{image}.png" for image in images]
        batch = np.stack([pixels(Image.open(io.BytesIO(self.wheel.read(name)))) for name in names])
        with torch.no_grad():
            return self.model(torch.from_numpy(batch)).last_hidden_state[:, 1:].float().numpy()


class Data:
    """easy-VQA's questions grouped by picture, and the pictures' tower features: an array on disk or the tower."""

    def __init__(self, split: str, archive: Path, features: np.ndarray | Tower, language: Language) -> None:
        self.features = features
        self.by_image: list[list[Question]] = [[] for _ in range(N_IMAGES[split])]
        with zipfile.ZipFile(archive) as wheel:
            rows = json.loads(wheel.read(f"easy_vqa/data/{split}/questions.json"))
        for text, answer, image in rows:
            self.by_image[image].append(language.question(text, answer, image))

    def tower_features(self, images: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.features[list(images)], np.float32))


def pixels(image: Image.Image) -> np.ndarray:
    """A square picture as the runtime prepares it: (3, TILE_PX, TILE_PX) float32."""
    resized = image.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized, np.float32) / 255
    mean, std = np.float32(COMPOSED["image_mean"]), np.float32(COMPOSED["image_std"])
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def compute_features(tower: Tower, path: Path) -> None:
    """Writes the features of the train split, (N_TRAIN_IMAGES, GRID*GRID, C) fp16, computed in bf16."""
    temporary = path.with_suffix(".partial.npy")
    shape = (N_TRAIN_IMAGES, GRID * GRID, tower.model.config.hidden_size)
    features = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
    for start in range(0, N_TRAIN_IMAGES, 16):
        with torch.autocast("cpu", torch.bfloat16):
            features[start : start + 16] = tower[list(range(start, min(start + 16, N_TRAIN_IMAGES)))]
        if start % 400 == 0:
            print(f"features: {start}/{N_TRAIN_IMAGES}", file=sys.stderr, flush=True)
    features.flush()
    temporary.replace(path)


def accuracy(
    projector: Projector, language: Language, data: Data, images: Sequence[int], batch: int = 8
) -> dict[str, tuple[int, int]]:
    """(right, asked) by category under free greedy generation, over all questions of the given pictures."""
    counts = dict.fromkeys(CATEGORIES, (0, 0))
    with torch.no_grad():
        for start in range(0, len(images), batch):
            chosen = [image for image in images[start : start + batch] if data.by_image[image]]
            groups = [data.by_image[image] for image in chosen]
            logits, targets = language.answer_logits(projector(data.tower_features(chosen)), groups)
            hits = (logits.argmax(1) == targets).tolist()
            for question in (question for group in groups for question in group):
                n_tokens = len(question.answer_ids)
                right, asked = counts[question.category]
                counts[question.category] = (right + all(hits[:n_tokens]), asked + 1)
                del hits[:n_tokens]
    return counts


def rates(counts: dict[str, tuple[int, int]]) -> dict[str, float]:
    right, asked = (sum(column) for column in zip(*counts.values(), strict=True))
    return {"all": right / asked} | {name: r / max(n, 1) for name, (r, n) in counts.items()}


def pick_questions(questions: Sequence[Question], n_yes_no: int, rng: np.random.Generator) -> list[Question]:
    """All color and shape questions of a picture and at most `n_yes_no` of the others, which outnumber them."""
    others = [question for question in questions if question.category != "yes/no"]
    yes_no = [question for question in questions if question.category == "yes/no"]
    chosen = rng.permutation(len(yes_no))[:n_yes_no]
    return others + [yes_no[index] for index in chosen]


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warm-up, constant, then a cosine to zero over the last part: a run can be lengthened before it decays."""
    decay_from = int(options.steps * (1 - options.decay))
    if step < options.warmup:
        return float(options.lr * (step + 1) / options.warmup)
    if step < decay_from:
        return float(options.lr)
    done = (step - decay_from) / max(1, options.steps - decay_from)
    return float(options.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def new_projector(data: Data, language: Language, hidden: int) -> Projector:
    """A projector whose input is standardised and whose output has the deviation of the token embeddings."""
    sample = data.tower_features(range(0, N_TRAIN_IMAGES - N_HELD_OUT_IMAGES, 20))
    mean, std = sample.mean((0, 1)), sample.std((0, 1)) + 1e-6
    width = language.embedding.shape[1]
    projector = Projector(mean, std, width, hidden or width)
    with torch.no_grad():
        projector.mlp[2].weight *= language.embedding.float().std() / projector(sample[:32]).std()
        projector.mlp[2].bias.zero_()
    return projector


def align(projector: Projector, data: Data, language: Language, options: argparse.Namespace) -> None:
    """Teaches the projector, without the language model, to write a picture's color and shape in word embeddings.

    In each row of the token grid the left half is drawn to the embedding of the color's word and the right half to the
    shape's: a start from which the language model can already read, found in a minute. Words come from the answers of
    the train split; pictures whose questions name only one of the two are left out.
    """

    def embedding(word: str) -> torch.Tensor:
        return language.embedding[language.tokenizer(f" {word}").input_ids].float().mean(0)

    words: list[tuple[int, torch.Tensor]] = []
    for image in range(N_TRAIN_IMAGES - N_HELD_OUT_IMAGES):
        known = {question.category: question.answer for question in data.by_image[image]}
        if "color" in known and "shape" in known:
            words.append((image, torch.stack([embedding(known["color"]), embedding(known["shape"])])))
    scale = torch.stack([pair for _, pair in words[:500]]).var()
    is_shape = (torch.arange(N_IMAGE_TOKENS) % (GRID // 2) >= GRID // 4).long()
    optimizer = torch.optim.AdamW(projector.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(options.align_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / options.align_steps)
        chosen = np.random.default_rng([options.seed, step]).choice(len(words), 32, replace=False)
        target = torch.stack([words[index][1][is_shape] for index in chosen])
        output = projector(data.tower_features([words[index][0] for index in chosen]))
        loss = F.mse_loss(output, target) / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == options.align_steps - 1:
            print(f"align {step}: {loss.item():.3f}", file=sys.stderr, flush=True)


def train(rank: int, options: argparse.Namespace) -> None:
    """One worker's share of the run: worker 0 also aligns, logs and saves; gradients are averaged over all."""
    torch.set_num_threads(options.threads)
    store = f"file://{(options.out / '.rendezvous').resolve()}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.workers)
    started = time.monotonic()
    torch.manual_seed(options.seed)
    towers, archive = fetch_towers(options.cache), fetch_data(options.cache)
    language = Language(towers, torch.bfloat16)
    features = np.load((options.features or options.out) / "features-train.npy", mmap_mode="r")
    data = Data("train", archive, features, language)
    n_train = N_TRAIN_IMAGES - N_HELD_OUT_IMAGES
    held_out = range(n_train, n_train + options.eval_images)
    projector = new_projector(data, language, options.hidden)
    optimizer = torch.optim.AdamW(projector.parameters(), options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    step, best, elapsed_before_s, losses = 0, -1.0, 0.0, []

    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.is_file():
        state: dict[str, Any] = torch.load(checkpoint)
        projector.load_state_dict(state["projector"])
        optimizer.load_state_dict(state["optimizer"])
        step, best, elapsed_before_s = state["step"], state["best"], state["elapsed_s"]
        print(f"continuing at step {step}", file=sys.stderr, flush=True)
    elif rank == 0:
        align(projector, data, language, options)
    for parameter in projector.parameters():
        dist.broadcast(parameter.data, src=0)

    deadline = started + options.minutes * 60
    while step < options.steps and not agree(time.monotonic() > deadline):
        epoch, place = divmod(step * options.batch, n_train - n_train % options.batch)
        order = np.random.default_rng([options.seed, epoch]).permutation(n_train)
        rng = np.random.default_rng([options.seed, epoch, place, rank])
        shared = order[place : place + options.batch][rank :: options.workers]
        images = [int(image) for image in shared if data.by_image[image]]
        groups = [pick_questions(data.by_image[image], options.yes_no, rng) for image in images]

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        logits, targets = language.answer_logits(projector(data.tower_features(images)), groups)
        lengths = torch.tensor([len(question.answer_ids) for group in groups for question in group])
        weights = (1 / lengths).repeat_interleave(lengths) / len(lengths)
        loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
        optimizer.zero_grad()
        loss.backward()
        average_gradients(projector, options.workers)
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1

        if step % options.eval_every == 0 or step in (1, options.steps):
            counts = total_counts(accuracy(projector, language, data, held_out[rank :: options.workers]))
            if rank > 0:
                continue
            scores = rates(counts)
            elapsed_s = elapsed_before_s + time.monotonic() - started
            row = {"step": step, "elapsed_s": round(elapsed_s), "lr": f"{learning_rate(step, options):.2e}"}
            row |= {"loss": f"{np.mean(losses):.4f}"} | {name: f"{rate:.4f}" for name, rate in scores.items()}
            log_row(options.out / "log.csv", row)
            losses.clear()
            if scores["all"] >= best:
                best = scores["all"]
                save_file(projector.tensors(), options.out / "projector.safetensors", metadata={"format": "pt"})
            save_checkpoint(
                checkpoint,
                projector=projector.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step,
                best=best,
                elapsed_s=elapsed_s,
            )


def average_gradients(projector: Projector, n_workers: int) -> None:
    """Replaces each gradient by the workers' mean, in one exchange."""
    gradients = [parameter.grad for parameter in projector.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / n_workers
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agree(stop: bool) -> bool:
    """True on every worker when it is on one."""
    flag = torch.tensor(int(stop))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def total_counts(counts: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    table = torch.tensor(list(counts.values()))
    dist.all_reduce(table)
    return {name: (int(right), int(asked)) for name, (right, asked) in zip(counts, table, strict=True)}


def log_row(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{name}={value}" for name, value in row.items()), file=sys.stderr, flush=True)


def save_checkpoint(path: Path, **state: Any) -> None:
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def check(options: argparse.Namespace) -> None:
    """Prints the accuracy of `OUT/projector.safetensors` on the test split, in fp32, as one JSON object."""
    towers, archive = fetch_towers(options.cache), fetch_data(options.cache)
    language = Language(towers, torch.float32)
    data = Data("test", archive, Tower("test", towers, archive), language)
    tensors = load_file(options.out / "projector.safetensors")
    hidden, n_channels = tensors["mlp.0.weight"].shape
    projector = Projector(torch.zeros(n_channels), torch.ones(n_channels), language.embedding.shape[1], hidden)
    projector.load_tensors(tensors)
    images = np.random.default_rng(options.seed).permutation(N_TEST_IMAGES)[: options.check_images].tolist()
    counts = accuracy(projector, language, data, images)
    scores = {name: round(rate, 4) for name, rate in rates(counts).items()}
    print(json.dumps({"questions": sum(n for _, n in counts.values()), "accuracy": scores, "counts": counts}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's projector, or check it.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run: checkpoint, log, best tensors")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, at the last checkpoint")
    parser.add_argument("--align-steps", type=int, default=240, help="steps of the first stage (see `align`)")
    parser.add_argument("--batch", type=int, default=4, help="pictures per step")
    parser.add_argument("--yes-no", type=int, default=4, help="yes/no questions per picture and step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--decay", type=float, default=0.45, help="last part of the run in which the rate falls")
    parser.add_argument("--hidden", type=int, default=0, help="width of the MLP (default: the language model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each batch")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--eval-every", type=int, default=50, help="steps")
    parser.add_argument("--eval-images", type=int, default=48, help="held-out pictures per evaluation (at most 200)")
    parser.add_argument("--features", type=Path, help="directory of the tower's features (default: OUT)")
    parser.add_argument("--cache", type=Path, help="fetch.py's cache directory")
    parser.add_argument("--check", action="store_true", help="score OUT/projector.safetensors on the test split")
    parser.add_argument(
        "--check-images", type=int, default=N_TEST_IMAGES, help="random test pictures (10 questions each)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.check:
        torch.set_num_threads(options.threads * options.workers)
        check(options)
        return
    (options.out / ".rendezvous").unlink(missing_ok=True)
    features_path = (options.features or options.out) / "features-train.npy"
    if not features_path.is_file():
        torch.set_num_threads(options.threads * options.workers)
        compute_features(Tower("train", fetch_towers(options.cache), fetch_data(options.cache)), features_path)
    torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
