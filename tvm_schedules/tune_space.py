"""What may be tuned in a variant: slots, the values of their axes, and the rules that exclude a point.

A *point* is one choice for one *slot* of a variant, such as {"rows": 8, "blocks": 2, "vectors": 1, "unroll": 0} for
the slot 'prefill'. The rules are those of the kernels and of the engine; a point that breaks none of them computes the
same numbers as every other, since integer sums are exact and float sums keep their order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal, get_args

from tvm_schedules.layouts import COLUMNS
from tvm_schedules.targets import Tile, Variant

Slot = Literal["prefill", "batch", "decode", "attend_prefill", "attend_decode", "tower"]
Point = dict[str, int]

SLOTS: tuple[Slot, ...] = get_args(Slot)
"""In the order of the search: the batch tile is never taller than the prefill tile."""
GEMM_SLOTS: tuple[Slot, ...] = ("prefill", "batch", "decode")

AXES: dict[Slot, dict[str, tuple[int, ...]]] = {
    "prefill": {"rows": (4, 8, 16), "blocks": (1, 2, 4, 8), "vectors": (1, 2, 4, 8), "unroll": (0, 1, 2)},
    "batch": {"rows": (2, 3, 4, 6, 8), "blocks": (1, 2, 4, 8), "vectors": (1, 2, 4, 8), "unroll": (0, 1, 2)},
    "decode": {"rows": (1,), "blocks": (1, 2, 4, 8), "vectors": (1, 2, 4, 8), "unroll": (0, 1, 2)},
    "attend_prefill": {"rows": (3, 4, 6, 8, 12, 16)},
    "attend_decode": {"rows": (1, 2, 3, 4, 6)},
    "tower": {"blocks": (1, 2, 4)},
}
"""Every value that the search considers; `points` leaves out what the rules exclude."""

REGISTERS = {"vpdpbusd512": 32, "vpdpbusd256": 16, "maddubs256": 16, "smull": 32, "sdot": 32, "smmla": 32}
OPERANDS = {"vpdpbusd512": 2, "vpdpbusd256": 2, "maddubs256": 4, "smull": 4, "sdot": 4, "smmla": 4}
"""Registers that a dot product needs beside its sums: weights and activations; maddubs a product and ones, too."""
COLUMN_BLOCKS = 4
"""N is a multiple of 64 (the engine's COLUMN_MULTIPLE): blocks of 16 columns that a tile must divide."""
SHORTEST_GROUP = 4
"""Runs of the shortest group: 32 codes of 4 bits."""
TOKEN_MULTIPLE = 32
"""The engine's EV_TOKEN_MULTIPLE: a tower's tokens are padded to it and cut into prefill tiles."""
TOWER_ROWS = 4
"""A tower's linears have tiles of 4 rows, its attention takes 4 rows of a prefill tile at once."""
UNIT_ROWS = 48
"""The engine's EV_UNIT_ROWS: attention of many rows comes in units of so many."""
ATTEND_PAIRS = 4
"""Up to so many rows attention keeps two vectors of keys in flight (attend_codes.py)."""


def point_of(variant: Variant, slot: Slot) -> Point:
    """Returns the point that `variant` stands at."""
    if slot == "tower":
        return {"blocks": variant.tower_blocks}
    if slot in ("attend_prefill", "attend_decode"):
        return {"rows": variant.attend_rows if slot == "attend_prefill" else variant.attend_decode_rows}
    return dataclasses.asdict(_tile(variant, slot))


def with_point(variant: Variant, slot: Slot, point: Mapping[str, int]) -> Variant:
    """Returns `variant` moved to `point`. Raises ValueError with the rule that the point breaks."""
    reason = refusal(variant, slot, point)
    if reason is not None:
        raise ValueError(f"{described(point)} is not a legal point of {variant.name}'s {slot}: {reason}")
    if slot == "tower":
        return dataclasses.replace(variant, tower_blocks=point["blocks"])
    if slot == "attend_prefill":
        return dataclasses.replace(variant, attend_rows=point["rows"])
    if slot == "attend_decode":
        return dataclasses.replace(variant, attend_decode_rows=point["rows"])
    tile = Tile(**point)
    if slot == "prefill":
        return dataclasses.replace(variant, prefill_tile=tile)
    if slot == "batch":
        return dataclasses.replace(variant, batch_tile=tile)
    return dataclasses.replace(variant, decode_tile=tile)


def refusal(variant: Variant, slot: Slot, point: Mapping[str, int]) -> str | None:
    """Returns the first rule that `point` breaks, None when it is legal."""
    names = set(AXES[slot])
    if set(point) != names:
        return f"its keys must be {', '.join(sorted(names))}"
    if slot == "tower":
        return _tower_refusal(variant, point["blocks"])
    if point["rows"] < 1:
        return "rows must be at least 1"
    if slot in GEMM_SLOTS:
        return _gemm_refusal(variant, slot, Tile(**point))
    if slot == "attend_prefill" and UNIT_ROWS % point["rows"]:
        return f"rows must divide the {UNIT_ROWS} of a unit of attention"
    in_flight = point["rows"] * (2 if point["rows"] <= ATTEND_PAIRS else 1)
    # A vector of arm64 is four registers.
    return _register_refusal(variant, in_flight * (4 if variant.arch == "arm64" else 1))


def points(variant: Variant, slot: Slot) -> list[Point]:
    """Returns the legal points of the declared axes; the one that `variant` stands at comes first, declared or not."""
    axes = AXES[slot]
    all_points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    current = point_of(variant, slot)
    return [current, *(p for p in all_points if p != current and refusal(variant, slot, p) is None)]


def described(point: Mapping[str, int]) -> str:
    """Such as 'rows 8, blocks 2'."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def _tile(variant: Variant, slot: Slot) -> Tile:
    return {"prefill": variant.prefill_tile, "batch": variant.batch_tile, "decode": variant.decode_tile}[slot]


def _register_refusal(variant: Variant, sums: int) -> str | None:
    needed, registers = sums + OPERANDS[variant.dot], REGISTERS[variant.dot]
    if needed <= registers:
        return None
    return f"{sums} sums and {OPERANDS[variant.dot]} operands need {needed} of {registers} vector registers"


def _gemm_refusal(variant: Variant, slot: Slot, tile: Tile) -> str | None:
    if min(tile.blocks, tile.vectors) < 1:
        return "blocks and vectors must be at least 1"
    if tile.blocks % 2 or COLUMN_BLOCKS % tile.blocks:
        return f"blocks must be even (SwiGLU) and divide {COLUMN_BLOCKS} (N is a multiple of 64)"
    if slot == "decode" and tile.rows != 1:
        return "decode has 1 row"
    if slot == "prefill" and (tile.rows % TOWER_ROWS or TOKEN_MULTIPLE % tile.rows):
        return f"rows must be a multiple of {TOWER_ROWS} that divides {TOKEN_MULTIPLE} (the vision tower's tokens)"
    if slot == "batch" and not 2 <= tile.rows <= variant.prefill_tile.rows:
        return f"rows must be from 2 to {variant.prefill_tile.rows}, the rows of the prefill tile"
    if variant.arch == "arm64":
        return _arm64_refusal(variant, slot, tile)
    if tile.blocks * COLUMNS // variant.lanes % tile.vectors:
        return f"vectors must divide the {tile.blocks * COLUMNS // variant.lanes} of {tile.blocks} blocks"
    if tile.unroll and variant.dot == "maddubs256":
        return "unroll must be 0: the 16-bit sums of 32 k are written out"
    if tile.unroll and (tile.unroll < 0 or SHORTEST_GROUP % tile.unroll):
        return f"unroll must divide the {SHORTEST_GROUP} runs of a group of 32, or be 0"
    return _register_refusal(variant, tile.rows * tile.vectors)


def _tower_refusal(variant: Variant, blocks: int) -> str | None:
    if blocks < 1 or COLUMN_BLOCKS % blocks:
        return f"blocks must divide {COLUMN_BLOCKS} (N is a multiple of 64)"
    if variant.arch == "arm64":
        return None if blocks == variant.tower_blocks else "arm64's tower kernels choose their blocks themselves"
    return _register_refusal(variant, TOWER_ROWS * blocks * COLUMNS // variant.lanes)


def _arm64_refusal(variant: Variant, slot: Slot, tile: Tile) -> str | None:
    if tile.unroll or tile.vectors != _tile(variant, slot).vectors:
        return "arm64's kernels choose vectors and unrolling themselves"
    if tile.rows > 1 and tile.rows % 2:
        return "rows must be even: smmla takes two"
    return _register_refusal(variant, tile.rows)
