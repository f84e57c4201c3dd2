"""Deterministic strings that tokenizers disagree about: scripts, digits, white space, code, special tokens, noise.

Only `random.Random.random` is used, the one method whose sequence Python promises to keep between versions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

N_STRINGS = 10_000

# fmt: off
WORDS = (
    "the", "of", "and", "to", "in", "that", "was", "his", "with", "for", "have", "this", "from", "they", "which",
    "one", "all", "there", "been", "their", "photograph", "straightforward", "it's", "they'll", "I'm", "we've",
    "can't", "O'Neill's", "naïve", "café", "façade", "Straße", "Ελλάδα", "Москва", "information", "HTTPServer",
    "camelCase", "snake_case", "kebab-case", "e.g.", "Mr.", "3rd", "x86_64", "v2.0",
)
# fmt: on
PIECES = {
    "cjk": ("图片里有什么", "東京タワー", "서울 날씨", "这是一只猫。", "ありがとう", "你好,世界!", "漢字かな交じり文"),
    "rtl": ("مرحبا بالعالم", "ما هذا؟", "שלום עולם", "السَّلَامُ", "۱۲۳۴", "٣٫١٤"),  # noqa: RUF001 - Arabic digits are meant
    "indic": ("नमस्ते दुनिया", "हिन्दी", "தமிழ்", "ภาษาไทย", "বাংলা ১২৩"),
    "emoji": ("🙂", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "☃️", "❤"),
    "combining": ("e\u0301", "A\u030a", "n\u0303o", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢", "ﬁ", "①②", "Ⅷ", "½"),
    "digits": ("0", "7", "42", "007", "1234567890", "3.14159", "1,000,000", "-273.15", "1e-5", "0xDEADBEEF", "²³"),
    "space": (
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\t\t",
        " \n ",
        "\u00a0",
        "\u3000",
        "\u2009",
        "\u200b",
        "\x0b",
        "\x85",
    ),
    "code": (
        "def f(x):\n    return x ** 2\n",
        "for (int i = 0; i < n; ++i) {",
        '<div class="a">&nbsp;</div>',
        "SELECT * FROM t WHERE a='b';",
        "#!/bin/sh\nset -eu\n",
        '{"k": [1, 2.5, null]}',
        "x != y && !z || w",
        "https://example.org/a?b=c%20d#e",
        "C:\\Users\\me",
        "$$\\frac{a}{b}$$",
    ),
    "punctuation": ("...", "!?", "—", "“quoted”", "'s", "'S", "'RE", "''", "```", "--", "(…)", "«»", "@#$%^&*", "~`|"),
}


def make_strings(special: Sequence[str], count: int = N_STRINGS, seed: int = 20240517) -> list[str]:
    """`count` strings; `special` are texts of special tokens, written whole, cut short and glued to other text."""
    rng = random.Random(seed)
    return [_one(rng, special) for _ in range(count)]


def _one(rng: random.Random, special: Sequence[str]) -> str:
    groups = [*PIECES.values(), WORDS, WORDS, WORDS]
    parts = []
    for _ in range(1 + _below(rng, 9)):
        kind = rng.random()
        if kind < 0.06 and special:
            parts.append(_pick(rng, special))
        elif kind < 0.09 and special:
            token = _pick(rng, special)
            parts.append(token[: 1 + _below(rng, len(token))])
        elif kind < 0.19:
            parts.append("".join(_character(rng) for _ in range(1 + _below(rng, 6))))
        else:
            parts.append(_pick(rng, _pick(rng, groups)))
        if rng.random() < 0.5:
            parts.append(" ")
    return "".join(parts)


def _character(rng: random.Random) -> str:
    """Any character, most of them from the blocks that texts use."""
    kind = rng.random()
    if kind < 0.4:
        return chr(_below(rng, 0x250))
    if kind < 0.8:
        return chr(0x250 + _below(rng, 0xD800 - 0x250))
    return chr(0xE000 + _below(rng, 0x110000 - 0xE000))


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _pick(rng: random.Random, items: Sequence[str]) -> str:
    return items[_below(rng, len(items))]
