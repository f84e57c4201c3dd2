"""Which scheme each tensor gets: two defaults and an ordered list of overrides, recorded as they are used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from edgevlm.errors import UsageError
from edgevlm.spec import TensorError
from export.quant.scheme import ONNX_SCALE_BITS, MixScheme, Scheme, parse_language_scheme, parse_scheme

Component = Literal["vision", "connector", "language"]
Rule = tuple[str, str]
"""(regular expression for the whole tensor name, scheme name)."""

MIX_BELOW_PARAMETERS = 1_000_000_000
"""4 bits cost a 135M model 31 % perplexity (HF nettib/smollm2-135m-quantized), and 0.6B models 17 % (2505.02214)."""
DEFAULT_VISION = "w8g64"
"""Blocks of 128 save 2.7 % of the demo's tower and have 2.4 times the error: cosine .99971, not .99988 (2026-11-25)."""


def default_language_scheme(n_parameters: int) -> str:
    """Returns the scheme that a language model gets when the user names none."""
    return "w4g32" if n_parameters >= MIX_BELOW_PARAMETERS else "w4g32-mix"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a graph stores it."""

    name: str
    component: Component
    scheme: Scheme
    parameters: int
    size_bytes: int
    """In the ONNX data file, where scales are float32."""
    relative_rms: float


@dataclass(frozen=True)
class QuantPlan:
    """The schemes of one export. The first override whose pattern matches a whole tensor name wins.

    Graph builders ask `scheme_for` and report with `record` what they stored; the pipeline then reads `stored` and
    calls `check_used`.
    """

    language: str
    vision: str = DEFAULT_VISION
    overrides: tuple[Rule, ...] = ()
    stored: dict[str, StoredTensor] = field(default_factory=dict, compare=False, repr=False)
    _matched: set[int] = field(default_factory=set, compare=False, repr=False)
    _patterns: list[tuple[re.Pattern[str], Scheme]] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        parse_language_scheme(self.language)
        parse_scheme(self.vision)
        for pattern, scheme in self.overrides:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise UsageError(f"override {pattern!r} is not a regular expression: {error}") from None
            self._patterns.append((compiled, parse_scheme(scheme)))

    @property
    def language_scheme(self) -> Scheme | MixScheme:
        """The parsed scheme of the language model."""
        return parse_language_scheme(self.language)

    @property
    def vision_scheme(self) -> Scheme:
        """The parsed scheme of the vision tower and the connector."""
        return parse_scheme(self.vision)

    def scheme_for(self, name: str, component: Component) -> Scheme:
        """Returns the scheme of tensor `name`; the language model's tensors fall back to the mix's lower scheme."""
        chosen: Scheme | None = None
        for index, (pattern, scheme) in enumerate(self._patterns):
            if pattern.fullmatch(name):
                self._matched.add(index)
                chosen = chosen or scheme
        if chosen is not None:
            return chosen
        if component != "language":
            return self.vision_scheme
        fallback = self.language_scheme
        return fallback.low if isinstance(fallback, MixScheme) else fallback

    def is_overridden(self, name: str) -> bool:
        """Returns whether an override decides tensor `name`; does not count as a use."""
        return any(pattern.fullmatch(name) for pattern, _ in self._patterns)

    def record(
        self, name: str, component: Component, scheme: Scheme, parameters: int, size_bytes: int, relative_rms: float
    ) -> None:
        """Notes how a tensor was stored; a tied table that a second graph uses is noted once."""
        self.stored[name] = StoredTensor(name, component, scheme, parameters, size_bytes, relative_rms)

    def check_used(self) -> None:
        """Raises UsageError for an override whose pattern matched no tensor that was asked for."""
        for index, (pattern, scheme) in enumerate(self.overrides):
            if index not in self._matched:
                known = ", ".join(list(self.stored)[:2]) or "none"
                raise UsageError(
                    f"override {pattern}={scheme} matches no tensor; a pattern must match a whole tensor name "
                    f"(for example: {known})"
                )

    def worst(self, n: int) -> tuple[TensorError, ...]:
        """Returns the `n` tensors with the largest relative RMS error, largest first."""
        ranked = sorted(self.stored.values(), key=lambda tensor: (-tensor.relative_rms, tensor.name))
        return tuple(
            TensorError(t.name, t.scheme.name, round(t.relative_rms, 6)) for t in ranked[:n] if t.relative_rms > 0
        )

    def mean_bits_per_weight(self, components: Iterable[Component] = ("vision", "connector", "language")) -> float:
        """Returns the mean bits per weight of the recorded tensors: padding, fp16 scales and zero points included."""
        chosen = [tensor for tensor in self.stored.values() if tensor.component in set(components)]
        parameters = sum(tensor.parameters for tensor in chosen)
        bits = 0.0
        for tensor in chosen:
            scheme = tensor.scheme
            bits += 8 * tensor.size_bytes * scheme.bits_per_weight / scheme.stored_bits(ONNX_SCALE_BITS)
        return bits / parameters if parameters else 0.0
