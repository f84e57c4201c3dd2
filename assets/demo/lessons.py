"""What the demo's model is trained on: pictures as tiles, questions as packed rows of tokens, what each token shows.

Two sources: easy-VQA's train split (PyPI `easy-vqa`, its last 200 pictures held out) and `scenes.py`. Tiles are planned
and cut by the runtime's own code, so that training sees the pixels that the package will see.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import scenes
import torch
from networks import COMPOSED, SIDE, TILE_PX, TILE_TOKENS, Language
from PIL import Image

from edgevlm.image import load_image
from edgevlm.spec import ProcessorSpec
from edgevlm.tiling import TilePlan, cut_tiles, plan_tiles

N_EASY_IMAGES = {"train": 4000, "test": 1000}
N_HELD_OUT = 200
"""The last pictures of easy-VQA's train split: validation, never trained on."""
PAD_TO = 32
"""Few different lengths, so that oneDNN finds its compiled kernels again."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
LEGIBLE_PX = 6
"""Characters lower than this in a tile, or narrower than half of it, are not asked for."""
IGNORED = -100

SPEC = ProcessorSpec(
    scheme="relaxed", tile_px=TILE_PX, resample="bicubic",
    image_mean=tuple(COMPOSED["image_mean"]), image_std=tuple(COMPOSED["image_std"]),
    thumbnail="first", max_rows=4, max_cols=4, max_tiles=COMPOSED["max_tiles"], relaxed_alpha=COMPOSED["relaxed_alpha"],
)  # fmt: skip


@dataclass
class Example:
    """A picture's tiles (C, S, S, 3) uint8, its questions, and what is known to be where."""

    tiles: np.ndarray
    plan: TilePlan
    questions: list[scenes.Question]
    marks: list[scenes.Mark] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    """(height, width) of the picture."""
    kept: np.ndarray | None = None
    """Indices (n,) of the picture tokens that a lesson shows, of all tiles in order; None shows all. See `thinned`."""

    @property
    def n_tokens(self) -> int:
        """Picture tokens shown."""
        return self.n_places if self.kept is None else len(self.kept)

    @property
    def shown(self) -> np.ndarray:
        """Indices of the picture tokens shown."""
        return np.arange(self.n_places) if self.kept is None else self.kept

    @property
    def n_places(self) -> int:
        """Positions that the picture takes, shown or not."""
        return len(self.tiles) * TILE_TOKENS


class EasyVqa:
    """easy-VQA's pictures with their questions."""

    def __init__(self, archive: Path, split: str) -> None:
        self._wheel, self._split = zipfile.ZipFile(archive), split
        self.by_image: list[list[scenes.Question]] = [[] for _ in range(N_EASY_IMAGES[split])]
        for text, answer, image in json.loads(self._wheel.read(f"easy_vqa/data/{split}/questions.json")):
            category = "yes/no" if answer in ("yes", "no") else "shape" if answer in scenes.SHAPES else "color"
            self.by_image[image].append(scenes.Question(text, answer, category))

    def example(self, index: int) -> Example:
        """One picture with all its questions."""
        data = self._wheel.read(f"easy_vqa/data/{self._split}/images/{index}.png")
        return as_example(Image.open(io.BytesIO(data)), self.by_image[index])


def scene_example(split: str, index: int, kind: str | None = None) -> Example:
    """One of our own pictures."""
    made = scenes.scene(split, index, kind)
    return as_example(made.image, made.questions, made.marks)


def as_example(
    image: Image.Image, questions: list[scenes.Question], marks: Sequence[scenes.Mark] = ()
) -> Example:
    """Tiles as the runtime cuts them."""
    pixels = load_image(image)
    plan = plan_tiles(pixels.shape[0], pixels.shape[1], SPEC)
    return Example(cut_tiles(pixels, plan, SPEC), plan, questions, list(marks), pixels.shape[:2])


def normalised(tiles: np.ndarray) -> torch.Tensor:
    """(C, S, S, 3) uint8 → (C, 3, S, S) float32, as the runtime normalises."""
    scaled = tiles.astype(np.float32) / 255
    scaled = (scaled - np.float32(SPEC.image_mean)) / np.float32(SPEC.image_std)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


@dataclass(frozen=True)
class Cells:
    """What each picture token of each tile shows, (C, TILE_TOKENS) int64: 0 is nothing, -100 not asked.

    `item` is the shape's number among the example's marks, plus one.
    """

    shape: np.ndarray
    color: np.ndarray
    first: np.ndarray
    second: np.ndarray
    item: np.ndarray


def cells(example: Example) -> Cells:
    """Labels of an example's tiles from its marks.

    A shape labels the tokens whose centre it covers (nine tenths of its box), at least the one around its own centre; a
    character labels the token its centre falls into, as the first or the second from the left.
    """
    plan, (height, width) = example.plan, example.size
    count = len(example.tiles)
    found = [np.zeros((count, SIDE, SIDE), np.int64) for _ in range(5)]
    marks = sorted(enumerate(example.marks, start=1), key=lambda numbered: numbered[1].box[0])
    cell_px = TILE_PX / SIDE
    grid_first = int(plan.thumbnail and plan.thumbnail_first)
    fit_height, fit_width = plan.resizes[-1]
    views = [(0, 0.0, 0.0, TILE_PX / height, TILE_PX / width)] if plan.thumbnail else []
    for row in range(plan.grid_rows):
        for col in range(plan.grid_cols):
            top, left = plan.offset[0] - row * TILE_PX, plan.offset[1] - col * TILE_PX
            tile = grid_first + row * plan.grid_cols + col
            views.append((tile, float(top), float(left), fit_height / height, fit_width / width))
    centres = (np.arange(SIDE) + 0.5) * cell_px
    for tile, top, left, scale_y, scale_x in views:
        for number, mark in marks:
            x0, y0, x1, y1 = (
                edge * scale + start
                for edge, scale, start in zip(mark.box, (scale_x, scale_y) * 2, (left, top) * 2, strict=True)
            )
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            inside = 0 <= x < TILE_PX and 0 <= y < TILE_PX
            at = (tile, int(y // cell_px), int(x // cell_px))
            if mark.color:
                covered = np.ix_(np.abs(centres - y) < 0.45 * (y1 - y0), np.abs(centres - x) < 0.45 * (x1 - x0))
                label, color = scenes.SHAPES.index(mark.label) + 1, list(scenes.COLORS).index(mark.color) + 1
                for kind, value in ((0, label), (1, color), (4, number)):
                    found[kind][tile][covered] = value
                    if inside:
                        found[kind][at] = value
            elif inside:
                legible = y1 - y0 >= LEGIBLE_PX and x1 - x0 >= LEGIBLE_PX / 2
                label = CHARACTERS.index(mark.label) + 1 if legible else IGNORED
                slot = 2 if found[2][at] == 0 else 3
                if found[slot][at] == 0:
                    found[slot][at] = label
    return Cells(*(labels.reshape(count, TILE_TOKENS) for labels in found))


def ordinals(example: Example) -> np.ndarray:
    """(n_places, 4) int64: how far a reader of the picture's first tile has counted at each token.

    The shape's number among the picture's shapes, among those of its shape, among those of its color, each by the first
    token that shows it; and how many shapes have begun. IGNORED where a token shows no shape, and in later tiles, which
    show the same shapes again. Nothing is asked when the tile hides one.
    """
    labels = np.full((example.n_places, 4), IGNORED, np.int64)
    counted: dict[int, tuple[int, int, int]] = {}
    seen: list[scenes.Mark] = []
    for place, item in enumerate(cells(example).item[0].tolist()):
        if item and item not in counted:
            mark = example.marks[item - 1]
            seen.append(mark)
            alike = (sum(m.label == mark.label for m in seen), sum(m.color == mark.color for m in seen))
            counted[item] = (len(seen), *alike)
        labels[place, :3] = counted.get(item, IGNORED)
        labels[place, 3] = len(seen)
    if len(seen) < sum(mark.color is not None for mark in example.marks):
        labels[:] = IGNORED
    return labels


def thinned(example: Example, rng: np.random.Generator, share: float) -> Example:
    """The example with the tokens that show something, their neighbours in the row, and a share of their tiles' others.

    Most tokens of a picture with many tiles show the ground, and its thumbnail's text is too small to read. Without
    them a step holds several times as many pictures; the shown ones keep their positions, so what is learnt holds for
    the whole picture.
    """
    found = cells(example)
    busy = ((found.shape > 0) | (found.first > 0)).reshape(-1, SIDE)
    near = busy.copy()
    near[:, 1:] |= busy[:, :-1]
    near[:, :-1] |= busy[:, 1:]
    tiles = near.reshape(len(example.tiles), TILE_TOKENS)
    shown = tiles | (tiles.any(1, keepdims=True) & (rng.random(tiles.shape) < share))
    return replace(example, kept=np.flatnonzero(shown))


@dataclass(frozen=True)
class Packed:
    """Several pictures with their questions as rows of tokens; token rows of pictures are filled in later.

    ids (B, T), positions (B, T), sees (B, T, T); `image` lists (row, start, count) of picture tokens; `rows`,
    `columns`, `targets` name the positions whose logits are asked and the right token; `lengths` is answer tokens a
    question.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    image: list[tuple[int, int, int]]
    rows: list[int]
    columns: list[int]
    targets: torch.Tensor
    lengths: torch.Tensor


def pack(language: Language, examples: Sequence[Example], turns: Sequence[bool]) -> Packed:
    """One row per picture: [prompt][picture][question 1][question 2] ...

    A question sees the prompt, the picture and itself, with positions that start again after the picture: exactly the
    computation of one question per row, at a fraction of the price. Where `turns` is true the questions are instead
    successive turns of one conversation.
    """
    n_prefix = len(language.prefix_ids)
    rows_ids, rows_positions, rows_segments, image = [], [], [], []
    rows, columns, targets, lengths = [], [], [], []
    for row, (example, chained) in enumerate(zip(examples, turns, strict=True)):
        n_shared, n_hidden = n_prefix + example.n_tokens, example.n_places - example.n_tokens
        ids = [*language.prefix_ids, *([0] * example.n_tokens)]
        positions, segments = [*range(n_prefix), *(n_prefix + example.shown).tolist()], [0] * n_shared
        image.append((row, n_prefix, example.n_tokens))
        for index, question in enumerate(example.questions, start=1):
            opening = language.next_turn if chained and index > 1 else ""
            asked = language.ids(opening + question.text + language.after)
            answer = [*answer_ids(language, question), language.eos]
            # In a conversation the closing token of an answer is part of what the next turn sees.
            tokens = asked + (answer if chained else answer[:-1])
            start = len(ids)
            first = n_hidden + (start if chained else n_shared)
            positions += range(first, first + len(tokens))
            segments += [0 if chained else index] * len(tokens)
            ids += tokens
            columns += range(start + len(asked) - 1, start + len(asked) - 1 + len(answer))
            rows += [row] * len(answer)
            targets += answer
            lengths.append(len(answer))
        rows_ids.append(ids)
        rows_positions.append(positions)
        rows_segments.append(segments)
    total = -(-max(map(len, rows_ids)) // PAD_TO) * PAD_TO

    def padded(lists: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([values + [filler] * (total - len(values)) for values in lists])

    segments_t, order = padded(rows_segments, -1), torch.arange(total)
    same = segments_t[:, :, None] == segments_t[:, None, :]
    sees = (same | (segments_t[:, None, :] == 0)) & (order[None, :] <= order[:, None])
    return Packed(
        padded(rows_ids, 0), padded(rows_positions, 0), sees, image, rows, columns,
        torch.tensor(targets), torch.tensor(lengths),
    )  # fmt: skip


def answer_ids(language: Language, question: scenes.Question) -> list[int]:
    """Token ids of an answer before its end; what has to be read is spelt, a token each character.

    The text that comes out is the same, and copying one character after the other, as the picture's tokens show them,
    is far easier to learn than one token for each word.
    """
    if question.category in scenes.READING:
        return [token for character in question.answer for token in language.ids(character)]
    return language.ids(question.answer)


def row_length(language: Language, example: Example) -> int:
    """Tokens of the example's row in `pack`, at most."""
    asked = sum(
        len(language.ids(question.text + language.after)) + len(answer_ids(language, question)) + 1
        for question in example.questions
    )
    return len(language.prefix_ids) + example.n_tokens + asked


def embeddings(language: Language, packed: Packed, image_embeds: torch.Tensor) -> torch.Tensor:
    """(B, T, D) bf16: the tokens' embeddings, with the pictures' (all tokens in order, D) in their places."""
    embeds = language.embedding[packed.ids].clone()
    at = 0
    for row, start, count in packed.image:
        embeds[row, start : start + count] = image_embeds[at : at + count].to(embeds.dtype)
        at += count
    return embeds
