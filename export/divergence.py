"""How far a quantised model is from its fp32 twin: KL divergence, top-1 agreement, cosine of picture tokens.

KL runs over the whole vocabulary in float64, a few rows at a time, so that memory stays at some megabytes. The bounds
catch a wrong number (transposed scales, shifted codes, a lost zero point), not a model that quantises badly: each
stands well above what a healthy export of the smallest model measured here shows, and far below what those faults do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UsageError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_ROWS_AT_ONCE = 16

MIN_MEAN_COSINE = 0.9995
"""Picture tokens, quantised tower against fp32 (design goal, lowbit.md section 8)."""


@dataclass(frozen=True)
class Bound:
    """The largest mean KL (nats) and the smallest top-1 agreement that pass."""

    mean_kl: float
    top1: float


BOUNDS: tuple[tuple[str, Bound], ...] = (
    (r"fp32", Bound(1e-6, 0.999)),
    (r"fp16", Bound(1e-3, 0.90)),
    (r"w8(g\d+)?", Bound(0.05, 0.60)),
    (r"w4g32-mix", Bound(0.4, 0.10)),
    (r"w4g32z?", Bound(1.0, 0.10)),
    (r"w4g64z?", Bound(1.4, 0.10)),
    (r"w4g128z?", Bound(1.6, 0.10)),
)
"""By name of the language scheme; the first full match counts.

Measured 2026-11-24, mean KL and top-1 agreement on 1,120 positions of the measuring text, SmolLM2-135M-Instruct, whose
weights were 4-bit before (Q4_1): w8 0.0144 and 0.930, w4g32 0.523 and 0.581, w4g32z 0.376 and 0.651, w4g64 0.716 and
0.540, w4g128 0.824 and 0.501, w4g32-mix 0.116 and 0.828 (1,024 positions). Tiny random llama and qwen2: fp16 1.4e-6,
w8 0.0024 and 0.939, w4g32 0.203 and 0.518. SmolVLM-256M's shapes with random weights, w4g32: 0.308 on picture prompts,
where next to nothing separates the first two tokens; hence the wide bounds on top-1, of which faults leave 0.00 to
0.02. Mean KL of faults in all linears of a tiny model: transposed scales 2.6, codes off by one 2.0 (w4g32) and 1.8
(w8), swapped nibbles 2.2. A fault in one tensor alone is what export/stored_weights.py finds.
"""


def bound_for(scheme: str) -> Bound:
    """Returns the bound of a language scheme. Raises UsageError for a name without one."""
    for pattern, bound in BOUNDS:
        if re.fullmatch(pattern, scheme):
            return bound
    raise UsageError(f"no parity bound for scheme '{scheme}'; add a measured one to export/divergence.py.")


class DivergenceMeter:
    """Collects KL(teacher || student) and agreement of the most likely token over positions."""

    def __init__(self) -> None:
        self._kl: list[Float64] = []
        self._agree: list[NDArray[np.bool_]] = []

    def add(self, teacher: Float32, student: Float32) -> None:
        """Takes logits (T, vocab) of the same positions. Raises UsageError when the shapes differ."""
        if teacher.shape != student.shape:
            raise UsageError(f"logits of shape {teacher.shape} cannot be compared with {student.shape}.")
        for start in range(0, len(teacher), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            log_p, log_q = _log_softmax(teacher[rows]), _log_softmax(student[rows])
            kl = np.einsum("tv,tv->t", np.exp(log_p), log_p - log_q)
            self._kl.append(np.maximum(kl, 0.0))  # rounding leaves -1e-17 on equal rows
            self._agree.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))

    @property
    def n_positions(self) -> int:
        return sum(len(rows) for rows in self._kl)

    @property
    def mean_kl(self) -> float:
        return float(np.concatenate(self._kl).mean())

    @property
    def p99_kl(self) -> float:
        return float(np.quantile(np.concatenate(self._kl), 0.99))

    @property
    def top1(self) -> float:
        return float(np.concatenate(self._agree).mean())


def _log_softmax(logits: Float32) -> Float64:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def token_cosines(first: Float32, second: Float32) -> Float64:
    """Returns the cosine of each pair of tokens; inputs (..., D) of one shape, result flat."""
    a = first.reshape(-1, first.shape[-1]).astype(np.float64)
    b = second.reshape(-1, second.shape[-1]).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Float64 = np.einsum("td,td->t", a, b) / np.maximum(norms, np.finfo(np.float64).tiny)
    return cosines
