"""The prefill and decode loop: a prompt of ids and picture features in, text chunks and one Response out.

The loop remembers what every token in the session's cache is (an id, or a row of a picture), so that a new prompt
computes only what follows the common prefix, whoever wrote the one before. It reuses only rows that a run from nothing
would have computed to the bit: the same call gives the same tokens, whatever was cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from edgevlm.backends.draft_tree import shared_length
from edgevlm.backends.session import Float32, Int64, Segment, Session
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.errors import BackendError, UsageError
from edgevlm.generation_defaults import settled
from edgevlm.machine_memory import peak_memory_bytes
from edgevlm.sampling import Sampler, SamplingParams
from edgevlm.spec import GenerationSpec

FinishReason = Literal["stop", "length", "cancelled"]
DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is made."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""

    def __post_init__(self) -> None:
        """Raises UsageError for values that no answer can be made with."""
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty")


def generation_options(
    defaults: GenerationSpec,
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> GenerationOptions:
    """Returns options where None means what the package's generation config says.

    A package that does not sample is greedy unless a `temperature` is given, or one of `top_k`, `top_p` and `min_p`
    that excludes something: 0, 1 and 0 turn a filter off, and nothing on.
    """
    defaults = settled(defaults)
    filters = bool(top_k) or (top_p is not None and top_p != 1) or bool(min_p)
    samples = defaults.do_sample or temperature is not None or filters
    default_temperature = defaults.temperature if samples else 0.0

    def choose(value: Any, default: Any) -> Any:
        return default if value is None else value

    params = SamplingParams(
        temperature=choose(temperature, default_temperature),
        top_k=choose(top_k, defaults.top_k),
        top_p=choose(top_p, defaults.top_p),
        min_p=choose(min_p, defaults.min_p),
        repetition_penalty=choose(repetition_penalty, defaults.repetition_penalty),
        seed=seed,
    )
    return GenerationOptions(max_new_tokens, params, (stop,) if isinstance(stop, str) else tuple(stop))


@dataclass(frozen=True)
class PictureRun:
    """Consecutive image tokens: rows `first_row` to `first_row + n_rows` of a picture's features (C * V, D)."""

    picture: Hashable
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for prefill: runs of token ids (T,) int64 and of picture rows."""

    parts: tuple[Int64 | PictureRun, ...]
    image_token_id: int = 0
    n_tiles: int = 0
    tile_budget: int | None = None
    """The grid tiles per picture that `fit` lowered the plan to; None when nothing was lowered."""
    keys: list[Hashable] = field(init=False, repr=False)
    """What each token is; equal keys at equal positions mean equal cache rows."""

    def __post_init__(self) -> None:
        """Spreads the parts into one key per token."""
        keys: list[Hashable] = []
        for part in self.parts:
            if isinstance(part, PictureRun):
                keys.extend((part.picture, part.first_row + row) for row in range(part.n_rows))
            else:
                keys.extend(part.tolist())
        object.__setattr__(self, "keys", keys)

    @property
    def n_image_tokens(self) -> int:
        """Tokens that are rows of pictures."""
        return sum(part.n_rows for part in self.parts if isinstance(part, PictureRun))

    def ids(self) -> Int64:
        """Returns the ids (T,), image tokens as the image token's id."""
        return np.array([key if isinstance(key, int) else self.image_token_id for key in self.keys], np.int64)

    def text_ids(self) -> Int64:
        """Returns the ids without the image tokens: those stand for pictures, and nobody has said them."""
        return np.array([key for key in self.keys if isinstance(key, int)], np.int64)

    def after(self, n_tokens: int) -> list[Int64 | PictureRun]:
        """Returns the parts without the first `n_tokens` tokens."""
        rest: list[Int64 | PictureRun] = []
        for part in self.parts:
            size = part.n_rows if isinstance(part, PictureRun) else len(part)
            if n_tokens >= size:
                n_tokens -= size
            elif isinstance(part, PictureRun):
                rest.append(PictureRun(part.picture, part.first_row + n_tokens, size - n_tokens))
                n_tokens = 0
            else:
                rest.append(part[n_tokens:])
                n_tokens = 0
        return rest


@dataclass(frozen=True)
class StageTimings:
    """Seconds. `load_s`, `encode_s` count what happened since the answer before, in the background too."""

    load_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    first_token_s: float
    """From the start of the call to the first token."""
    total_s: float


@dataclass(frozen=True)
class Response:
    """One answer."""

    text: str
    token_ids: tuple[int, ...]
    """The tokens generated, without the one that ended the turn; a stop text's tokens are among them."""
    finish_reason: FinishReason
    n_prompt_tokens: int
    """With the image tokens."""
    n_image_tokens: int
    n_tiles: int
    n_reused_tokens: int
    """Prompt tokens whose cache rows were there already."""
    tile_budget: int | None
    """Grid tiles per picture after `fit` lowered them; None when it did not."""
    timings: StageTimings
    prefill_tok_per_s: float
    decode_tok_per_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one carries the Response."""

    text: str
    response: Response | None = None


class TokenDecoder(Protocol):
    """Turns ids into text piece by piece, never splitting a character."""

    def push(self, token_id: int) -> str:
        """Returns the text that is certain after `token_id`."""

    def finish(self) -> str:
        """Returns what is left."""


class StopMatcher:
    """Passes text on until a stop text appears; keeps back the end that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Returns the text that can be shown; `stopped` is set when a stop text is complete."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        n_kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - n_kept
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Returns the text kept back, when no more comes."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` are a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class TokenLoop:
    """Runs prompts on one session and knows what its cache holds."""

    def __init__(self, session: Session, eos_token_ids: Sequence[int]) -> None:
        self._session = session
        self._eos = frozenset(eos_token_ids)
        self._held: list[Hashable] = []
        self._n_whole = 0
        """Tokens from the cache's beginning whose rows `prefill` computed in whole chunks of the session's
        `reuse_step`. Rows of a chunk's rest or of single steps may differ from those in the last digits."""
        self._reported_load_s = self._reported_encode_s = 0.0

    def run(
        self,
        prompt: Prompt,
        features: Callable[[Hashable], Float32],
        decoder: TokenDecoder,
        options: GenerationOptions,
        cancelled: CancelToken,
    ) -> Iterator[Chunk]:
        """Yields the answer's text as it appears; the last chunk carries the Response.

        `features(picture)` returns rows (C * V, D) and may wait for them; it is called only for pictures that are not
        in the cache. A cancel ends the answer with finish_reason 'cancelled'; so does Cancelled from `features`.
        """
        session = self._session
        start = time.perf_counter()
        before = session.timings
        prefill_s, decode_s, n_prefilled, n_decoded = (
            before.prefill_s,
            before.decode_s,
            before.n_prefill_tokens,
            before.n_decode_tokens,
        )
        n_prompt = len(prompt.keys)
        n_reused = min(shared_length(self._held, prompt.keys), n_prompt - 1)
        if session.reuse_step > 1:
            n_reused = _whole(min(n_reused, self._n_whole), session.reuse_step)
        said = prompt.text_ids()
        history = np.zeros(len(said) + session.capacity + 1 - n_prompt, np.int64)
        history[: len(said)] = said
        n_said = len(said)
        keys = list(prompt.keys)
        generated: list[int] = []
        matcher, sampler = StopMatcher(options.stop), Sampler(options.sampling)
        shown: list[str] = []
        finish: FinishReason = "cancelled"
        first_token_s = 0.0
        try:
            session.truncate(n_reused)
            cancelled.check()
            segments = [_segment(part, features) for part in prompt.after(n_reused)]
            logits = session.prefill(segments, np.arange(n_reused, n_prompt, dtype=np.int64), cancelled)
            while True:
                _check_finite(logits, len(keys))
                token = sampler(logits, history[:n_said])
                first_token_s = first_token_s or time.perf_counter() - start
                if token in self._eos:
                    finish = "stop"
                    break
                generated.append(token)
                history[n_said] = token
                n_said += 1
                keys.append(token)
                text = matcher.push(decoder.push(token))
                if text:
                    shown.append(text)
                    yield Chunk(text)
                if matcher.stopped:
                    finish = "stop"
                    break
                if len(generated) == options.max_new_tokens or session.n_past == session.capacity:
                    finish = "length"
                    break
                cancelled.check()
                logits = session.step(token, len(keys) - 1, cancelled)
        except Cancelled:
            finish = "cancelled"
        finally:
            self._held = keys[: session.n_past]
            self._n_whole = _whole(min(n_prompt, session.n_past), session.reuse_step)
        if not matcher.stopped:
            rest = matcher.push(decoder.finish())
            rest += "" if matcher.stopped else matcher.finish()
            if rest:
                shown.append(rest)
                yield Chunk(rest)
        after = session.timings
        n_prefilled, n_decoded = after.n_prefill_tokens - n_prefilled, after.n_decode_tokens - n_decoded
        timings = StageTimings(
            load_s=after.load_s - self._reported_load_s,
            encode_s=after.encode_s - self._reported_encode_s,
            prefill_s=after.prefill_s - prefill_s,
            decode_s=after.decode_s - decode_s,
            first_token_s=first_token_s,
            total_s=time.perf_counter() - start,
        )
        self._reported_load_s, self._reported_encode_s = after.load_s, after.encode_s
        yield Chunk(
            "",
            Response(
                text="".join(shown),
                token_ids=tuple(generated),
                finish_reason=finish,
                n_prompt_tokens=n_prompt,
                n_image_tokens=prompt.n_image_tokens,
                n_tiles=prompt.n_tiles,
                n_reused_tokens=n_reused,
                tile_budget=prompt.tile_budget,
                timings=timings,
                prefill_tok_per_s=n_prefilled / timings.prefill_s if timings.prefill_s else 0.0,
                decode_tok_per_s=n_decoded / timings.decode_s if timings.decode_s else 0.0,
                peak_memory_bytes=peak_memory_bytes(),
            ),
        )

    def forget(self) -> None:
        """Marks the cache as empty, after the session's was released."""
        self._held, self._n_whole = [], 0


def _whole(n_tokens: int, step: int) -> int:
    return n_tokens - n_tokens % step


def _segment(part: Int64 | PictureRun, features: Callable[[Hashable], Float32]) -> Segment:
    if not isinstance(part, PictureRun):
        return part
    rows = features(part.picture)
    return rows[part.first_row : part.first_row + part.n_rows]


def _check_finite(logits: Float32, n_tokens: int) -> None:
    # a sum is finite only if every term is: one pass instead of a mask of the vocabulary
    if not np.isfinite(logits.sum()):
        raise BackendError(
            f"the model returned logits that are not finite after {n_tokens} tokens; check the package with "
            "`edgevlm inspect --hash`, or export it with more bits"
        )
