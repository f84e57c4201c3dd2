"""Nothing about a run leaves the machine: what libraries would send or note about their use is off before they load.

onnxruntime 1.32 keeps a database (a device's id, its CPU, names of models and files) under ~/.cache/Microsoft and looks
up a host to send it to, both from its import on. Only a variable that is set before the import stops both;
`disable_telemetry_events` leaves the file and the look-ups (measured under strace, 2026-11-29). So this is the only
module that imports onnxruntime, and a test holds the others to it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm.cache import cache_directory

log = logging.getLogger(__name__)

ORT_VARIABLE = "ORT_DISABLE_TELEMETRY"
"""onnxruntime takes '1' alone as a yes."""
SWITCHES = {ORT_VARIABLE: "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Variables that libraries read when they load; child processes inherit them."""


def switch_off() -> None:
    """Sets SWITCHES for this process and its children, whatever they were.

    A program that imported onnxruntime earlier has started its telemetry, which nothing can end: a warning says so.
    """
    too_late = "onnxruntime" in sys.modules and os.environ.get(ORT_VARIABLE) != SWITCHES[ORT_VARIABLE]
    for name, value in SWITCHES.items():
        if os.environ.get(name) != value:  # a thread of a library may be reading the environment
            os.environ[name] = value
    if too_late:
        sys.modules["onnxruntime"].disable_telemetry_events()
        log.warning(
            "onnxruntime was imported before edgevlm could switch its telemetry off: it keeps a database under "
            "~/.cache/Microsoft and looks up a host; set %s=1 before the program starts",
            ORT_VARIABLE,
        )


def import_onnxruntime() -> Any:
    """Returns the module onnxruntime, imported with its telemetry off."""
    switch_off()
    import onnxruntime

    return onnxruntime


@contextmanager
def own_cache(**variables: str) -> Iterator[None]:
    """Lets a library that is imported in the block keep its notes in our cache.

    XDG_CACHE_HOME is our cache's directory, and each of `variables` that the user has not set a folder below it.
    """
    folder = cache_directory()
    wanted = {"XDG_CACHE_HOME": str(folder)}
    wanted |= {name: str(folder / below) for name, below in variables.items() if not os.environ.get(name)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
