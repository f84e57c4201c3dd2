"""What generation defaults of a checkpoint or a package mean: values that no sampler takes as they stand but that have
a meaning, and values that have none."""

from __future__ import annotations

import math
from dataclasses import replace

from edgevlm.sampling import MIN_TEMPERATURE
from edgevlm.spec import GenerationSpec

LARGEST_TOP_K = 1 << 24
"""The largest vocabulary (edgevlm/package.py): as many tokens are all of them."""
SMALLEST_TOP_P = 1e-9
"""Below the likeliest token's share in the largest vocabulary, so that it alone is kept: transformers' top_p of 0."""


def wrong_default(spec: GenerationSpec) -> str | None:
    """Returns which default no answer can be made with, and what was expected; None when there is none."""
    rules = (
        ("temperature", math.isfinite(spec.temperature) and spec.temperature >= 0, "0 (greedy) or more"),
        ("top_p", math.isfinite(spec.top_p) and spec.top_p >= 0, "from 0 to 1"),
        ("min_p", 0 <= spec.min_p <= 1, "from 0 to 1"),
        (
            "repetition_penalty",
            math.isfinite(spec.repetition_penalty) and spec.repetition_penalty > 0,
            "a number above 0 (1 turns it off)",
        ),
    )
    for name, is_usable, expected in rules:
        if not is_usable:
            return f"{name} is {getattr(spec, name):g}, expected {expected}"
    return None


def settled(spec: GenerationSpec) -> GenerationSpec:
    """Returns the defaults as `SamplingParams` takes them.

    - A temperature near 0 takes the likeliest token (Qwen2.5-VL ships 1e-6).
    - top_k below 0 is how vLLM and llama.cpp write "off"; transformers refuses it once it samples.
    - top_p above 1 is off, and 0 keeps the likeliest token alone, as in transformers.
    """
    top_p = min(max(spec.top_p, SMALLEST_TOP_P), 1.0)
    return replace(
        spec,
        temperature=spec.temperature if spec.temperature >= MIN_TEMPERATURE else 0.0,
        top_k=spec.top_k if 0 < spec.top_k < LARGEST_TOP_K else 0,
        top_p=top_p,
    )
