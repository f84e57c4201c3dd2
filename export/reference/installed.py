"""Whether torch and transformers are there, and in which versions; asking does not import them."""

from __future__ import annotations

INSTALL_HINT = "pip install 'edgevlm[reference]', then run 'edgevlm verify PACKAGE --source CHECKPOINT'"


def is_available() -> bool:
    """Tells whether torch and transformers can be imported, without importing them."""
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("transformers") is not None


def versions() -> dict[str, str]:
    """Returns the versions of the reference's software that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
