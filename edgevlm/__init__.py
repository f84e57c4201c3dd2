"""edgevlm: runs vision-language packages offline. `edgevlm.load(directory)` returns a Model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevlm.model import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads the runtime on first use, so that `import edgevlm` costs nothing."""
    if name in __all__:
        from edgevlm import model

        return getattr(model, name)
    raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
