"""For children that a test interrupts."""

from __future__ import annotations

import signal


def listen_to_sigint() -> None:
    """Takes SIGINT back (as `preexec_fn`): a test run in the background of a script inherits it as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
