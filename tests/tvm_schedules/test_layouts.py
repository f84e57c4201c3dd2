"""The kernels' weight layouts are exact inverses of themselves, on shapes that need padding too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_schedules import layouts


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 6).map(lambda i: i * 32), seed=st.integers(0, 99))
def test_round_trips(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    int4 = rng.integers(0, 16, (n, k)).astype(np.uint8)
    int8 = rng.integers(0, 256, (n, k)).astype(np.uint8)
    np.testing.assert_array_equal(layouts.unpack_int4_x86(layouts.pack_int4_x86(int4), n), int4)
    np.testing.assert_array_equal(layouts.unpack_int8_x86(layouts.pack_int8_x86(int8), n), int8)


def test_places_of_an_int4_code() -> None:
    """Column 17, k 37: block 1; run 4 holds k 32..39, its high nibble the odd quad 36..39; lane 1, byte 1 of 4."""
    codes = np.zeros((32, 64), np.uint8)
    codes[17, 37] = 9
    packed = layouts.pack_int4_x86(codes)
    assert packed[1, 4, 1 * 4 + 1] == 9 << 4
    assert np.count_nonzero(packed) == 1


def test_refuses_ragged_k() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        layouts.pack_int4_x86(np.zeros((16, 40), np.uint8))
