"""The MAC array's model against an array that is simulated cycle by cycle, and the products against real graphs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevlm.cli import main as command_line
from edgevlm.errors import PackageError
from edgevlm.package import Package, open_package
from export.npu.advice import advise, free_rows
from export.npu.graphs import package_spec
from export.npu.products import Product, Shapes, decoder_products, model_products
from export.npu.report import model_report, package_report
from export.npu.utilisation import MacArray, total_utilisation, utilisation
from export.npu.weights import PackageWeights
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.export.graph_session import build
from tests.export.npu_session import CHUNK, CONTEXT, NpuGraphs, as_package
from tests.golden.graph_cases import CASES

N_SHAPES = 60
HTP_LIKE = MacArray(32, 32, 64, 200.0)


def simulate(x: np.ndarray, w: np.ndarray, array: MacArray, skew: int = 1) -> tuple[np.ndarray, int, int]:
    """Runs x (rows, k) times w (k, n) on the array: returns the product, cycles, and multipliers that did useful work.

    Every cycle, multiplier (i, j) sees the row that entered i + j cycles ago, multiplies it by its value of w, and adds
    to that row's sum of column j.
    """
    (rows, k), n = x.shape, w.shape[1]
    y = np.zeros((rows, n), np.int64)
    cycles = busy = 0
    entering = rows if rows % array.row_step == 0 else rows + array.row_step - rows % array.row_step
    for first_k in range(0, k, array.array_k):
        for first_n in range(0, n, array.array_n):
            seen, time = 0, 0
            while seen < entering * array.array_k * array.array_n:
                for i in range(array.array_k):
                    for j in range(array.array_n):
                        row = time - skew * (i + j)
                        if 0 <= row < entering:
                            seen += 1
                            if row < rows and first_k + i < k and first_n + j < n:
                                y[row, first_n + j] += x[row, first_k + i] * w[first_k + i, first_n + j]
                                busy += 1
                time += 1
            cycles += time
    return y, cycles, busy


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, MacArray]:
    random = np.random.default_rng(seed)
    rows, k, n = (int(value) for value in random.integers(1, 14, 3))
    array = MacArray(*(int(value) for value in random.integers(1, 6, 3)), 1.0)
    return random.integers(-8, 8, (rows, k)), random.integers(-8, 8, (k, n)), array


@pytest.mark.parametrize("seed", range(N_SHAPES))
def test_the_model_counts_what_the_array_does(seed: int) -> None:
    x, w, array = random_case(seed)
    product = Product("prefill", "any", len(x), *w.shape, 1, 8)
    y, cycles, busy = simulate(x, w, array)
    assert (y == x @ w).all()
    assert cycles == array.cycles(product)
    assert busy == product.macs
    found = utilisation(product, array)
    assert found.utilisation == pytest.approx(busy / (cycles * array.array_k * array.array_n))
    assert total_utilisation([product, product], array) == pytest.approx(found.utilisation)


def test_control_an_array_without_skew_differs() -> None:
    different = 0
    for seed in range(N_SHAPES):
        x, w, array = random_case(seed)
        product = Product("prefill", "any", len(x), *w.shape, 1, 8)
        different += simulate(x, w, array, skew=0)[1] != array.cycles(product)
    assert different > N_SHAPES / 2


def test_every_repetition_is_counted() -> None:
    once, often = (Product("prefill", "any", 100, 70, 50, count, 4.5) for count in (1, 7))
    assert HTP_LIKE.cycles(often) == 7 * HTP_LIKE.cycles(once)
    assert often.size_bytes == 7 * once.size_bytes == 7 * (70 * 50 * 4.5 / 8 + 100 * (70 + 50) * 2)
    assert utilisation(often, HTP_LIKE).utilisation == utilisation(once, HTP_LIKE).utilisation


def graph_macs(path: Path) -> int:
    """Multiply-accumulates of a fixed graph, from its nodes and inferred shapes."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            size = {attribute.name: attribute.i for attribute in node.attribute}
            shape = [size["K"], size["N"]]
            weight = onnx.helper.make_tensor_value_info(f"{node.name}/w", onnx.TensorProto.FLOAT, shape)
            model.graph.value_info.append(weight)
            node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], weight.name], node.output, name=node.name))
        elif node.op_type == "SimplifiedLayerNormalization":
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            total += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    return total


@pytest.mark.parametrize("name", ["llama", "qwen2", "smolvlm", "bluelm_v"])
def test_the_products_are_those_of_the_graphs(name: str, tmp_path: Path) -> None:
    checkpoint = CASES[name].make(tmp_path / "checkpoint")
    package = as_package(checkpoint, build(checkpoint, tmp_path / "package", "w4g32"))
    fixed = NpuGraphs(package, tmp_path / "npu")
    weights = PackageWeights(package)
    spec = package_spec(package, weights)
    products = model_products(spec, Shapes(CONTEXT, CHUNK), weights.bits_per_weight)
    assert {p.graph for p in products} == set(fixed.paths)
    for graph, path in fixed.paths.items():
        assert sum(p.macs for p in products if p.graph == graph) == graph_macs(path)


def so400m_and_3b() -> Any:
    from docs.make_npu_tables import MODEL, w_bits

    return MODEL, w_bits


def test_padding_waste_of_the_papers_shapes() -> None:
    spec, w_bits = so400m_and_3b()
    texts = {one.subject: one for one in advise(spec, Shapes(1024), HTP_LIKE, w_bits)}
    rows = texts["tile rows"]
    assert "729 tokens of one tile enter as 768 rows (5.1% waste)" in rows.text
    assert "those of 4 tiles as 2944 (1.0%)" in rows.text and rows.after > rows.before
    chunks = texts["tiles in chunks"]
    assert "196 tokens alone takes 256 rows of 128-token chunks (23.4% waste)" in chunks.text
    assert chunks.before == 196 / 256


def test_advised_chunks_do_what_they_promise() -> None:
    """228 tokens in chunks of the advised size, counted by hand from the products of both."""
    spec, w_bits = so400m_and_3b()
    first = next(one for one in advise(spec, Shapes(1024), HTP_LIKE, w_bits) if one.subject == "chunk")
    assert "chunks of 256 instead of 128" in first.text

    def reached(chunk: int, n_calls: int) -> float:
        call = decoder_products(spec, spec.language, "prefill", chunk, 1024, w_bits)
        slots = n_calls * sum(HTP_LIKE.cycles(product) for product in call) * 32 * 32
        return sum(product.macs for product in call) * 228 / chunk / slots

    assert first.before == pytest.approx(reached(128, 2)) and first.after == pytest.approx(reached(256, 1))
    assert first.after > 1.1 * first.before


def test_free_rows_stop_where_the_time_grows() -> None:
    product = Product("decode", "any", 1, 2048, 2048, 1, 4.5)
    # the array takes 64 rows for one, and memory does not bind
    assert free_rows([product], dataclasses.replace(HTP_LIKE, macs_per_byte=1.0)) == 64
    assert free_rows([product], dataclasses.replace(HTP_LIKE, row_step=1, macs_per_byte=0.01)) < 8
    slow_memory = dataclasses.replace(HTP_LIKE, row_step=1, macs_per_byte=2000.0)
    rows = free_rows([product], slow_memory)
    last, next_one = (dataclasses.replace(product, rows=count) for count in (rows, rows + 1))
    assert 1 < rows < 64 and last.size_bytes <= 1.05 * product.size_bytes < next_one.size_bytes


def test_a_report_names_every_graph() -> None:
    spec, w_bits = so400m_and_3b()
    report = model_report(spec, Shapes(1024), HTP_LIKE, w_bits)
    assert set(report.graph_totals()) == {"vision_4", "vision_1", "prefill", "decode"}
    assert report.graph_totals()["vision_4"] > report.graph_totals()["vision_1"]
    heads = [one for one in report.advice if one.subject == "vision_4 scores"]
    assert heads and "k = 72 fills 75% of 96" in heads[0].text


@pytest.fixture(scope="module")
def package_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inspect")
    options = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
    return export_package(tiny.make_smolvlm(directory / "checkpoint"), directory / "package", options)


def test_the_command_prints_it(package_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["inspect", str(package_path), "--npu", "--npu-array", "16x8x4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("MAC array 16 x 8, rows in steps of 4, 200 MACs per byte\n")
    assert "used in all: vision_4 " in out and "decode: one row enters as 4" in out
    assert command_line.main(["inspect", str(package_path), "--npu", "--json"]) == 0
    npu = json.loads(capsys.readouterr().out)["npu"]
    assert npu["array"] == {"array_k": 32, "array_n": 32, "row_step": 64, "macs_per_byte": 200.0}
    assert {one["product"]["w_bits"] for one in npu["products"]} >= {4.5, 8}


def test_a_devices_copy_is_refused(package_path: Path) -> None:
    package = open_package(package_path)
    copy = Package(package.path, dataclasses.replace(package.manifest, graphs=()))
    with pytest.raises(PackageError, match="a device's copy without ONNX graphs"):
        package_report(copy, (32, 32, 64), 200.0)


@pytest.mark.parametrize("text", ["32x32", "0x1x1", "axbxc", "9999x1x1"])
def test_a_wrong_array_is_refused(text: str, package_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["inspect", str(package_path), "--npu", "--npu-array", text]) == 2
    assert "expected three numbers from 1 to 4096 as in 32x32x64" in capsys.readouterr().err
