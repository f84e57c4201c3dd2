"""Cancelling: one token per call, owned by the caller and handed down to every stage of that call.

A token ends the call that it was made for and no other: a cancel while nothing runs has nothing to end, and one that
comes before the call's first stage ends it there. Afterwards the session holds what was done, and can be used again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Cancelled(Exception):
    """Raised by a call whose token was set; the loop turns it into finish_reason 'cancelled'."""


class CancelToken:
    """Ends one call. `set` is safe from any thread and from signal handlers."""

    def __init__(self) -> None:
        self._flag = ctypes.c_int32(0)
        """What the C engine looks at: ev_cancel_flag."""
        self._stops: dict[object, Callable[[], None]] = {}
        """How to stop what runs now and cannot look at the flag."""

    def set(self) -> None:
        """Asks the call to end; it stays asked."""
        # no lock: a signal handler may interrupt the thread that would hold it
        self._flag.value = 1
        for stop in tuple(self._stops.values()):
            stop()

    def is_set(self) -> bool:
        """Whether the call was asked to end."""
        return bool(self._flag.value)

    def check(self) -> None:
        """Raises Cancelled after `set`."""
        if self._flag.value:
            raise Cancelled

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Calls `stop` when the token is set while the block runs. Raises Cancelled when it is set already."""
        key = object()
        self._stops[key] = stop
        try:
            self.check()  # after `stop` is known: a `set` from here on calls it
            yield
        finally:
            del self._stops[key]

    def pointer(self) -> Any:
        """Returns the flag for a call of the C engine."""
        return ctypes.byref(self._flag)


def pointer_of(cancel: CancelToken | None) -> Any:
    """Returns the flag of `cancel` for a call of the C engine; NULL for a call that nothing ends."""
    return None if cancel is None else cancel.pointer()
