"""Tables of broken inputs: how to make each, and the error that must answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError


@dataclass(frozen=True)
class BrokenCase:
    """One broken input; `make(tmp_path)` writes it and returns the argument of the call that must refuse it."""

    name: str
    make: Callable[[Path], Any]
    error: type[EdgeVLMError]
    fragment: str
    """Part of the message."""
