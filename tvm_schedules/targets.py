"""The CPU variants of each architecture: what a kernel may use and how it is tiled.

One library per architecture carries all its variants and picks the best that the machine has when it is opened.
Every variant of an architecture reads the same weight layout (`layouts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dot = Literal["maddubs256", "vpdpbusd256", "vpdpbusd512", "smull", "sdot", "smmla", "vrmpy"]


@dataclass(frozen=True)
class Tile:
    """Work unit of a GEMM: `rows` of activations by `blocks` of 16 output columns, `vectors` of them at a time.

    A pair of blocks is what SwiGLU takes; the integer and the float sums of rows x vectors should fit the registers.
    """

    rows: int
    blocks: int
    vectors: int
    unroll: int = 0
    """Runs of k written out one after the other; 0: those of a whole group."""


@dataclass(frozen=True)
class Variant:
    """One CPU variant. `features` are the names that the engine's run-time detection must report."""

    name: str
    arch: Literal["x86_64", "arm64", "hexagon"]
    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    dot: Dot
    lanes: int
    """float32 or int32 lanes of a vector. 16 on arm64 too, as four registers: sums then have AVX-512's order."""
    prefill_tile: Tile
    batch_tile: Tile
    """For 2 to `batch_tile.rows` rows: drafted tokens."""
    decode_tile: Tile
    attend_rows: int
    """Query rows that share a load of keys in attention of many rows."""
    attend_decode_rows: int
    """The same for few rows, and for a float cache."""
    tower_blocks: int = 1
    """Blocks of 16 columns of a tower's linears, whose register tiles are 4 rows tall (EV_LINEAR_ROWS)."""
    has_float_vectors: bool = True
    """Without, sums of groups are scaled one lane after the other."""


_LINUX_X86 = "x86_64-unknown-linux-gnu"
# Four parts: with three, LLVM does not recognise Android and uses the reserved register x18. The same objects serve
# Linux: kernels call nothing.
_ANDROID = "aarch64-unknown-linux-android24"
# Phones often hide SVE although the core has it.
_NO_SVE = ("-sve", "-sve2")

# Measured (LOG.md, 2026-11-25): the sums of one vector of columns stay in registers, those of two spill once a group.
# SwiGLU pairs two blocks, so tiles are 2 blocks wide.
VARIANTS: tuple[Variant, ...] = (
    Variant("avx512vnni", "x86_64", _LINUX_X86, "x86-64-v4", ("+avx512vnni",),
            ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"), "vpdpbusd512", 16,
            Tile(8, 2, 1), Tile(4, 2, 2), Tile(1, 2, 1), 8, 3, tower_blocks=4),
    Variant("avxvnni", "x86_64", _LINUX_X86, "x86-64-v3", ("+avxvnni",),
            ("avx2", "fma", "f16c", "avxvnni"), "vpdpbusd256", 8, Tile(4, 2, 2), Tile(2, 2, 2), Tile(1, 2, 2), 6, 3),
    Variant("avx2", "x86_64", _LINUX_X86, "x86-64-v3", (),
            ("avx2", "fma", "f16c"), "maddubs256", 8, Tile(4, 2, 2), Tile(2, 2, 2), Tile(1, 2, 2), 6, 3),
    Variant("i8mm", "arm64", _ANDROID, "cortex-a78", ("+neon", "+dotprod", "+i8mm", *_NO_SVE),
            ("asimd", "asimddp", "i8mm"), "smmla", 16, Tile(8, 2, 1), Tile(4, 2, 1), Tile(1, 2, 4), 6, 3),
    Variant("dotprod", "arm64", _ANDROID, "cortex-a76", ("+neon", "+dotprod", *_NO_SVE),
            ("asimd", "asimddp"), "sdot", 16, Tile(8, 2, 1), Tile(4, 2, 1), Tile(1, 2, 4), 6, 3),
    Variant("neon", "arm64", _ANDROID, "cortex-a53", ("+neon", *_NO_SVE),
            ("asimd",), "smull", 16, Tile(8, 2, 1), Tile(4, 2, 1), Tile(1, 2, 4), 6, 3),
)


def _hvx(version: str, has_float_vectors: bool) -> Variant:
    mattr = (f"+hvx{version}", "+hvx-length128b", *(("+hvx-qfloat",) if has_float_vectors else ()))
    return Variant(
        f"hvx{version}", "hexagon", "hexagon-unknown-linux-musl", f"hexagon{version}", mattr, (f"hvx{version}",),
        "vrmpy", 32, Tile(4, 2, 1), Tile(2, 2, 2), Tile(1, 2, 2), 6, 3, has_float_vectors=has_float_vectors,
    )  # fmt: skip


# The DSP beside the NPU's matrix unit: the GEMMs only, in no library. v66 has no floats in its vectors.
HVX_VARIANTS: tuple[Variant, ...] = (_hvx("v66", False), _hvx("v68", True), _hvx("v73", True))

BY_NAME: dict[str, Variant] = {variant.name: variant for variant in VARIANTS}
