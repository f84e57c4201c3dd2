"""Static ranges: what each activation of a float NPU graph takes on real inputs, and three ways to cut its tails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.telemetry import import_onnxruntime

Float32 = NDArray[np.float32]
Feeds = dict[str, NDArray[Any]]
Method = Literal["minmax", "percentile", "mse"]

METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
N_BINS = 2048
KEPT_SHARE = 0.9999
"""`percentile` keeps this share of all values inside. Source: AIMET's default, 99.99 %."""
MSE_STEPS = 24
"""`mse` tries this many cuts of each tail, evenly from none to half of the range."""
HEADROOM = 2.0
"""`minmax` widens what was seen by this. One of 16 bits costs the demo's picture tokens 1e-6 of cosine, clipping what
calibration had not seen 5e-4 (a plain blue picture behind six busy ones, 2026-11-27, then with 1.25)."""
CACHE_HEADROOM = 1.25
"""The same for keys and values, which have 8 bits."""
LEVELS = 65535
FLOAT = 1


@dataclass(frozen=True)
class Range:
    """Values that a code stands for; always with zero inside, so that zero is exact."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """Returns the smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


class Observed:
    """Minimum, maximum and histogram of one activation. The histogram's bins are fixed by a first pass."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.counts = np.zeros(N_BINS, np.int64)

    def widen(self, values: Float32) -> None:
        """First pass: the extremes."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def count(self, values: Float32) -> None:
        """Second pass: how often each bin between the extremes is met."""
        if self.high > self.low:
            self.counts += np.histogram(values, N_BINS, (self.low, self.high))[0]

    def range(self, method: Method, *, is_cached: bool = False) -> Range:
        """Returns the range by one method; `is_cached` for keys and values."""
        if method == "minmax" or not self.counts.any():
            headroom = CACHE_HEADROOM if is_cached else HEADROOM
            return Range(self.low * headroom, self.high * headroom)
        return self._percentile() if method == "percentile" else self._least_error()

    def _percentile(self) -> Range:
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (1 - KEPT_SHARE) / 2
        edges = np.linspace(self.low, self.high, N_BINS + 1)
        low = edges[int(np.searchsorted(share, tail, side="right"))]
        high = edges[min(int(np.searchsorted(share, 1 - tail)) + 1, N_BINS)]
        return Range(min(float(low), 0.0), max(float(high), 0.0))

    def _least_error(self) -> Range:
        """The cut of least squared error: rounding (step squared / 12 for each value inside) and clipping (outside)."""
        edges = np.linspace(self.low, self.high, N_BINS + 1)
        middles = (edges[1:] + edges[:-1]) / 2
        best, least = Range(self.low, self.high), np.inf
        for shrink_low in np.linspace(1, 0.5, MSE_STEPS):
            for shrink_high in np.linspace(1, 0.5, MSE_STEPS):
                low, high = self.low * shrink_low, self.high * shrink_high
                outside = np.maximum(low - middles, 0) + np.maximum(middles - high, 0)
                step = (high - low) / LEVELS
                error = float((self.counts * (outside**2 + (outside == 0) * step**2 / 12)).sum())
                if error < least:
                    best, least = Range(low, high), error
        return best


def observe(graph: Path, feeds: Sequence[Feeds]) -> dict[str, Observed]:
    """Runs a float graph on every feed, twice, and returns what each float value took on; inputs too."""
    import onnx
    onnxruntime = import_onnxruntime()
    from onnx import TensorProto, helper

    model = onnx.load(graph, load_external_data=False)
    names = [node.output[0] for node in model.graph.node if node.output[0]]
    present = {output.name for output in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    inputs = [item.name for item in model.graph.input if item.type.tensor_type.elem_type == FLOAT]
    scratch = graph.with_name(f"{graph.stem}.observed.onnx")
    onnx.save_model(model, scratch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(scratch), options, providers=["CPUExecutionProvider"])
    finally:
        scratch.unlink()
    found = {name: Observed() for name in [*inputs, *names]}
    for second in (False, True):
        for feed in feeds:
            values: Iterable[Any] = session.run(names, feed)
            for name, value in [*((name, feed[name]) for name in inputs), *zip(names, values, strict=True)]:
                (found[name].count if second else found[name].widen)(value)
    return found
