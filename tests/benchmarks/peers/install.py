"""Environments and model files of the peers, made once in a work directory; what cannot be had is said."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONVERT = Path(__file__).with_name("convert.py")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "llama.cpp": ("llama-cpp-python==0.3.36",),
    "onnxruntime-genai": ("onnxruntime-genai==0.18.0",),
    "OpenVINO GenAI": ("openvino==2026.4.0", "openvino-genai==2026.4.0.0"),
    "convert": (
        "torch==2.13.0",
        "optimum-intel[openvino]",
        "nncf",
        "gguf",
        "accelerate",
        "onnxruntime-genai==0.18.0",
        "onnx",
        "onnx-ir",
    ),
}
UNINSTALLED = {"convert": ("torchvision",)}
"""Brought in by a package and built for another torch, so that importing transformers fails."""
BUILT_HERE = ("llama.cpp",)
"""Compiled for this CPU instead of installed as a generic wheel."""
NOT_HERE = {
    "MNN": "its wheel (3.6.1) runs language models but brings no converter for a GGUF or a snapshot",
    "MLC-LLM": "no package of this name on the package index",
    "ExecuTorch": "its wheel (1.5.1) exports both models for XNNPACK (8da4w); on a machine shared with a training run "
    "the export of SmolLM2 had not ended after 20 minutes",
    "LiteRT-LM": "its wheel (0.18.1) runs language models but converts none; litert-torch, which may, was not tried",
}


@dataclass(frozen=True)
class Model:
    """One language model in the comparison."""

    key: str
    gguf: Path
    tied_apart: bool
    """The file stores head and embedding apart; every runtime gets one table."""
    requantise: bool
    """llama.cpp gets Q4_0 made from the file; otherwise the file itself."""


def environment(work: Path, name: str) -> Path:
    """Returns the interpreter of a peer's environment, made when it is not there."""
    folder = work / ("env-" + name.lower().replace(" ", "-"))
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        print(f"installing {name} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if name in BUILT_HERE:
            command += ["--no-binary", "llama-cpp-python"]
        flags = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
        subprocess.run([*command, *REQUIREMENTS[name]], check=True, env=flags)
        for unwanted in UNINSTALLED.get(name, ()):
            subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", unwanted], check=True)
        done.touch()
    return python


def prepared(work: Path, peer: str, model: Model) -> Path:
    """Returns the model in the peer's own form, converted when it is not there."""
    if peer == "llama.cpp":
        if not model.requantise:
            return model.gguf
        target = work / f"{model.key}-q4_0.gguf"
        _convert(environment(work, peer), target, "q4_0", str(model.gguf))
        return target
    snapshot = work / f"{model.key}-hf"
    tied = ["tied"] if model.tied_apart else []
    python = environment(work, "convert")
    _convert(python, snapshot, "snapshot", str(model.gguf), *tied)
    target = work / f"{model.key}-{'openvino' if peer == 'OpenVINO GenAI' else 'ort-genai'}"
    _convert(python, target, "openvino" if peer == "OpenVINO GenAI" else "ort-genai", str(snapshot))
    return target


def _convert(python: Path, target: Path, *arguments: str) -> None:
    if target.exists():
        return
    print(f"making {target.name} ...", file=sys.stderr, flush=True)
    partial = target.with_name(target.name + ".partial")
    subprocess.run([str(python), str(CONVERT), str(partial), *arguments], check=True, stdout=sys.stderr)
    partial.rename(target)
