"""Makes the question sets that `edgevlm eval --set NAME` measures.

    python assets/demo/sets.py easy-vqa|scenes|captions [--limit N] [--split SPLIT] [--dir DIR]

easy-vqa    the test split of easy-VQA 1.0 (MIT), from its PyPI wheel, pinned by sha256
scenes      drawn by scenes.py: shapes, counting, positions, digits and words, at many sizes and ratios
captions    Debian's tuxpaint-stamps-default (GPL-2 and others; fetched with apt-get download, never part of this
            repository): a picture of one thing each, its English description is the answer

A set is a directory `sets/NAME` in the cache (EDGEVLM_CACHE or XDG) with set.json, questions.jsonl and pictures; it
appears whole or not at all. Needs edgevlm; scenes what scenes.py needs, captions Debian's apt-get and dpkg-deb.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fetch import DATA, fetch_data
from PIL import Image
from scenes import READING, Scene, scene

from edgevlm.evaluation.question_set import CARD_NAME, QUESTIONS_NAME, Question, SetCard, set_digest, sets_directory
from edgevlm.strict_json import to_json

SHAPES = ("circle", "rectangle", "triangle")
N_SCENES = 600
"""Pictures of the scenes set unless --limit says otherwise."""
STAMPS = "tuxpaint-stamps-default"
STAMPS_FOLDER = Path("usr/share/tuxpaint/stamps")
MAX_CAPTION_WORDS = 6
"""Longer descriptions tell a story about the thing."""

ASPECTS = ((1.25, "up to 1.25:1"), (2.0, "1.25:1 to 2:1"), (3.5, "2:1 to 3.5:1"), (float("inf"), "above 3.5:1"))
"""Longer side over shorter side, and what the group is called."""
TILE_PX = 224
"""Side of the demo model's tile."""
TEXT_PX = ((10.0, "under 10 px"), (14.0, "10 to 13 px"), (20.0, "14 to 19 px"), (float("inf"), "20 px and more"))
"""Height of the text once the whole picture is one tile."""


@dataclass(frozen=True)
class Pictured:
    """One picture's bytes and its questions."""

    name: str
    content: bytes
    questions: list[Question]


@dataclass(frozen=True)
class Source:
    """How one set is made."""

    describe: str
    licence: str
    pictures: Callable[[int | None, str], Iterator[Pictured]]


def easy_vqa(limit: int | None, split: str) -> Iterator[Pictured]:
    """The questions of a split, picture by picture."""
    with zipfile.ZipFile(fetch_data()) as archive:
        by_image: dict[int, list[Question]] = {}
        for text, answer, image in json.loads(archive.read(f"easy_vqa/data/{split}/questions.json")):
            category = "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
            by_image.setdefault(image, []).append(Question(f"images/{image}.png", text, (answer,), category))
        for image in sorted(by_image)[:limit]:
            content = archive.read(f"easy_vqa/data/{split}/images/{image}.png")
            yield Pictured(f"images/{image}.png", content, by_image[image])


def scenes(limit: int | None, split: str) -> Iterator[Pictured]:
    """The first pictures of a split of scenes.py."""
    for index in range(N_SCENES if limit is None else limit):
        drawn = scene(split, index)
        name = f"images/{index:05d}.png"
        questions = [
            Question(name, asked.text, (asked.answer,), asked.category, scene_groups(drawn, asked.category))
            for asked in drawn.questions
        ]
        if questions:
            yield Pictured(name, as_png(drawn.image), questions)


def scene_groups(drawn: Scene, category: str) -> dict[str, str]:
    """What a question about a scene is counted by, besides its category; the text's height where text is read."""
    longest, shortest = max(drawn.image.size), min(drawn.image.size)
    groups = {"kind": drawn.kind, "aspect ratio": binned(longest / shortest, ASPECTS)}
    if category in READING:
        groups["text height in one tile"] = binned(drawn.attributes["text_px"] * TILE_PX / longest, TEXT_PX)
        groups["reading"] = "needs several tiles" if drawn.attributes["needs_tiles"] else "one tile is enough"
    return groups


def binned(value: float, bins: tuple[tuple[float, str], ...]) -> str:
    """The name of the first bin whose bound is above `value`."""
    return next(name for bound, name in bins if value < bound)


def captions(limit: int | None, split: str) -> Iterator[Pictured]:
    """Stamps with a short English description, in a fixed random order."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-stamps-") as scratch:
        root = unpack_stamps(Path(scratch)) / STAMPS_FOLDER
        found = []
        for description in sorted(root.rglob("*.txt")):
            picture = description.with_suffix(".png")
            words = caption(description)
            if picture.is_file() and words and len(words.split()) <= MAX_CAPTION_WORDS:
                found.append((picture, words))
        random.Random(0).shuffle(found)
        for number, (picture, words) in enumerate(found[:limit]):
            with Image.open(picture) as image:
                flat = Image.new("RGB", image.size, (255, 255, 255))
                flat.paste(image.convert("RGBA"), mask=image.convert("RGBA").getchannel("A"))
            name = f"images/{number:05d}.png"
            folder = picture.relative_to(root).parts[0]
            yield Pictured(name, as_png(flat), [Question(name, "What is in the picture?", answers(words), folder)])


def caption(path: Path) -> str:
    """The first line of a stamp's description (English, UTF-8), or nothing."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].strip() if lines else ""


def answers(words: str) -> tuple[str, ...]:
    """The description, and without its article."""
    bare = re.sub(r"^(an?|the|some) ", "", words, flags=re.IGNORECASE)
    return tuple(dict.fromkeys((words, bare)))


def unpack_stamps(directory: Path) -> Path:
    """Downloads Debian's package with apt-get, so that the user's own mirrors and keys apply, and unpacks it."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise SystemExit(f"the captions are Debian's package {STAMPS}, but {program} is not on this machine.")
    print(f"downloading {STAMPS} (161 MB) ...", file=sys.stderr, flush=True)
    downloaded = subprocess.run(
        ["apt-get", "download", STAMPS], cwd=directory, capture_output=True, text=True, check=False
    )
    archives = list(directory.glob(f"{STAMPS}_*.deb"))
    if downloaded.returncode != 0 or not archives:
        last = (downloaded.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"could not download {STAMPS}: apt-get says '{last}'. Run 'apt-get update', then this again.")
    subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(directory / "root")], check=True)
    return directory / "root"


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


SOURCES = {
    "easy-vqa": Source(f"easy-VQA 1.0, https://github.com/vzhou842/easy-VQA ({DATA.filename})", "MIT", easy_vqa),
    "scenes": Source("assets/demo/scenes.py of this repository", "Apache-2.0", scenes),
    "captions": Source(f"Debian's {STAMPS}, http://www.tuxpaint.org/stamps/", "GPL-2.0-or-later and others", captions),
}


def make_set(name: str, destination: Path, limit: int | None = None, split: str = "test") -> int:
    """Writes the set beside `destination` and renames it there, over an older one; returns its number of questions."""
    source = SOURCES[name]
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
    try:
        questions: list[Question] = []
        for pictured in source.pictures(limit, split):
            path = scratch / pictured.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pictured.content)
            questions += pictured.questions
        if not questions:
            raise SystemExit(f"the {split} split of {name} has no questions.")
        lines = [json.dumps(to_json(question), ensure_ascii=False) + "\n" for question in questions]
        (scratch / QUESTIONS_NAME).write_text("".join(lines), encoding="utf-8")
        images = [question.image for question in questions]
        card = SetCard(
            f"{name} ({split})", source.describe, source.licence, len(set(images)), len(questions),
            set_digest(scratch, images),
        )  # fmt: skip
        (scratch / CARD_NAME).write_text(json.dumps(to_json(card), indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        if destination.exists():
            shutil.rmtree(destination)
        scratch.replace(destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a question set for `edgevlm eval --set NAME`.")
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--limit", type=int, help=f"pictures at most (default: all; of scenes {N_SCENES})")
    parser.add_argument("--split", default="test", help="train, validation or test of scenes (default: test)")
    parser.add_argument("--dir", type=Path, help="write the set there (default: sets/NAME in the cache)")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be at least 1, found {options.limit}")
    destination = options.dir or sets_directory() / options.name
    if options.dir is not None and destination.exists() and not (destination / CARD_NAME).is_file():
        parser.error(f"{destination} exists and is not a question set")
    n_questions = make_set(options.name, destination, options.limit, options.split)
    print(f"{n_questions} questions", file=sys.stderr)
    print(destination)


if __name__ == "__main__":
    main()
