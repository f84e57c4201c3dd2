"""Fixtures of the runtime's tests: one tiny package with a tower, one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.backends.native_library import NativeLibrary
from tests.edgevlm.engine_build import build_engine
from tests.edgevlm.tiny_package import write_package


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny package that takes pictures. Tests do not change it."""
    return write_package(tmp_path_factory.mktemp("packages") / "tiny")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny package of a language model alone. Tests do not change it."""
    return write_package(tmp_path_factory.mktemp("packages") / "tiny-text", vision=False)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """The engine's plain C files without kernels, through the runtime's own bindings."""
    return NativeLibrary(build_engine(tmp_path_factory.mktemp("engine")))
