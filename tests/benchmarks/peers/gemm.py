"""One int4 product, M x N x K in groups of 32: `python gemm.py RUNTIME M N K THREADS [FILE]`, in its environment.

RUNTIME is edgevlm (its prefill kernel, quantisation of the activations not counted), onnxruntime (a MatMulNBits node,
accuracy_level 4) or openvino (the same node, dynamic quantisation in groups of 32). Prints JSON: GOPS of the fastest of
many runs and the median; for edgevlm the limit of the machine, too. Standalone except for edgevlm itself.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 32
RUNS = 25


def measured(call: Callable[[], object], operations: float) -> dict[str, float]:
    """GOPS over RUNS calls after two that are not counted."""
    call()
    call()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median": operations / statistics.median(seconds) / 1e9, "best": operations / min(seconds) / 1e9}


def node_file(m: int, n: int, k: int, directory: Path) -> Path:
    """An ONNX file with one MatMulNBits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = random.integers(0, 255, (n, k // GROUP, GROUP // 2)).astype(np.uint8)
    scales = (random.random(n * k // GROUP) * 0.01).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=4, block_size=GROUP,
        accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scales, "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = directory / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def onnxruntime(path: Path, x: np.ndarray[Any, Any], threads: int) -> Callable[[], object]:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def openvino(path: Path, x: np.ndarray[Any, Any], threads: int) -> Callable[[], object]:
    import openvino as ov

    core = ov.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "32"
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x})


def edgevlm(m: int, n: int, k: int, threads: int, directory: Path) -> dict[str, Any]:
    """The engine's own GEMM, profiled inside a tiny model: products of this depth and about this size."""
    from edgevlm.backends.native import NativeSession
    from edgevlm.package import open_package
    from export.pipeline import ExportOptions, export_package
    from tests import tiny
    from tvm_schedules.compile import compile_package

    source = tiny.make_llama(
        directory / "checkpoint", hidden_size=k, intermediate_size=n // 2, num_attention_heads=k // 64,
        num_key_value_heads=k // 64, head_dim=64,
    )  # fmt: skip
    package = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(package, "x86_64", "text " * 50)
    session = NativeSession(open_package(package), context=m + 64, threads=threads)
    ids, positions = np.arange(m) % 100, np.arange(m)
    rates = []
    for _ in range(RUNS + 2):
        session.truncate(0)
        session.profile(on=True)
        session.prefill([ids], positions)
        kernel = next(time for time in session.kernel_times() if time.kernel == "gemm_w4g32_prefill")
        rates.append(kernel.operations / kernel.seconds / 1e9)
    limit = session.machine_limits().giga_operations_per_s
    return {"median": statistics.median(rates[2:]), "best": max(rates[2:]), "limit": limit}


if __name__ == "__main__":
    runtime, rows, columns, depth, n_threads = sys.argv[1], *map(int, sys.argv[2:6])
    with tempfile.TemporaryDirectory() as scratch:
        if runtime == "edgevlm":
            print(json.dumps(edgevlm(rows, columns, depth, n_threads, Path(scratch))))
        else:
            file = Path(sys.argv[6]) if len(sys.argv) > 6 else node_file(rows, columns, depth, Path(scratch))
            inputs = np.random.default_rng(1).standard_normal((rows, depth)).astype(np.float32)
            call = {"onnxruntime": onnxruntime, "openvino": openvino}[runtime](file, inputs, n_threads)
            print(json.dumps(measured(call, 2.0 * rows * columns * depth)))
