"""Makes the pictures and the text of `assets/` again, from public packages and by drawing.

    python assets/demo/make_assets.py --skimage WHEEL --devil DIRECTORY

WHEEL is scikit-image's wheel (`pip download --no-deps scikit-image==0.26.0`), DIRECTORY an unpacked Debian package
`dict-devil` (`apt-get download dict-devil; dpkg-deb -x dict-devil*.deb DIRECTORY`). easy-VQA comes through fetch.py.
The table in `assets/SOURCES.md` is printed on stdout.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import zipfile
from pathlib import Path

from fetch import fetch_data
from PIL import Image, ImageDraw
from scenes import scene

ASSETS = Path(__file__).resolve().parent.parent

# Pictures of the test split: no training run has seen them.
EASY_VQA_PICTURES = {
    "blue-rectangle.png": 137,
    "red-circle.png": 17,
    "green-triangle.png": 339,
    "teal-triangle.png": 87,
}
SCENES = {"three-shapes.png": ("objects", 1), "phone-screen.png": ("screenshot", 2)}
"""Of scenes.py's test split, by kind and number."""
STRIP_COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "brown": (165, 42, 42)}
TEXT_MAX_BYTES = 120_000
LEFT_OUT_ENTRY = "AFRICAN, n."  # a slur and nothing else

EASY_VQA = "easy-VQA 1.0 (PyPI `easy-vqa`), test picture {}; © 2019 Victor Zhou"
OWN = "drawn by `assets/demo/make_assets.py`"
OWN_SCENE = "`assets/demo/scenes.py`, split test, kind {}, number {}; fonts: matplotlib's"
COFFEE = "scikit-image 0.26.0 (PyPI), `skimage/data/coffee.png`, photo by Rachel Michetti; saved as JPEG, quality 85"
DEVIL = (
    "Ambrose Bierce, The Devil's Dictionary (1911), Abasement to {}, without one entry that is a slur; "
    "Debian `dict-devil` 1.0-13.1; lines joined"
)


def easy_vqa_picture(index: int) -> bytes:
    with zipfile.ZipFile(fetch_data()) as wheel:
        return wheel.read(f"easy_vqa/data/test/images/{index}.png")


def shapes_strip() -> Image.Image:
    """A 1344x448 picture (width x height) of four shapes in a row: 4x2 tiles of 224 and a thumbnail."""
    strip = Image.new("RGB", (1344, 448), (238, 242, 236))
    draw = ImageDraw.Draw(strip)
    draw.ellipse((88, 124, 288, 324), fill=STRIP_COLORS["red"])
    draw.rectangle((400, 144, 640, 304), fill=STRIP_COLORS["blue"])
    draw.polygon([(848, 116), (960, 316), (736, 316)], fill=STRIP_COLORS["green"])
    draw.ellipse((1080, 124, 1280, 324), fill=STRIP_COLORS["brown"])
    return strip


def devils_dictionary(directory: Path) -> tuple[str, str]:
    """The first 120 KB of the dictionary's entries as plain paragraphs, and the last headword in them."""
    (path,) = directory.glob("**/devil.dict.dz")
    text = gzip.decompress(path.read_bytes()).decode("ascii")
    entries = text[text.index("ABASEMENT, n.") :]
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", entries):
        paragraphs += _unwrap(block)
    size_bytes, last_headword, kept = 0, "", []
    for paragraph in paragraphs:
        if paragraph.startswith(LEFT_OUT_ENTRY):
            continue
        size_bytes += len(paragraph.encode()) + 2
        if size_bytes > TEXT_MAX_BYTES:
            break
        kept.append(paragraph)
        if headword := re.match(r"([A-Z][A-Z' -]+)(?:, \w+\.|\.)", paragraph):
            last_headword = headword[1]
    return "\n\n".join(kept) + "\n", last_headword


def _unwrap(block: str) -> list[str]:
    """Prose joined to one line per paragraph (an indented line starts one); verse, all indented, keeps its lines."""
    lines = [line.rstrip() for line in block.splitlines() if line.strip()]
    if not lines:
        return []
    if all(line.startswith("  ") for line in lines):
        return ["\n".join(_plain(line) for line in lines)]
    paragraphs: list[list[str]] = []
    for line in lines:
        if line.startswith("  ") or not paragraphs:
            paragraphs.append([])
        paragraphs[-1].append(line)
    return [_plain(" ".join(group)) for group in paragraphs]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("_", "")).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the files of assets/ again.")
    parser.add_argument("--skimage", type=Path, required=True, help="scikit-image's wheel")
    parser.add_argument("--devil", type=Path, required=True, help="directory with the unpacked package dict-devil")
    options = parser.parse_args()

    made: dict[str, tuple[bytes, str, str]] = {}
    for name, index in EASY_VQA_PICTURES.items():
        made[name] = (easy_vqa_picture(index), EASY_VQA.format(index), "MIT")
    buffer = io.BytesIO()
    shapes_strip().save(buffer, "PNG", optimize=True)
    made["shapes-strip.png"] = (buffer.getvalue(), OWN, "Apache-2.0 (ours)")
    for name, (kind, index) in SCENES.items():
        buffer = io.BytesIO()
        scene("test", index, kind).image.save(buffer, "PNG", optimize=True)
        made[name] = (buffer.getvalue(), OWN_SCENE.format(kind, index), "Apache-2.0 (ours)")
    with zipfile.ZipFile(options.skimage) as wheel:
        photo = Image.open(io.BytesIO(wheel.read("skimage/data/coffee.png"))).convert("RGB")
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=85, optimize=True)
    made["coffee.jpg"] = (buffer.getvalue(), COFFEE, "CC0")
    text, last_headword = devils_dictionary(options.devil)
    made["text/devils-dictionary.txt"] = (text.encode(), DEVIL.format(last_headword.capitalize()), "public domain")

    for name, (content, source, licence) in made.items():
        path = ASSETS / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        print(f"| `{name}` | {source} | {licence} | `{hashlib.sha256(content).hexdigest()}` |")


if __name__ == "__main__":
    main()
