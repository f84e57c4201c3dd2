"""The kernels' weight layouts are exact inverses of themselves, on shapes that need padding too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_schedules import layouts


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 6).map(lambda i: i * 32), seed=st.integers(0, 99))
@pytest.mark.parametrize("arch", layouts.ROW_LAYOUTS)
def test_round_trips(arch: str, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for bits in (4, 8):
        codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
        np.testing.assert_array_equal(layouts.unpack(layouts.pack(codes, bits, arch), n, bits, arch), codes)


def test_places_of_an_int4_code() -> None:
    """x86-64: column 17, k 37: block 1; run 4 holds k 32..39, high nibbles the odd quad 36..39; lane 1, byte 1 of 4."""
    codes = np.zeros((32, 64), np.uint8)
    codes[17, 37] = 9
    packed = layouts.pack(codes, 4, "x86_64")
    assert packed[1, 4, 1 * 4 + 1] == 9 << 4
    assert np.count_nonzero(packed) == 1


def test_places_on_arm64() -> None:
    """Column 17, k 45: block 1; run 2 holds k 32..47, high nibbles k 40..47; column 1, byte 5 of 8. Int8 is signed."""
    codes = np.zeros((32, 64), np.uint8)
    codes[17, 45] = 9
    packed = layouts.pack(codes, 4, "arm64")
    assert packed[1, 2, 1 * 8 + 5] == 9 << 4
    assert np.count_nonzero(packed) == 1
    signed = layouts.pack(codes, 8, "arm64").view(np.int8)
    assert signed[1, 5, 1 * 8 + 5] == 9 - 128
    assert np.count_nonzero(signed != -128) == 1


def test_row_layouts() -> None:
    """Row 1 of a tile of 2: on arm64 two copies of each number, sums as MAGIC - 8 s, which is a float's bits."""
    codes = np.arange(2 * 64, dtype=np.int8).reshape(2, 64)
    assert layouts.pack_rows(codes, 2, "arm64")[0, 3, 1].tolist() == codes[1, 24:32].tolist()
    assert layouts.pack_rows(codes, 2, "x86_64")[0, 3, 1].tolist() == codes[1, 12:16].tolist()
    sums = np.array([[5], [-7]], np.int32)
    assert layouts.pack_row_sums(sums, 2, "x86_64").tolist() == [[[[5], [-7]]]]
    packed = layouts.pack_row_sums(sums, 2, "arm64")
    assert packed.shape == (1, 1, 2, 2)
    assert packed.view(np.float32)[0, 0, 1].tolist() == [12582912.0 + 56] * 2


@pytest.mark.parametrize("arch", layouts.ROW_LAYOUTS)
def test_refuses_ragged_k(arch: str) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        layouts.pack(np.zeros((16, 40), np.uint8), 4, arch)
