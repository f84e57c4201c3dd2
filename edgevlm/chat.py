"""A conversation: several turns and pictures on one model, each answer computing only what is new.

The whole conversation is rendered again for each turn; the loop finds the common prefix with the cache by content, so
that going on, regenerating and editing cost what changed and nothing else. A picture is encoded in the background
from the moment it is attached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgevlm.cancel import CancelToken
from edgevlm.errors import UsageError
from edgevlm.generate import Chunk, GenerationOptions, Response

if TYPE_CHECKING:
    from edgevlm.image import ImageSource
    from edgevlm.model import Model
    from edgevlm.pictures import Picture


@dataclass
class Turn:
    """One question and, once it is there, its answer."""

    text: str
    pictures: list[Picture] = field(default_factory=list)
    answer: str | None = None
    response: Response | None = None


class Conversation:
    """Turns on a model. Not thread-safe, except `cancel`."""

    def __init__(self, model: Model, system: str | None = None) -> None:
        self._model = model
        self._system = system
        self._attached: list[Picture] = []
        self._waiting_since = time.perf_counter()
        self.turns: list[Turn] = []

    def attach(self, image: ImageSource) -> None:
        """Adds a picture to the next question and begins to encode it.

        Raises ImageError for a picture that cannot be read, UsageError when the package takes none.
        """
        picture = self._model.picture(image)
        self._attached.append(picture)
        if self._model.encoder is not None:
            self._model.encoder.start(picture)

    def send(self, text: str, **options: Any) -> Iterator[Chunk]:
        """Yields the answer to `text` and the attached pictures; the last chunk carries the Response.

        A question that is refused, or cancelled before its first token, leaves the conversation as it was, pictures
        still attached. An answer cancelled later stays, as far as it came.
        """
        call = self._model.begin()
        chosen = self._model.options(**options)
        return self._answer(Turn(text, self._attached), self.turns, chosen, call)

    def regenerate(self, **options: Any) -> Iterator[Chunk]:
        """Answers the last question again."""
        call, last = self._model.begin(), self._last()
        return self._answer(Turn(last.text, last.pictures), self.turns[:-1], self._model.options(**options), call)

    def edit(self, text: str, **options: Any) -> Iterator[Chunk]:
        """Replaces the last question's text, keeping its pictures, and answers it."""
        call, last = self._model.begin(), self._last()
        return self._answer(Turn(text, last.pictures), self.turns[:-1], self._model.options(**options), call)

    def cancel(self) -> None:
        """Ends the running answer. Safe from any thread."""
        self._model.cancel()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat messages."""
        return self._messages(self.turns)

    def _last(self) -> Turn:
        if not self.turns:
            raise UsageError("there is no question yet to answer again")
        return self.turns[-1]

    def _messages(self, turns: list[Turn]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system})
        for turn in turns:
            parts: list[Any] = [{"type": "image"}] * len(turn.pictures)
            content = [*parts, {"type": "text", "text": turn.text}] if parts else turn.text
            messages.append({"role": "user", "content": content})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _answer(
        self, turn: Turn, before: list[Turn], options: GenerationOptions, call: CancelToken
    ) -> Iterator[Chunk]:
        """Checks the prompt at once; what is returned runs it and keeps the turn."""
        self._model.record("user types", self._waiting_since)
        turns = [*before, turn]
        pictures = [picture for t in turns for picture in t.pictures]
        n_before = len(pictures) - len(turn.pictures)
        prompt, fitted = self._model.fitted(self._messages(turns), pictures, options, first_movable=n_before)
        planned = replace(turn, pictures=fitted[n_before:])
        is_new = turn.pictures is self._attached
        return self._keep(planned, [*before, planned], is_new, self._model.answer(prompt, fitted, options, call))

    def _keep(self, turn: Turn, turns: list[Turn], is_new: bool, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        said: list[str] = []
        response = None
        try:
            for chunk in chunks:
                said.append(chunk.text)
                response = chunk.response or response
                yield chunk
        finally:
            if said and (any(said) or (response is not None and response.finish_reason != "cancelled")):
                turn.answer, turn.response = "".join(said), response
                self.turns = turns
                if is_new:
                    self._attached = []
            self._waiting_since = time.perf_counter()
