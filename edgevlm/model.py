"""A loaded package: questions and pictures in, answers out. `load` is what users call first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch
from edgevlm.backends.onnx import check_context
from edgevlm.backends.opening import KvBits, SessionOptions, choose_backend, kv_bits_per_layer, open_session
from edgevlm.backends.session import Float32, MemoryReport, Session
from edgevlm.cancel import CancelToken
from edgevlm.errors import ContextFullError, UnsupportedModelError, UsageError
from edgevlm.generate import Chunk, GenerationOptions, PictureRun, Prompt, Response, TokenLoop, generation_options
from edgevlm.image import ImageSource, load_image
from edgevlm.machine_memory import return_freed_memory
from edgevlm.memory import MemoryEstimate, NativeChoice, admit_picture, check_memory
from edgevlm.package import Package, open_package
from edgevlm.picture_memory import HeldPictures, PictureHeader
from edgevlm.pictures import Picture, PictureEncoder
from edgevlm.prompt import ChatTemplate, ImageRun, build_segments
from edgevlm.spec import ProcessorSpec
from edgevlm.tokenizer import StreamDecoder, Tokenizer
from edgevlm.trace import Event, write_trace

if TYPE_CHECKING:
    from edgevlm.chat import Conversation

Message = Mapping[str, Any]
"""{"role": ..., "content": text or a list of {"type": "text", "text": ...} and {"type": "image"}}."""

MIN_ANSWER_TOKENS = 64
"""A prompt is accepted when at least this much of the answer, or max_new_tokens if that is less, fits behind it."""


def load(
    package_dir: str | Path,
    *,
    backend: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    memory_budget_bytes: int | None = None,
    kv_bits: KvBits | None = None,
    fit: bool = False,
    tiling: ProcessorSpec | None = None,
) -> Model:
    """Returns the model in `package_dir`, ready for questions.

    `context` is the number of tokens held (default: the package's); `fit` lowers the number of picture tiles where a
    prompt would not fit. `kv_bits` is (bits of keys, bits of values) of the native backend's cache, for all layers or
    one pair per layer: 4 or 8 each, or (16, 16) for float. `tiling` plans pictures in place of the package's own rule,
    for measurements (edgevlm/evaluation/tilings.py). Raises PackageError for a package that cannot be trusted,
    BackendError when the memory that the package needs is above `memory_budget_bytes` or what the machine has left.
    """
    package = open_package(package_dir)
    if package.manifest.decoder.position_rank != 1:
        raise UnsupportedModelError(f"{package.path}: positions of rank 3 (M-RoPE) are not implemented by the loop")
    chosen = choose_backend(package, backend)
    options = SessionOptions(context, threads, kv_bits_per_layer(package, chosen, kv_bits))
    compiled = package.compiled(host_arch()) if chosen == "native" else None
    native = None if compiled is None else NativeChoice(compiled, options.kv_bits)
    estimate = check_memory(package, check_context(package, context), memory_budget_bytes, native)
    with ThreadPoolExecutor(1, "tokenizer") as reader:  # its parser lets go of the interpreter's lock
        parsed = reader.submit(Tokenizer.open, package)
        session = open_session(package, chosen, options)
    tokenizer = parsed.result()
    return_freed_memory()
    return Model(
        package, session, tokenizer, estimate=estimate, memory_budget_bytes=memory_budget_bytes, fit=fit, tiling=tiling
    )


class Model:
    """A package on a session. One answer at a time; `cancel` may come from any thread.

    The same call on the same model gives the same tokens, whatever was answered before it. What has been closed refuses
    every call.
    """

    def __init__(
        self,
        package: Package,
        session: Session,
        tokenizer: Tokenizer,
        *,
        estimate: MemoryEstimate,
        memory_budget_bytes: int | None = None,
        fit: bool = False,
        tiling: ProcessorSpec | None = None,
    ) -> None:
        manifest = package.manifest
        self.package = package
        self.session = session
        self.memory_estimate = estimate
        """Grows with the pictures that are given."""
        self._budget_bytes = memory_budget_bytes
        self._held = HeldPictures()
        self.fit = fit
        self.tiling = tiling or manifest.processor
        """What plans pictures; they are painted as the package's own processor says, as the tower was trained."""
        self.tokenizer = tokenizer
        self.template = ChatTemplate.open(package)
        self.loop = TokenLoop(session, manifest.generation.eos_token_ids)
        self.encoder: PictureEncoder | None = None
        if manifest.processor is not None and manifest.prompt is not None:
            prepare = None
            if isinstance(session, NativeSession) and tiling is None:
                prepare = session.tile_preparer(manifest.processor)
            self.encoder = PictureEncoder(
                session, manifest.processor, manifest.prompt.tokens_per_tile, self.record, prepare=prepare
            )
        self._events: list[Event] = []
        self._busy = threading.Lock()
        self._call = CancelToken()
        """The token of the call that runs, or of the one that was begun last."""
        self._is_closed = False

    # ---- answers

    def generate(self, prompt: str | Sequence[Message], images: Sequence[ImageSource] = (), **options: Any) -> Response:
        """Returns the answer to `prompt`, a question or a list of messages, about `images`.

        Options: max_new_tokens=256, temperature, top_k, top_p, min_p, repetition_penalty, seed (None: the package's
        generation config), stop=(). Raises ContextFullError with the numbers when the prompt does not fit.
        """
        response = None
        for chunk in self.stream(prompt, images, **options):
            response = chunk.response
        assert response is not None, "a stream ends with a response"
        return response

    def stream(
        self, prompt: str | Sequence[Message], images: Sequence[ImageSource] = (), **options: Any
    ) -> Iterator[Chunk]:
        """Like `generate`, but yields the text as it appears; the last chunk carries the Response."""
        call = self.begin()
        chosen = self.options(**options)
        pictures = [self.picture(image) for image in images]
        fitted, pictures = self.fitted(as_messages(prompt, len(pictures)), pictures, chosen)
        return self.answer(fitted, pictures, chosen, call)

    def chat(self, system: str | None = None) -> Conversation:
        """Returns a new conversation. Conversations of one model share its cache and take turns."""
        from edgevlm.chat import Conversation

        return Conversation(self, system)

    def options(self, **options: Any) -> GenerationOptions:
        """Returns generation options with the package's defaults. Raises UsageError for an unknown one."""
        try:
            return generation_options(self.package.manifest.generation, **options)
        except TypeError as error:
            raise UsageError(f"unknown or wrong option: {str(error).split(') ', 1)[-1]}") from None

    def picture(self, source: ImageSource) -> Picture:
        """Returns a decoded and planned picture.

        Raises UsageError when the package takes none, BackendError, before it is decoded, when it does not fit into
        the memory budget or what the machine has left.
        """
        self._require_open()
        processor = self.tiling
        if processor is None:
            raise UsageError(
                f"{self.package.path}: this package is a language model and takes no pictures; leave them out or "
                "load a package with a vision tower"
            )
        start = time.perf_counter()

        def admit(header: PictureHeader) -> None:
            pixel_bytes = self._held.bytes_with(header, processor)
            self.memory_estimate = admit_picture(self.memory_estimate, header.label, pixel_bytes, self._budget_bytes)

        picture = Picture.of(load_image(source, admit), processor)
        self._held.add(picture.image, processor)
        self.record("attach picture", start)
        return picture

    def begin(self) -> CancelToken:
        """Begins a call and returns its token, which `cancel` sets from now on until another call is begun.

        Raises UsageError while the model is answering, and after `close`.
        """
        self._require_open()
        if self._busy.locked():
            raise UsageError("the model is answering; finish, close or cancel that answer first")
        call = self._call = CancelToken()
        return call

    def _require_open(self) -> None:
        if self._is_closed:
            raise UsageError(f"{self.package.path}: the model is closed; load the package again")

    def answer(
        self,
        prompt: Prompt,
        pictures: Sequence[Picture],
        options: GenerationOptions,
        call: CancelToken | None = None,
    ) -> Iterator[Chunk]:
        """Yields the answer to what `fitted` returned; the work begins with the first chunk. `call` is from `begin`."""
        call = self.begin() if call is None else call
        return self._run(prompt, {picture.key: picture for picture in pictures}, options, call)

    def _run(
        self, prompt: Prompt, pictures: dict[Any, Picture], options: GenerationOptions, cancelled: CancelToken
    ) -> Iterator[Chunk]:
        def features(key: Any) -> Float32:
            assert self.encoder is not None, "a picture was accepted"
            return self.encoder.features(pictures[key], cancelled)

        with self._answering(cancelled):
            start = time.perf_counter()
            try:
                yield from self.loop.run(prompt, features, StreamDecoder(self.tokenizer), options, cancelled)
            finally:
                self.record("answer", start)

    @contextmanager
    def _answering(self, call: CancelToken) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise UsageError("the model is answering; finish, close or cancel that answer first")
        try:
            self._call = call  # another call may have been begun and not run
            yield
        finally:
            self._busy.release()

    # ---- prompts

    def fitted(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture],
        options: GenerationOptions,
        first_movable: int = 0,
    ) -> tuple[Prompt, list[Picture]]:
        """Returns the prompt of `messages` and its pictures as they were planned for it.

        With `fit`, pictures from index `first_movable` on get fewer tiles where the prompt would not fit. Raises
        ContextFullError with the numbers when it does not.
        """
        pictures = list(pictures)
        reserve = min(options.max_new_tokens, MIN_ANSWER_TOKENS)
        prompt = self.prompt(messages, pictures)
        if len(prompt.keys) + reserve <= self.session.capacity:
            return prompt, pictures
        processor = self.tiling
        movable = pictures[first_movable:]
        if self.fit and processor is not None and movable:
            largest = max(picture.plan.grid_rows * picture.plan.grid_cols for picture in movable)
            for budget in range(largest - 1, 0, -1):
                fewer = [*pictures[:first_movable], *(picture.within(budget, processor) for picture in movable)]
                prompt = self.prompt(messages, fewer, tile_budget=budget)
                if len(prompt.keys) + reserve <= self.session.capacity:
                    return prompt, fewer
        decoder = self.package.manifest.decoder
        n_image = prompt.n_image_tokens
        advice = "shorten the text" if not pictures else "use fewer pictures or tiles, or shorten the text"
        if pictures and not self.fit:
            advice += ", or let the tiles be lowered (--fit)"
        if self.session.capacity < decoder.max_position_embeddings:
            advice += f", or load with a larger context (up to {decoder.max_position_embeddings})"
        raise ContextFullError(
            f"the prompt does not fit: {len(prompt.keys) - n_image} text tokens + {n_image} image tokens "
            f"({len(pictures)} pictures, {prompt.n_tiles} tiles) + {reserve} kept for the answer = "
            f"{len(prompt.keys) + reserve}, the context is {self.session.capacity}; {advice}"
        )

    def prompt(
        self, messages: Sequence[Message], pictures: Sequence[Picture], tile_budget: int | None = None
    ) -> Prompt:
        """Returns the prompt of `messages`, whose image parts are `pictures` in order."""
        spec = self.package.manifest.prompt
        plans = [picture.plan for picture in pictures]
        segments = build_segments(list(messages), self.template, self.tokenizer, spec, plans)
        parts: list[Any] = []
        for segment in segments:
            if isinstance(segment, ImageRun):
                parts.append(PictureRun(pictures[segment.image].key, segment.first_token, segment.n_tokens))
            else:
                parts.append(np.asarray(segment, np.int64))
        return Prompt(
            tuple(parts), spec.image_token_id if spec else 0, sum(plan.n_tiles for plan in plans), tile_budget
        )

    # ---- the rest

    def cancel(self) -> None:
        """Ends the running answer, and pictures that are being encoded. Safe from any thread and signal handlers.

        A call counts as running from its beginning, before its first chunk is asked for. While none runs there is
        nothing to end: the next answer is whole.
        """
        self._call.set()
        if self.encoder is not None:
            self.encoder.cancel()

    def memory(self) -> MemoryReport:
        """Returns what is held now."""
        return self.session.memory()

    def record(self, name: str, start_s: float) -> None:
        """Adds an event that ends now to the trace."""
        self._events.append((name, start_s, time.perf_counter()))

    def write_trace(self, path: str | Path) -> None:
        """Writes a Chrome trace of everything so far."""
        write_trace(path, [*self._events, *self.session.timings.events])

    def close(self) -> None:
        """Ends what runs, stops the background thread and frees the weights and the cache. Later calls are refused."""
        self._is_closed = True
        self.cancel()
        if self.encoder is not None:
            self.encoder.close()
        self.session.close()
        self.loop.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_messages(prompt: str | Sequence[Message], n_images: int) -> list[Message]:
    """Returns a user message with its pictures before the text, or the messages given.

    Raises UsageError when messages do not have as many image parts as there are pictures.
    """
    if isinstance(prompt, str):
        if n_images == 0:
            return [{"role": "user", "content": prompt}]
        parts: list[Any] = [{"type": "image"}] * n_images
        return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    messages = list(prompt)
    n_parts = sum(
        part.get("type") == "image"
        for message in messages
        if not isinstance(message.get("content"), str)
        for part in message.get("content") or ()
    )
    if n_parts != n_images:
        raise UsageError(f"the messages have {n_parts} image parts, {n_images} pictures were given")
    return messages
