"""What the checks feed to a model: real text, pictures drawn by code, one question. The same bytes on every machine."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

QUESTION = "What shapes and colours are in this picture?"

CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "  Is it red?\n"), ("assistant", "Yes."), ("user", "And the 2nd one?")),
    (("system", "Be short."), ("user", "Why?"), ("assistant", "<think>\nHm.\n</think>\n\nSo. "), ("user", "é {{ x }}")),
    (
        ("user", "a"),
        ("assistant", "<think>\n\n</think>\n\nb"),
        ("user", "/no_think c"),
        ("assistant", "d"),
        ("user", "e"),
    ),
)
"""(role, text) of each turn; an assistant may have thought."""

PICTURE_SIZES: tuple[tuple[int, int], ...] = (
    (224, 224),
    (96, 1000),
    (240, 640),
    (640, 240),
    (481, 637),
    (37, 53),
    (900, 61),
    (1080, 1920),
)
"""(height_px, width_px): square, panorama, wide, tall, odd, tiny, column, large."""

_COLOURS = ((214, 40, 40), (30, 110, 220), (40, 160, 70), (245, 200, 20), (120, 40, 150), (20, 20, 20))


def text() -> str:
    """Returns English prose of about 32,000 characters; calibration text is another part of the same book.

    Source: Ambrose Bierce, The Devil's Dictionary (1911), public domain; the start of assets/text.
    """
    return files("export").joinpath("data", "measure.txt").read_text(encoding="utf-8")


def picture(height_px: int, width_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a gradient with circles, rectangles and block letters on it, uint8 (height_px, width_px, 3).

    Drawn with integer numpy only: what PIL draws differs between its releases.
    """
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height_px, 0:width_px]
    red = 255 * x // max(width_px - 1, 1)
    green = 255 * y // max(height_px - 1, 1)
    blue = (red + 255 - green) // 2
    image = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    side = min(height_px, width_px)
    for colour in _COLOURS:
        centre_y, centre_x = int(random.randint(height_px)), int(random.randint(width_px))
        radius = 1 + side // 8 + int(random.randint(1 + side // 6))
        if random.randint(2):
            inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radius * radius
        else:
            inside = (abs(y - centre_y) <= radius // 2) & (abs(x - centre_x) <= radius)
        image[inside] = colour
    _draw_text(image, "EDGE 27", top=height_px // 8, left=width_px // 16, scale=max(1, side // 48))
    return image


# 5x7 letters, one number per row, the highest of five bits is the left pixel.
_GLYPHS = {
    "E": (31, 16, 16, 30, 16, 16, 31),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "G": (14, 17, 16, 23, 17, 17, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "7": (31, 1, 2, 4, 8, 8, 8),
    " ": (0, 0, 0, 0, 0, 0, 0),
}


def _draw_text(image: NDArray[np.uint8], text: str, top: int, left: int, scale: int) -> None:
    for index, letter in enumerate(text):
        for row, bits in enumerate(_GLYPHS[letter]):
            for column in range(5):
                if bits >> (4 - column) & 1:
                    y, x = top + row * scale, left + (6 * index + column) * scale
                    image[y : y + scale, x : x + scale] = (255, 255, 255)
