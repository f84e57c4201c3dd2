"""Every bound of the tests that is not exact, with the measurement it was set from.

Measured 2026-11-24 on two x86-64 server cores (AVX-512 VNNI) with onnxruntime 1.32, torch 2.13 and transformers 5.24,
fp32 on both sides. Another machine sums in another order, hence the room between measurement and bound.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`bound` is what a test allows, `measured` the largest value seen when it was set."""

    bound: float
    measured: float


TINY_FEATURES = Tolerance(1e-4, 8.5e-6)
"""Max abs error of vision features, tiny random checkpoints (largest: bluelm_v, values up to 7)."""

TINY_LOGITS = Tolerance(2e-4, 2.7e-5)
"""Max abs error of logits, tiny random checkpoints (largest: qwen2, standard deviation 4)."""

REAL_LOGITS = Tolerance(1e-3, 1.0e-4)
"""Max abs error of logits, SmolLM2-135M (1.0e-4) and Qwen2.5-Coder-0.5B (5.2e-5), 160 rows of text."""

REAL_RATIO = Tolerance(1.0, 0.69)
"""Max |error| / (1e-4 + 1e-3 |reference|), same rows: SmolLM2-135M 0.68, Qwen2.5-Coder-0.5B 0.28."""

TINY_MEAN_KL = {
    "fp16": Tolerance(1e-4, 1.4e-6),
    "w8": Tolerance(0.02, 0.0024),
    "w4g32": Tolerance(0.5, 0.203),
    "w4g32z": Tolerance(0.5, 0.173),
    "w4g128": Tolerance(0.5, 0.259),
}
"""Mean KL of tiny llama and qwen2 (the larger one) against their fp32 graphs, 672 positions of English."""

TINY_TOP1 = {"fp16": Tolerance(0.98, 0.998), "w8": Tolerance(0.85, 0.930), "w4g32": Tolerance(0.35, 0.448)}
"""Smallest top-1 agreement of tiny llama, qwen2, bluelm_v and smolvlm; random models decide between near ties, so it is
far below a trained one's."""

REAL_TOP1 = {"w8": Tolerance(0.88, 0.930), "w4g32": Tolerance(0.50, 0.581)}
"""Smallest top-1 agreement of SmolLM2-135M-Instruct against its fp32 graphs, 512 and 1,120 positions."""

REAL_MEAN_KL = {"w8": Tolerance(0.03, 0.0144), "w4g32": Tolerance(0.75, 0.523)}
"""Mean KL of the same."""
