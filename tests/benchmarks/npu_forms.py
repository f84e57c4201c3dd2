"""Which form of a linear layer HTP computes exactly and stores small: one 4-bit or 8-bit weight in five forms.

    python -m tests.benchmarks.npu_forms [--size 1024] [--rows 8] [--soc SM8650]

Every form has uint16 activations and the same range. Prints a Markdown table: bytes of the context binary, and the
error of the emulator's result against onnxruntime's CPU on the same graph, over the result's RMS. Needs the provider.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgevlm.backends.qnn import quiet_stdout, session_options
from edgevlm.telemetry import import_onnxruntime

onnxruntime = import_onnxruntime()

INPUT_RANGE, OUTPUT_RANGE = 4.0, 12.0
LEVELS = 65535


Build = Callable[["Form", int], tuple[str, list[int]]]


class Form:
    """One quantised linear as a graph; x (rows, size) → y (rows, size)."""

    def __init__(self, size: int, rows: int) -> None:
        self.size, self.rows = size, rows
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.weight = (np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Adds a node; returns its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{operator}_{name}", **attributes))
        return name

    def constant(self, value: NDArray[Any], dtype: int | None = None) -> str:
        """Adds an initialiser; `dtype` packs int8 codes as INT4."""
        name = f"c{len(self.initializers)}"
        if dtype is None:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        else:
            self.initializers.append(helper.make_tensor(name, dtype, value.shape, value.flatten().tolist()))
        return name

    def rounded(self, x: str, largest: float) -> str:
        """x in uint16 over -largest..largest, and back."""
        parameters = [
            self.constant(np.array(2 * largest / LEVELS, np.float32)), self.constant(np.array(32768, np.uint16))
        ]  # fmt: skip
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, *parameters]), *parameters])

    def channels(self, values: NDArray[np.float32], bits: int, axis: int) -> str:
        """Weights per output channel along `axis`."""
        others = tuple(i for i in range(values.ndim) if i != axis)
        limit = 2 ** (bits - 1) - 1
        scales = np.abs(values).max(axis=others) / limit
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        codes = np.clip(np.rint(values / scales.reshape(shape)), -limit, limit).astype(np.int8)
        kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
        zero = self.constant(np.zeros(scales.shape, np.int8), kind)
        inputs = [self.constant(codes, kind), self.constant(scales.astype(np.float32)), zero]
        return self.node("DequantizeLinear", inputs, axis=axis)

    def model(self, y: str, shape: list[int]) -> Any:
        """The graph from x (`shape`) to y."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "form", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def matmul(form: Form, bits: int) -> tuple[str, list[int]]:
    x = form.rounded("x", INPUT_RANGE)
    return form.node("MatMul", [x, form.channels(form.weight.T, bits, 1)]), [1, form.rows, form.size]


def gemm(form: Form, bits: int) -> tuple[str, list[int]]:
    x = form.rounded("x", INPUT_RANGE)
    return form.node("Gemm", [x, form.channels(form.weight, bits, 0)], transB=1), [form.rows, form.size]


def convolution(form: Form, bits: int) -> tuple[str, list[int]]:
    x = form.rounded("x", INPUT_RANGE)
    weight = form.channels(form.weight[:, :, None, None], bits, 0)
    return form.node("Conv", [x, weight]), [1, form.size, form.rows, 1]


def matmul_nbits(block: int) -> Build:
    """MatMulNBits in blocks of `block`."""

    def build(form: Form, bits: int) -> tuple[str, list[int]]:
        size, middle = form.size, 1 << (bits - 1)
        blocks = form.weight.reshape(size, -1, block)
        scales = (np.abs(blocks).max(axis=2) / (middle - 1)).astype(np.float32)
        codes = (np.clip(np.rint(blocks / scales[..., None]), 1 - middle, middle - 1) + middle).astype(np.uint8)
        if bits == 4:
            codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        x = form.rounded("x", INPUT_RANGE)
        y = form.node(
            "MatMulNBits", [x, form.constant(codes), form.constant(scales)],
            domain="com.microsoft", K=size, N=size, bits=bits, block_size=block,
        )  # fmt: skip
        return y, [1, form.rows, size]

    return build


FORMS: tuple[tuple[str, Build], ...] = (
    ("MatMul, per channel", matmul),
    ("Gemm, per channel", gemm),
    ("Conv 1x1, per channel", convolution),
    ("MatMulNBits, blocks of 32", matmul_nbits(32)),
    ("MatMulNBits, blocks of 64", matmul_nbits(64)),
)


def measure(build: Build, bits: int, size: int, rows: int, soc: str) -> tuple[int, float, float]:
    """Bytes of the binary; error of the emulator and that of the weights' codes, both over the result's RMS."""
    form = Form(size, rows)
    y, shape = build(form, bits)
    model = form.model(form.rounded(y, OUTPUT_RANGE), shape)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32).clip(-INPUT_RANGE, INPUT_RANGE)
    flat = x.reshape(size, rows).T if len(shape) == 4 else x.reshape(rows, size)
    exact = flat @ form.weight.T
    with tempfile.TemporaryDirectory() as scratch, quiet_stdout():
        path, target = Path(scratch) / "form.onnx", Path(scratch) / "ctx.onnx"
        onnx.save(model, path)
        options = session_options(soc)
        for key, value in (("enable", "1"), ("file_path", str(target)), ("embed_mode", "0")):
            options.add_session_config_entry(f"ep.context_{key}", value)
        onnxruntime.InferenceSession(str(path), options)
        size_bytes = sum(file.stat().st_size for file in Path(scratch).glob("*.bin"))
        found = onnxruntime.InferenceSession(str(target), session_options(soc)).run(None, {"x": x})[0]
        expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    spread = np.sqrt(np.square(expected).mean())
    result = expected.reshape(size, rows).T if len(shape) == 4 else expected.reshape(rows, size)
    codes_error = np.sqrt(np.square(result - exact).mean()) / spread
    return size_bytes, float(np.sqrt(np.square(found - expected).mean()) / spread), float(codes_error)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--soc", default="SM8650")
    given = parser.parse_args()
    print("| form | bits | MB per million weights | emulator's error | codes' error |\n|---|---|---|---|---|")
    for name, build in FORMS:
        for bits in (4, 8):
            size_bytes, error, codes_error = measure(build, bits, given.size, given.rows, given.soc)
            per_million = size_bytes / given.size**2
            print(f"| {name} | {bits} | {per_million:.2f} | {error:.1e} | {codes_error:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
