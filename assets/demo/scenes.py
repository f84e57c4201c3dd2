"""Pictures of shapes, numbers and words with questions about them: what the demo's model is trained and tested on.

    python assets/demo/scenes.py --out DIR [--split test] [--count 12]     # writes some as PNG, with their questions

`scene(split, index)` gives the same picture for ever (with the same Pillow and fonts): a picture is a function of the
split's name and its number. Four kinds: `objects` (one to four shapes, 64 to about 900 px), `words` (lines of text),
`strip` (5:1 or 1:5) and `screenshot` (a phone's 1080 x 2400); a fifth, `page`, is for training only. Small pictures fit
one tile; on the others text is as small as a reader of several tiles can still read, and unreadable once the picture is
squashed into one tile. `Scene.marks` says where each shape and character lies, which stage 1 of train.py learns from.

Fonts are matplotlib's (DejaVu, STIX, Computer Modern).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPLITS = ("train", "validation", "test")
COLORS = {
    "black": (20, 20, 20), "gray": (128, 128, 128), "red": (215, 25, 30), "green": (35, 150, 50),
    "blue": (30, 60, 215), "teal": (0, 150, 150), "brown": (130, 75, 30), "yellow": (245, 220, 30),
    "orange": (250, 140, 20), "purple": (130, 40, 160), "pink": (250, 130, 180),
}  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle", "star", "cross")
PLURALS = {name: "crosses" if name == "cross" else f"{name}s" for name in SHAPES}
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
WORDS = (  # noqa: SIM905
    "add air all and any arm art ask back bad bag ball bank bed best big bird blue boat body book box boy bus buy "
    "cake call car care cat city club coat cold cook cup cut day deep desk dog door down dry ear east easy eat "
    "edge egg end exit eye face fall farm fast fish five flat food foot four free full game gate girl give go "
    "gold good green hall hand hard hat head heat help high hill home hope hot hour ice idea inn iron job joy "
    "jump key kid kind king lake lamp land last late leaf left leg less life lift light line list long look lost "
    "love low luck main map mark meet menu milk mind moon more move name near neck new next nine north nose note "
    "now odd off oil old one open out oven over page park part path pay pen pet pick pink play pool post pull "
    "push quiet race rain read red rest rice ride ring road rock room rope rose run safe sail sale salt sand save "
    "sea seat sell send ship shoe shop show sit six sky slow snow soap soft song soup south spot star start stay "
    "stop sun table take talk tall taxi tea ten test text tie time tin toy tree trip two use view walk wall warm "
    "water way week well west wet wide wind wine wing wood word work yard year yes you zero zoo"
).split()
HELD_OUT_WORDS = (  # noqa: SIM905
    "bell bread cloud corn duck field gift goat hero jar kite lion mail nest pear river sock tent wolf"
).split()
"""Words of the validation and test splits that no training picture shows."""
READING = ("word", "new word", "number")
"""Categories whose answer has to be read."""
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "cmss10",
    "cmtt10",
)  # fmt: skip

_INKS = ("black", "black", "blue", "red", "brown", "purple")
_BARS = ("blue", "teal", "purple", "black", "green", "brown")

_COLOR_OF = (
    "What color is the {}?", "What is the color of the {}?",
    "Which color does the {} have?", "The {} is of what color?",
)  # fmt: skip
_SHAPE_OF = (
    "What shape is the {} object?", "What is the shape of the {} thing?",
    "Which shape is {}?", "What is the {} object?",
)  # fmt: skip
_COUNT_ALL = (
    "How many shapes are there?", "How many objects are in the picture?",
    "Count the shapes.", "How many things do you see?",
)  # fmt: skip
_COUNT = ("How many {} are there?", "How many {} do you see?", "Count the {}.")
_COUNT_COLOR = ("How many {} shapes are there?", "How many {} objects do you see?", "Count the {} shapes.")
_PLACE = ("Where is the {}?", "In which part of the picture is the {}?", "Where do you see the {}?")
_EXISTS = ("Is there a {}?", "Do you see a {}?", "Is there a {} in the picture?", "Does the picture show a {}?")
_DESCRIBE = ("Describe the picture.", "What do you see?", "What is in this picture?")
_WORD = ("What does the text say?", "Which word is written?", "What is written here?", "Read the word.")
_NUMBER = ("Which number is shown?", "What number do you see?", "Read the number.", "What is the number?")
_TITLE = ("What is the title?", "What does the title say?", "Read the title of this screen.")
_BUTTON = ("What does the button say?", "What is written on the button?", "Read the button.")


@dataclass(frozen=True)
class Question:
    """A question with its one right answer; `category` is what results are grouped by."""

    text: str
    answer: str
    category: str


@dataclass(frozen=True)
class Mark:
    """Something that can be pointed at: a shape (with its color) or a character; `box` is left, top, right, bottom."""

    box: tuple[float, float, float, float]
    label: str
    color: str | None = None


@dataclass
class Scene:
    """A picture (RGB), its questions, and what is where."""

    kind: str
    image: Image.Image
    questions: list[Question] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    """aspect_ratio (width / height), text_px (height of the smallest asked text, 0 without), needs_tiles."""


def scene(split: str, index: int, kind: str | None = None) -> Scene:
    """Scene number `index` of a split; `kind` None draws the kind as well."""
    if split not in SPLITS:
        raise ValueError(f"the split is {split!r}; expected one of {SPLITS}")
    seed = hashlib.sha256(f"scenes 1 {split} {index} {kind}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
    if kind is None:
        kind = str(rng.choice(["objects", "words", "strip", "screenshot"], p=[0.4, 0.3, 0.2, 0.1]))
    made = _KINDS[kind](rng, split)
    width, height = made.image.size
    made.attributes["aspect_ratio"] = round(width / height, 3)
    # Squashed into one 224 px tile, letters below about 14 px (capitals of 10) cannot be told apart.
    text_px = made.attributes.setdefault("text_px", 0)
    made.attributes["needs_tiles"] = bool(text_px) and text_px * 224 / max(width, height) < 14
    return made


def digest(split: str, count: int) -> str:
    """SHA-256 over pixels and questions of the first `count` scenes: what fixes a split."""
    total = hashlib.sha256()
    for index in range(count):
        made = scene(split, index)
        total.update(repr((made.kind, made.image.size, made.questions)).encode() + made.image.tobytes())
    return total.hexdigest()


class _Canvas:
    """A picture being drawn; remembers what is where."""

    def __init__(self, rng: np.random.Generator, kind: str, width: int, height: int) -> None:
        self.rng = rng
        self.is_dark = False
        image = Image.new("RGB", (width, height), self._pale())
        if rng.random() < 0.3:  # a vertical gradient between two pale colors
            ends = np.array([self._pale(), self._pale()], np.float32)
            steps = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
            rows = ends[0] * (1 - steps) + ends[1] * steps
            image = Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8).copy())
        self.scene = Scene(kind, image)
        self.draw = ImageDraw.Draw(image)

    def _pale(self) -> tuple[int, int, int]:
        red, green, blue = self.rng.integers(215, 256, 3).tolist()
        return red, green, blue

    def shape(self, name: str, color: str, x: float, y: float, radius: float) -> None:
        """Draws one shape around (x, y) that fits a circle of `radius`, in the color, slightly varied."""
        fill = tuple(int(np.clip(c + self.rng.integers(-12, 13), 0, 255)) for c in COLORS[color])
        box = (x - radius, y - radius, x + radius, y + radius)
        if name == "circle":
            self.draw.ellipse(box, fill=fill)
        elif name == "rectangle":
            half_w, half_h = radius * self.rng.uniform(0.55, 0.95, 2)
            box = (x - half_w, y - half_h, x + half_w, y + half_h)
            self.draw.rectangle(box, fill=fill)
        else:
            turn = self.rng.uniform(0, 2 * math.pi)
            corners = [(radius * part, angle + turn) for part, angle in _OUTLINES[name]]
            self.draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in corners], fill=fill)
        self.scene.marks.append(Mark(box, name, color))

    def text(self, text: str, x: float, y: float, font: ImageFont.FreeTypeFont, fill: tuple[int, int, int]) -> None:
        """Writes `text` with its top left corner at (x, y) and marks each character."""
        self.draw.text((x, y), text, font=font, fill=fill)
        for index, character in enumerate(text):
            if character != " ":
                left = x + font.getlength(text[:index])
                _, above, _, below = font.getbbox(character)
                box = (left, y + above, left + font.getlength(character), y + below)
                self.scene.marks.append(Mark(box, character))

    def ask(self, forms: tuple[str, ...], about: str, answer: str, category: str) -> None:
        """Adds a question in one of its wordings."""
        text = forms[int(self.rng.integers(len(forms)))].format(about)
        text = text.replace(" a orange", " an orange")
        if self.rng.random() < 0.25:
            text = text.lower()
        self.scene.questions.append(Question(text, answer, category))


_STAR = [(1.0 if i % 2 == 0 else 0.42, i * math.pi / 5) for i in range(10)]
_CROSS = [(math.hypot(a, b), math.atan2(b, a)) for a, b in (
    (0.93, 0.3), (0.3, 0.3), (0.3, 0.93), (-0.3, 0.93), (-0.3, 0.3), (-0.93, 0.3),
    (-0.93, -0.3), (-0.3, -0.3), (-0.3, -0.93), (0.3, -0.93), (0.3, -0.3), (0.93, -0.3),
)]  # fmt: skip
_OUTLINES = {"triangle": [(1.0, i * 2 * math.pi / 3) for i in range(3)], "star": _STAR, "cross": _CROSS}
"""Corners as (part of the radius, angle)."""


@functools.cache
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return ImageFont.truetype(folder / f"{name}.ttf", size_px, layout_engine=ImageFont.Layout.BASIC)


def _pick(rng: np.random.Generator, choices: tuple[str, ...] | list[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _word(rng: np.random.Generator, split: str) -> str:
    """A word; in the validation and test splits every fifth is one that training never showed."""
    unseen = split != "train" and rng.random() < 0.2
    return _pick(rng, HELD_OUT_WORDS if unseen else WORDS)


def _number(rng: np.random.Generator) -> str:
    length = int(rng.integers(1, 5))
    return str(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def _objects(rng: np.random.Generator, split: str) -> Scene:
    width = int(rng.choice([64, 96, 160, 224, 320, 448, 640, 896], p=[0.1, 0.1, 0.15, 0.25, 0.15, 0.1, 0.1, 0.05]))
    height = max(64, round(width * rng.choice([0.5, 0.67, 0.75, 1, 1, 1.33, 1.5])))
    canvas = _Canvas(rng, "objects", width, height)
    _place_shapes(canvas, int(rng.integers(1, 5)), (0, 0, width, height))
    _ask_about_shapes(canvas)
    return canvas.scene


def _place_shapes(canvas: _Canvas, count: int, area: tuple[float, float, float, float]) -> None:
    """Puts `count` shapes into cells of `area` that do not overlap."""
    rng = canvas.rng
    left, top, right, bottom = area
    width, height = right - left, bottom - top
    slender = (4, 1) if width > 2.5 * height else (1, 4) if height > 2.5 * width else (2, 2)
    cols, rows = (1, 1) if count == 1 else slender
    shared = _pick(rng, SHAPES) if rng.random() < 0.35 else None
    shared_color = _pick(rng, list(COLORS)) if shared is None and rng.random() < 0.35 else None
    for cell in rng.permutation(cols * rows)[:count].tolist():
        row, col = divmod(cell, cols)
        cell_w, cell_h = width / cols, height / rows
        radius = min(cell_w, cell_h) * rng.uniform(0.22, 0.42)
        x = left + col * cell_w + rng.uniform(radius, cell_w - radius)
        y = top + row * cell_h + rng.uniform(radius, cell_h - radius)
        canvas.shape(shared or _pick(rng, SHAPES), shared_color or _pick(rng, list(COLORS)), x, y, radius)


def _ask_about_shapes(canvas: _Canvas) -> None:
    rng, shapes = canvas.rng, [mark for mark in canvas.scene.marks if mark.color]
    by_shape = {name: [m for m in shapes if m.label == name] for name in SHAPES}
    by_color = {name: [m for m in shapes if m.color == name] for name in COLORS}
    width, height = canvas.scene.image.size
    for mark in shapes:
        assert mark.color is not None
        if len(by_shape[mark.label]) == 1:
            canvas.ask(_COLOR_OF, mark.label, mark.color, "color")
        if len(by_color[mark.color]) == 1:
            canvas.ask(_SHAPE_OF, mark.color, mark.label, "shape")
        same = [m for m in by_shape[mark.label] if m.color == mark.color]
        place = _place(mark, width, height)
        if len(same) == 1 and place is not None and rng.random() < 0.5:
            canvas.ask(_PLACE, f"{mark.color} {mark.label}", place, "position")
    canvas.ask(_COUNT_ALL, "", str(len(shapes)), "count")
    shape = _pick(rng, [m.label for m in shapes]) if rng.random() < 0.7 else _pick(rng, SHAPES)
    canvas.ask(_COUNT, PLURALS[shape], str(len(by_shape[shape])), "count")
    color = _pick(rng, [str(m.color) for m in shapes]) if rng.random() < 0.7 else _pick(rng, list(COLORS))
    canvas.ask(_COUNT_COLOR, color, str(len(by_color[color])), "count")
    one = shapes[int(rng.integers(len(shapes)))]
    about, exists = f"{one.color} {one.label}", True
    if rng.random() < 0.5:
        about = f"{_pick(rng, list(COLORS))} {_pick(rng, SHAPES)}"
        exists = any(f"{m.color} {m.label}" == about for m in shapes)
    canvas.ask(_EXISTS, about, "yes" if exists else "no", "yes/no")
    if len(shapes) > 1:
        first, second = (shapes[i] for i in rng.permutation(len(shapes))[:2])
        _ask_relation(canvas, first, second)
    if rng.random() < 0.3:
        ordered = sorted(shapes, key=lambda m: (m.box[1] + m.box[3] > height, m.box[0]))
        names = [f"{'an' if m.color == 'orange' else 'a'} {m.color} {m.label}" for m in ordered]
        text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        canvas.ask(_DESCRIBE, "", text[0].upper() + text[1:] + ".", "sentence")


def _ask_relation(canvas: _Canvas, first: Mark, second: Mark) -> None:
    across = (first.box[0] + first.box[2] - second.box[0] - second.box[2]) / 2
    down = (first.box[1] + first.box[3] - second.box[1] - second.box[3]) / 2
    if max(abs(across), abs(down)) < 0.15 * max(canvas.scene.image.size) or first.label == second.label:
        return
    relation, holds = ("left of", across < 0) if abs(across) > abs(down) else ("above", down < 0)
    names = [f"{mark.color} {mark.label}" for mark in (first, second)]
    canvas.ask((f"Is the {names[0]} {relation} the {names[1]}?",), "", "yes" if holds else "no", "yes/no")


def _place(mark: Mark, width: int, height: int) -> str | None:
    """The mark's ninth of the picture by name; None close to a border between two."""
    index = []
    for low, high, side in ((mark.box[1], mark.box[3], height), (mark.box[0], mark.box[2], width)):
        thirds = (low + high) / 2 / side * 3
        if min(abs(thirds - 1), abs(thirds - 2)) < 0.12:
            return None
        index.append(min(2, int(thirds)))
    return PLACES[index[0]][index[1]]


def _words(rng: np.random.Generator, split: str) -> Scene:
    """A word, a number or both, on a canvas of one to six tiles; the text is 26 to 52 px high there."""
    grids = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 2))
    cols, rows = grids[int(rng.choice(6, p=[0.3, 0.2, 0.15, 0.2, 0.1, 0.05]))]
    zoom = rng.uniform(0.7, 1.0)
    width, height = round(224 * cols * zoom), round(224 * rows * zoom)
    canvas = _Canvas(rng, "words", width, height)
    size = round(rng.uniform(26, 52) * zoom)
    lines = [_word(rng, split)] if rng.random() < 0.6 else []
    if not lines or rng.random() < 0.35:
        lines.insert(int(rng.integers(len(lines) + 1)), _number(rng))
    slots = rng.permutation(max(len(lines), height // (2 * size)))[: len(lines)]
    for line, slot in zip(lines, sorted(slots.tolist()), strict=True):
        _write_line(canvas, line, (0, slot * 2 * size, width, (slot + 1) * 2 * size), size)
    canvas.scene.attributes["text_px"] = size
    return canvas.scene


def _write_line(
    canvas: _Canvas, line: str, area: tuple[float, float, float, float], size: int,
    forms: tuple[str, ...] | None = None, fill: tuple[int, int, int] | None = None,
) -> None:  # fmt: skip
    """Writes a line somewhere in `area` and asks for it."""
    rng = canvas.rng
    font = _font(_pick(rng, FONTS), size)
    length = font.getlength(line)
    left, top, right, bottom = area
    x = left + rng.uniform(0.04, 0.96) * max(0.0, right - left - length)
    y = top + rng.uniform(0.1, 0.9) * max(0.0, bottom - top - 1.25 * size)
    if fill is None:
        fill = COLORS[_pick(rng, _INKS)]
    canvas.text(line, x, y, font, fill)
    is_number = line.isdigit()
    category = "number" if is_number else "new word" if line in HELD_OUT_WORDS else "word"
    canvas.ask(forms or (_NUMBER if is_number else _WORD), "", line, category)


def _page(rng: np.random.Generator, split: str) -> Scene:
    """One tile full of words and numbers, for the stage of training that reads token by token; asks nothing."""
    canvas = _Canvas(rng, "page", 224, 224)
    if rng.random() < 0.4:
        canvas.draw.rectangle((0, 0, 224, 224), fill=COLORS[_pick(rng, _BARS)])
        ink = (255, 255, 255)
    else:
        ink = COLORS[_pick(rng, _INKS)]
    y = rng.uniform(0, 12)
    while y < 200:
        size = int(rng.integers(24, 54))
        font = _font(_pick(rng, FONTS), size)
        x = rng.uniform(-10, 40)
        while x < 200:
            letters = rng.integers(0, 26, int(rng.integers(2, 6)))
            scrambled = "".join(chr(97 + letter) for letter in letters.tolist())
            line = (_word(rng, split), _number(rng), scrambled)[int(rng.choice(3, p=[0.5, 0.35, 0.15]))]
            canvas.text(line, x, y, font, ink)
            x += font.getlength(line) + rng.uniform(0.4, 1.2) * size
        y += size * rng.uniform(1.05, 1.5)
    return canvas.scene


def _strip(rng: np.random.Generator, split: str) -> Scene:
    """Five times as wide as high (or as high as wide): shapes, a word, a number."""
    long_px = int(rng.choice([480, 800, 1120, 1600]))
    wide = rng.random() < 0.7
    width, height = (long_px, long_px // 5) if wide else (long_px // 5, long_px)
    canvas = _Canvas(rng, "strip", width, height)
    shown = 1 if rng.random() < 0.7 else 2
    size = round(min(width, height) * rng.uniform(0.16, 0.26) * (1.0 if wide else 0.9))
    if size * 896 / long_px < 20 and wide:
        size = round(20 * long_px / 896)
    word_at = int(rng.integers(1, 3))
    parts = rng.permutation(4)[: shown + 1].tolist()
    for number, part in enumerate(parts):
        low, high = part * long_px / 4, (part + 1) * long_px / 4
        area = (low, 0.0, high, float(height)) if wide else (0.0, low, float(width), high)
        if number == 0:
            _place_shapes(canvas, 1, area)
        else:
            line = _word(rng, split) if number == word_at else _number(rng)
            _write_line(canvas, line, area, size)
    mark = next(m for m in canvas.scene.marks if m.color)
    canvas.ask(_COLOR_OF, mark.label, str(mark.color), "color")
    canvas.ask(_SHAPE_OF, str(mark.color), mark.label, "shape")
    canvas.scene.attributes["text_px"] = size
    return canvas.scene


def _screenshot(rng: np.random.Generator, split: str) -> Scene:
    """A phone's screen, 1080 x 2400: a bar with a title, a card with shapes, a number, a button."""
    canvas = _Canvas(rng, "screenshot", 1080, 2400)
    size = int(rng.integers(80, 120))
    bar = COLORS[_pick(rng, _BARS)]
    canvas.draw.rectangle((0, 0, 1080, 330), fill=bar)
    white = (255, 255, 255)
    title, label = (_word(rng, split) for _ in range(2))
    _write_line(canvas, title, (60, 120, 1020, 310), size, _TITLE, white)
    canvas.draw.rounded_rectangle((50, 400, 1030, 1300), 40, fill=white)
    _place_shapes(canvas, int(rng.integers(1, 4)), (90, 440, 990, 1260))
    _write_line(canvas, _number(rng), (60, 1380, 1020, 1700), size)
    button = (150, 1980, 930, 2220)
    canvas.draw.rounded_rectangle(button, 60, fill=COLORS[_pick(rng, ("blue", "green", "red", "purple"))])
    _write_line(canvas, label, (button[0] + 40, button[1] + 40, button[2] - 40, button[3] - 30), size, _BUTTON, white)
    _ask_about_shapes(canvas)
    canvas.scene.attributes["text_px"] = size
    return canvas.scene


_KINDS: dict[str, Callable[[np.random.Generator, str], Scene]] = {
    "objects": _objects,
    "words": _words,
    "strip": _strip,
    "screenshot": _screenshot,
    "page": _page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scenes as PNG files and their questions as JSON lines.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--kind", choices=list(_KINDS))
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "questions.jsonl").open("w") as file:
        for index in range(options.start, options.start + options.count):
            made = scene(options.split, index, options.kind)
            made.image.save(options.out / f"{index}.png")
            asked = [[question.text, question.answer, question.category] for question in made.questions]
            row = {"image": f"{index}.png", "kind": made.kind, "attributes": made.attributes, "questions": asked}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
