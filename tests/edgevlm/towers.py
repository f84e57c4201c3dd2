"""Vision encoders alone, in onnxruntime and in the engine, for tests and measurements."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.native_library import ModelOptions, NativeLibrary, library_path
from edgevlm.backends.native_tower import NativeTower
from edgevlm.backends.session import Timings
from edgevlm.telemetry import import_onnxruntime
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.quant.rules import QuantPlan
from tvm_schedules.compile import compile_tower

onnxruntime = import_onnxruntime()

Float32 = NDArray[np.float32]


def export_graph(checkpoint: Path, directory: Path, scheme: str) -> Path:
    """Exports the checkpoint's vision encoder under `scheme` and returns its ONNX file."""
    source = open_checkpoint(checkpoint)
    plan = QuantPlan(language="w8", vision=scheme)
    build_model(arch_spec(source.config, source.files), source, plan, directory)
    return next((directory / "onnx").glob("vision_encoder*.onnx"))


def run_onnx(graph: Path, pixels: Float32, threads: int = 2) -> Float32:
    """image_features by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    features: Float32 = session.run(None, {"pixel_values": pixels})[0]
    return features


class EngineTower:
    """A compiled vision encoder without a language model; a context manager."""

    def __init__(self, graph: Path, directory: Path, *, threads: int = 2, variant: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "plan.bin").exists():
            compile_tower(graph, "x86_64", directory)
        self.library = NativeLibrary(library_path())
        self._model = ctypes.c_void_p()
        options = ModelOptions(threads, variant.encode() if variant else None)
        self.library.call("ev_model_open", str(directory).encode(), ctypes.byref(options), ctypes.byref(self._model))
        self.tower = NativeTower(self.library, self._model, Timings())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tower.release()
        self.library.call("ev_model_close", self._model)


def cosines(found: Float32, expected: Float32) -> NDArray[np.float64]:
    """Cosine of each token's features."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosine: NDArray[np.float64] = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return cosine
