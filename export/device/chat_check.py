"""Checks a compiled chat template against the template itself, on conversations that people have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import ParityError, UnsupportedModelError, UsageError
from export.device.chat_interpreter import Refusal, run_program
from export.device.chat_program import Statement

TEXTS = (
    "What is in this picture?", "", " ", "  two spaces ahead and behind  ", "line\nbreak\n\n", "\n",
    "emoji 🙂 日本語 é", "it's {{ not }} a {% template %}", "</think> and <|im_end|>", "a" * 300,
)  # fmt: skip
THOUGHTS = ("", "<think>\nLet me see.\n</think>\n\n", "<think>\n\n</think>\n\n")
SYSTEMS = (None, "You answer briefly.", " padded \n")


def conversations(as_list: bool) -> Iterator[list[dict[str, Any]]]:
    """Yields messages with and without a system message, pictures and earlier turns."""
    for system in SYSTEMS:
        for index, text in enumerate(TEXTS):
            for n_images in (0, 1, 2) if as_list else (0,):
                for n_turns in (1, 2, 3):
                    messages = [] if system is None else [_message("system", system, 0, as_list)]
                    for turn in range(n_turns):
                        images = n_images if turn in (0, 2) else 0
                        messages.append(_message("user", TEXTS[(index + turn) % len(TEXTS)], images, as_list))
                        if turn + 1 < n_turns:
                            said = THOUGHTS[(index + turn) % len(THOUGHTS)] + f"Answer {turn}. {text}"
                            messages.append(_message("assistant", said, 0, as_list))
                    yield messages


def _message(role: str, text: str, n_images: int, as_list: bool) -> dict[str, Any]:
    if not as_list:
        return {"role": role, "content": text}
    return {"role": role, "content": [{"type": "image"}] * n_images + [{"type": "text", "text": text}]}


def check_program(program: Sequence[Statement], template: ChatTemplate, as_list: bool) -> int:
    """Returns how many conversations were compared. Raises ParityError at the first that differs.

    Raises UnsupportedModelError for a conversation that the program cannot render at all.
    """
    count = 0
    for messages in conversations(as_list):
        try:
            expected: str | None = template.render(messages)
        except UsageError:
            expected = None
        try:
            found: str | None = run_program(program, messages)
        except Refusal:
            found = None
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{template.name}: a device cannot render {str(messages)[:80]} with it ({error})"
            ) from error
        if found != expected:
            raise ParityError(
                f"{template.name}: its device form renders {str(messages)[:80]} as {str(found)[:80]!r}, the template "
                f"as {str(expected)[:80]!r}"
            )
        count += 1
    return count
