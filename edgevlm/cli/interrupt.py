"""Ctrl-C during an answer: the first one cancels, the second one leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
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
