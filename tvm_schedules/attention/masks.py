"""What a row of attention may see: causal limits, windows and drafted trees, as expressions of the kernels."""

from __future__ import annotations

from typing import Any

Expr = Any

LOWEST = -1e30
"""Score of a masked key: finite, so that a tile without valid keys still gives e^0 times a later factor of 0."""


def position(tree: Any, tree_rows: Expr, n_past: Expr, token: Expr) -> Expr:
    """Position of a new token: behind the ones before it, or behind those of its own branch of a drafted tree."""
    from tvm import tirx

    drafted = tirx.popcount(tree.vload([tirx.if_then_else(tree_rows > 0, token, 0)], "int32")) - 1
    return n_past + tirx.if_then_else(tree_rows > 0, drafted, token)


def limit(position_: Expr, tree_rows: Expr, n_past: Expr, key_end: Expr) -> Expr:
    """The first key that a row may not see: its own end, or the end of the drafted tokens, whose mask does the rest."""
    from tvm import tirx

    return tirx.min(tirx.if_then_else(tree_rows > 0, n_past + tree_rows, position_ + 1), key_end)


def window_start(position_: Expr, window: Expr) -> Expr:
    """The first key that a row may see."""
    from tvm import tirx

    return tirx.if_then_else(window > 0, tirx.max(position_ + 1 - window, 0), 0)


def masked(scores: Expr, first_key: Expr, low: Expr, high: Expr, lanes: int) -> Expr:
    """`scores` of the keys first_key .. with LOWEST outside [low, high)."""
    from tvm import tirx

    index = tirx.Ramp(first_key, 1, lanes)
    valid = tirx.And(index >= tirx.Broadcast(low, lanes), index < tirx.Broadcast(high, lanes))
    return tirx.Select(valid, scores, tirx.Broadcast(tirx.const(LOWEST, "float32"), lanes))


def hidden(tree: Any, token: Expr, drafted_key: Expr) -> Expr:
    """Whether a drafted token does not see drafted key number `drafted_key`."""
    from tvm import tirx

    return tirx.bitwise_and(tirx.shift_right(tree.vload([token], "int32"), drafted_key), 1) == 0
