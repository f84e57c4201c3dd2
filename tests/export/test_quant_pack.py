"""The MatMulNBits layout: exact inverse on odd shapes, and the same numbers in onnxruntime from the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgevlm.errors import UsageError
from edgevlm.telemetry import import_onnxruntime
from export.quant.pack import (
    gather_table,
    matmul_nbits_inputs,
    pack_codes,
    pack_zero_points,
    unpack_codes,
    unpack_zero_points,
)
from export.quant.scheme import Quantised, dequantise, parse_scheme, quantise

ort = import_onnxruntime()

SAME_CODES = 1e-5
"""int4 kernel against numpy on the same codes, fp32 activations; measured 2.5e-7."""
INT8_ACTIVATIONS = 0.012
"""accuracy_level 4 also rounds activations to int8 per block; measured 0.0045 to 0.0064."""


def test_the_even_k_is_the_low_nibble() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(1, 32) % 16
    packed = pack_codes(codes, 4, 32)
    assert packed.shape == (1, 1, 16) and packed[0, 0, :3].tolist() == [0x10, 0x32, 0x54]


def test_an_odd_number_of_zero_points_is_padded_per_row() -> None:
    packed = pack_zero_points(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), 4)
    assert packed.tolist() == [[0x21, 0x03], [0x54, 0x06]]


@given(
    st.integers(1, 9), st.integers(1, 5), st.sampled_from([32, 64, 128]), st.sampled_from([4, 8]), st.integers(0, 99)
)
@settings(max_examples=50, deadline=None)
def test_packing_has_an_exact_inverse(rows: int, n_blocks: int, block: int, bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**bits, (rows, n_blocks * block), dtype=np.uint8)
    zero_points = random.integers(0, 2**bits, (rows, n_blocks), dtype=np.uint8)
    assert np.array_equal(unpack_codes(pack_codes(codes, bits, block), bits, block), codes)
    assert np.array_equal(unpack_zero_points(pack_zero_points(zero_points, bits), bits, n_blocks), zero_points)


def test_codes_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match="33"):
        pack_codes(np.zeros((2, 33), np.uint8), 4, 32)


def _run(
    node: object, inputs: list[object], width: int, weights: list[object], feeds: dict[str, np.ndarray]
) -> np.ndarray:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", width])
    graph = helper.make_graph([node], "one", inputs, [output], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def _weights(quantised: Quantised, table: bool) -> tuple[list[object], list[str]]:
    packed, scales, zero_points = matmul_nbits_inputs(quantised)
    arrays = {"B": gather_table(quantised) if table else packed, "scales": scales}
    if zero_points is not None:
        arrays["zero_points"] = zero_points
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()], list(arrays)[1:]


def matmul(quantised: Quantised, x: np.ndarray, accuracy_level: int) -> np.ndarray:
    rows, width = len(quantised.codes), quantised.in_features
    weights, extra = _weights(quantised, table=False)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "B", *extra],
        ["y"],
        domain="com.microsoft",
        N=rows,
        K=width,
        bits=quantised.scheme.bits,
        block_size=quantised.scheme.block,
        accuracy_level=accuracy_level,
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", width])]
    return _run(node, inputs, rows, weights, {"x": x})


def gather(quantised: Quantised, ids: np.ndarray) -> np.ndarray:
    weights, extra = _weights(quantised, table=True)
    node = helper.make_node(
        "GatherBlockQuantized",
        ["B", "ids", *extra],
        ["y"],
        domain="com.microsoft",
        bits=quantised.scheme.bits,
        block_size=quantised.scheme.block,
        gather_axis=0,
        quantize_axis=1,
    )
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["m"])]
    return _run(node, inputs, quantised.in_features, weights, {"ids": ids})


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def example(name: str, rows: int = 33, width: int = 160, seed: int = 0) -> tuple[Quantised, np.ndarray]:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, width)).astype(np.float32)
    return quantise(weight, parse_scheme(name)), random.standard_normal((5, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["w4g32", "w4g32z", "w4g64", "w4g128z", "w8", "w8g32"])
@pytest.mark.parametrize(("rows", "width"), [(64, 128), (33, 160), (5, 70), (1, 33)])
def test_onnxruntime_multiplies_with_the_same_bytes(name: str, rows: int, width: int) -> None:
    quantised, x = example(name, rows, width)
    expected = x @ dequantise(quantised).T
    assert distance(matmul(quantised, x, 0), expected) < SAME_CODES
    assert distance(matmul(quantised, x, 4), expected) < INT8_ACTIVATIONS


@pytest.mark.parametrize("name", ["w4g32", "w4g32z", "w8g32"])
def test_onnxruntime_gathers_from_the_same_bytes(name: str) -> None:
    quantised, _ = example(name)
    ids = np.array([0, 32, 7, 7])
    assert np.array_equal(gather(quantised, ids), dequantise(quantised)[ids])


def test_a_padded_table_is_refused() -> None:
    quantised, _ = example("w4g32", width=70)
    with pytest.raises(UsageError, match="width 70"):
        gather_table(quantised)


@pytest.mark.parametrize("name", ["w4g32", "w4g32z", "w8g32"])
@pytest.mark.parametrize("fault", ["transposed scales", "off-by-one codes", "swapped nibbles"])
def test_the_comparison_sees_a_wrong_layout(name: str, fault: str) -> None:
    quantised, x = example(name, rows=64, width=64)
    expected = x @ dequantise(quantised).T
    if fault == "transposed scales":
        wrong = replace(quantised, scales=np.ascontiguousarray(quantised.scales.T).reshape(quantised.scales.shape))
    elif fault == "off-by-one codes":
        wrong = replace(quantised, codes=np.roll(quantised.codes, 1, axis=1))
    else:
        wrong = replace(quantised, codes=quantised.codes.reshape(64, -1, 2)[:, :, ::-1].reshape(64, -1))
    assert distance(matmul(wrong, x, 0), expected) > 0.2
    assert distance(matmul(wrong, x, 4), expected) > 0.2
    assert distance(gather(wrong, np.arange(64)), dequantise(quantised)) > 0.2
