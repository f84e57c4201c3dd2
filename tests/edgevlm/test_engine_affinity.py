"""Which CPUs the engine's threads stay on: the big cores of phones, by the kernel's capacities or by frequencies."""

from __future__ import annotations

import ctypes

import pytest

from tests.edgevlm.engine_build import build_engine

MAX_CPUS = 64
CAPACITY, FREQUENCY = 50, 76
"""Least per cent of the fastest, as affinity.c has it for each measure."""
PHONES = {
    # 611 and 1,024 units of work a MHz (Linux, sdm845.dtsi), scaled to 1,024 for the fastest.
    "Snapdragon 845, capacities": ([385] * 4 + [1024] * 4, [4, 5, 6, 7]),
    "three kinds, capacities": ([250] * 2 + [870] * 5 + [1024], [2, 3, 4, 5, 6, 7]),
    "one kind of core": ([2_400_000] * 8, []),
    "four little, four big": ([1_800_000] * 4 + [2_400_000] * 4, [4, 5, 6, 7]),
    "little, middle, prime": ([1_800_000] * 4 + [2_420_000] * 3 + [2_840_000], [4, 5, 6, 7]),
    "Snapdragon 8 Gen 3": ([2_265_600] * 2 + [3_148_800] * 3 + [2_956_800] * 2 + [3_302_400], [2, 3, 4, 5, 6, 7]),
    "Dimensity 9300": ([2_000_000] * 4 + [2_850_000] * 3 + [3_250_000], [4, 5, 6, 7]),
    "Snapdragon 8 Elite": ([3_532_800] * 6 + [4_320_000] * 2, []),
    "the system says nothing": ([], []),
    "some are switched off": ([0, 1_800_000, -1, 2_840_000], [3]),
}
"""Capacities or frequencies in kHz by CPU → the fast ones; none where all serve alike."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The engine's C files, without kernels."""
    return ctypes.CDLL(str(build_engine(tmp_path_factory.mktemp("engine"))))


@pytest.mark.parametrize("name", PHONES)
def test_fast_cpus(name: str, engine: ctypes.CDLL) -> None:
    speeds, expected = PHONES[name]
    least = CAPACITY if name.endswith("capacities") else FREQUENCY
    mask = ctypes.c_uint64(7)
    table = (ctypes.c_long * MAX_CPUS)(*speeds)
    assert engine.ev_fast_of(table, least, ctypes.byref(mask)) == len(expected)
    assert mask.value == sum(1 << cpu for cpu in expected)


def test_this_machine(engine: ctypes.CDLL) -> None:
    """What the system says here: some CPUs, or none."""
    mask = ctypes.c_uint64()
    assert engine.ev_fast_cpus(ctypes.byref(mask)) == mask.value.bit_count()
