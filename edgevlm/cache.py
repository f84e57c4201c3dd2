"""Where downloads and small notes are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Returns EDGEVLM_CACHE, else XDG_CACHE_HOME/edgevlm, else ~/.cache/edgevlm; read at each call."""
    if own := os.environ.get("EDGEVLM_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "edgevlm"
