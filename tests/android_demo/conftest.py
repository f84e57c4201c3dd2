"""Compiled Java and compiled tiny packages, made once for all tests of the Android library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from android_demo.apk.tools import java_home
from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.errors import BackendError
from export import probes
from export.device.files import add_device_files
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.android_demo.host_library import compile_classes, compile_jni, run_java
from tests.weights import demo_checkpoint
from tvm_schedules.compile import compile_package

WIDE = {"hidden_size": 128}
TEXT = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
LANGUAGE = {**TEXT, "head_dim": 64}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked `android`, but what needs qemu and no Java."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("emulated") is None:
            item.add_marker("android")


@pytest.fixture(scope="session")
def home() -> Path:
    """The JDK; tests are skipped without one."""
    try:
        return java_home()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def classes(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its Java tests, compiled for Java 8 with every warning an error."""
    return compile_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="session")
def jni(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JNI part, linked with this machine's engine."""
    engine = library_path()
    if host_arch() != "x86_64" or not engine.exists():
        pytest.skip(f"{engine} is not built for this machine; run `make native`")
    return compile_jni(home, engine, tmp_path_factory.mktemp("jni") / "libedgevlm_jni.so")


def compiled(maker: Any, directory: Path, **over: Any) -> Path:
    """A tiny package, exported and compiled for x86-64."""
    source = maker(directory / "checkpoint", **over)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    shutil.rmtree(source)
    compile_package(path, "x86_64", probes.text()[:2000])
    return path


@pytest.fixture(scope="session")
def picture_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the reference architecture that talks and sees."""
    return compiled(tiny.make_bluelm_v, tmp_path_factory.mktemp("bluelm_v"), vision=WIDE, text=TEXT)


@pytest.fixture(scope="session")
def demo_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's package, compiled for this machine and for phones."""
    path = export_package(
        str(demo_checkpoint()), tmp_path_factory.mktemp("demo") / "package", ExportOptions(verify=False)
    )
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text())
    return path


@pytest.fixture(scope="session")
def packages(picture_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny package of every architecture that is exported whole; only their prompts are looked at."""
    found = {"bluelm_v": picture_package}
    for name in ("llama", "qwen2", "idefics3", "smolvlm"):
        directory = tmp_path_factory.mktemp(name)
        source = tiny.MAKERS[name](directory / "checkpoint")
        found[name] = export_package(source, directory / "package", ExportOptions(scheme="fp32", verify=False))
        assert add_device_files(found[name]).missing == ()
    return found


@pytest.fixture(scope="session")
def java() -> Any:
    """Runs a class: java(classes, name, *arguments, library=None) → stdout."""
    return run_java
