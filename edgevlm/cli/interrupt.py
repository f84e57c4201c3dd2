"""Ctrl-C during an answer: the first one cancels, the second one leaves. SIGTERM unwinds the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class CancelOnInterrupt:
    """Context in which the first SIGINT calls `cancel` and a second one raises KeyboardInterrupt."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._interrupts = 0
        self._previous: Any = None

    def __enter__(self) -> CancelOnInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        # in a thread of its own: the interrupted code may hold a lock that `cancel` takes
        threading.Thread(target=self._cancel, daemon=True).start()


class Terminated(BaseException):
    """SIGTERM; no `except Exception` and no handler of Ctrl-C takes it for its own."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Context in which SIGTERM raises Terminated, so that what is half written is removed; a second one kills.

    Does nothing outside the main thread, and where SIGTERM is ignored or handled by someone else.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
