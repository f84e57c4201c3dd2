"""Norms whose nodes are the same on every target."""

from __future__ import annotations

from export.graphs.builder import GraphBuilder


def rms_norm(builder: GraphBuilder, x: str, weight: str, epsilon: float) -> str:
    """x (..., D) over its root mean square, times `weight` (D,)."""
    return builder.node(
        "SimplifiedLayerNormalization", [x, weight], name="RMSNorm", axis=-1, epsilon=epsilon, stash_type=1
    )


def layer_norm(builder: GraphBuilder, x: str, weight: str, bias: str, epsilon: float) -> str:
    """x (..., D) with mean 0 and variance 1, times `weight` (D,), plus `bias` (D,)."""
    return builder.node("LayerNormalization", [x, weight, bias], name="LayerNorm", axis=-1, epsilon=epsilon)
