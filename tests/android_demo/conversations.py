"""Conversations for the comparison of prompts, and the ids that the Python runtime makes of them."""

from __future__ import annotations

import random
from typing import Any

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import EdgeVLMError
from edgevlm.package import Package
from edgevlm.prompt import build_segments, segment_ids
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Tokenizer
from tests.tokenizer_strings import make_strings

Conversation = list[dict[str, Any]]


def make_conversations(package: Package, count: int, seed: int = 7) -> list[Conversation]:
    """Returns conversations with every kind of text, special tokens written by users, and pictures where they go."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.open(package)
    texts = make_strings(tokenizer.control_texts, 4 * count, seed)
    first = package.manifest.processor is not None and package.manifest.processor.thumbnail == "first"
    conversations = []
    for _ in range(count):
        messages: Conversation = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "text": rng.choice(texts), "pictures": []})
        for turn in range(n_turns := rng.randint(1, 3)):
            pictures = [_plan(rng, first) for _ in range(rng.randint(0, 2))] if package.has_vision else []
            messages.append({"role": "user", "text": rng.choice(texts), "pictures": pictures})
            if turn + 1 < n_turns:
                messages.append({"role": "assistant", "text": rng.choice(texts), "pictures": []})
        conversations.append(messages)
    return conversations


def _plan(rng: random.Random, thumbnail_first: bool) -> list[Any]:
    rows, cols = rng.randint(1, 3), rng.randint(1, 3)
    return [rows, cols, rows * cols > 1, thumbnail_first]


def python_ids(package: Package, conversation: Conversation) -> list[int] | str:
    """Returns the ids of the Python runtime, or the name of the error's kind."""
    spec = package.manifest.prompt
    messages, plans = [], []
    for message in conversation:
        parts: list[dict[str, str]] = [{"type": "image"}] * len(message["pictures"])
        text = message["text"]
        content = [*parts, {"type": "text", "text": text}] if spec is not None else text
        messages.append({"role": message["role"], "content": content})
        plans += [TilePlan("relaxed", 1, r, c, ((1, 1),), (0, 0), t, f) for r, c, t, f in message["pictures"]]
    try:
        segments = build_segments(messages, ChatTemplate.open(package), Tokenizer.open(package), spec, plans)
    except EdgeVLMError as error:
        return {2: "USAGE", 3: "PACKAGE"}[error.exit_code]
    return segment_ids(segments, spec.image_token_id if spec else -1)
