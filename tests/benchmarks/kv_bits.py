"""What 8 and 4 bits of cached keys and values cost, without any other rounding: fp32 graphs, a cache rounded in place.

    python -m tests.benchmarks.kv_bits FP32_PACKAGE [--context 8192] [--scored 128]

The engine rounds activations too, and two runs of it that differ in one bit drift apart by that rounding's own noise
(tvm_schedules/LOG.md); here only the cache differs. After each chunk its new keys and values are rounded as
tvm_schedules/attention/cache.py does, one scale per token and head. Prints mean KL and top-1 agreement with the float
cache over the last --scored positions, for keys as they are, less the mean of each channel ("centred"), and divided by
powers of two per channel besides ("levelled", what the engine does: tvm_schedules/key_ranges.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.onnx import OnnxSession
from edgevlm.package import Package, open_package
from edgevlm.tokenizer import Tokenizer
from export import probes
from export.divergence import DivergenceMeter, bound_for
from tvm_schedules.key_ranges import KeyRange, measure_keys

Float32 = NDArray[np.float32]
TEXT = Path(__file__).resolve().parents[2] / "assets" / "text" / "devils-dictionary.txt"
CHUNK = 128
Form = tuple[int, int, str]
FORMS: tuple[Form, ...] = (
    (8, 8, "levelled"), (8, 8, "centred"), (8, 8, "no"), (8, 4, "levelled"), (4, 8, "levelled"), (4, 8, "centred"),
    (4, 4, "levelled"),
)  # fmt: skip


def rounded(values: Float32, bits: int) -> Float32:
    """Codes of one scale per (head, token) and back: values (1, G, T, E)."""
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    if bits == 8:
        scale = np.maximum(high, -low) / 127
    else:
        scale = np.where(high >= -low, high, low) / -8
    safe = np.where(scale == 0, 1, scale)
    codes = np.clip(np.rint(values / safe), -8 if bits == 4 else -127, 7 if bits == 4 else 127)
    return (codes * scale).astype(np.float32)


class RoundedCache:
    """A session whose cache is rounded behind every call."""

    def __init__(self, package: Package, context: int, form: Form | None, ranges: list[KeyRange]) -> None:
        self.session = OnnxSession(package, context=context)
        self.form, self.ranges = form, ranges
        self.kinds = [entry.kind for entry in package.manifest.decoder.cache]

    def run(self, ids: NDArray[np.int64], scored: int) -> Float32:
        """Logits of the last `scored` tokens, each read from a cache that is rounded up to the token before."""
        bulk = len(ids) - scored
        for start in range(0, bulk, CHUNK):
            part = ids[start : min(bulk, start + CHUNK)]
            self.session.prefill([part], np.arange(start, start + len(part)))
            self._round(start, start + len(part))
        rows = []
        for position in range(bulk, len(ids)):
            rows.append(self.session.step(int(ids[position]), position))
            self._round(position, position + 1)
        return np.stack(rows)

    def _round(self, begin: int, end: int) -> None:
        if self.form is None:
            return
        key_bits, value_bits, treatment = self.form
        layer = 0
        for kind, array in zip(self.kinds, self.session._cache, strict=True):
            new = array[:, :, begin:end]
            if kind == "key":
                found = self.ranges[layer]
                centre = np.float32(0) if treatment == "no" else found.centre[None, :, None]
                factors = found.factors[None, :, None] if treatment == "levelled" else np.float32(1)
                new[...] = rounded((new - centre) / factors, key_bits) * factors + centre
                layer += 1
            else:
                new[...] = rounded(new, value_bits)


def main() -> None:
    """Measures one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--scored", type=int, default=128)
    parser.add_argument("--forms", type=int, default=len(FORMS), help="measure only the first so many rows")
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    ids = np.array(Tokenizer.open(package).encode(TEXT.read_text())[: arguments.context], np.int64)
    ranges = measure_keys(package, probes.text())
    exact = RoundedCache(package, arguments.context, None, ranges).run(ids, arguments.scored)
    print(f"{package.manifest.name}, {len(ids)} tokens of context, the last {arguments.scored} scored")
    print("| keys | values | keys prepared | mean KL | same argmax |\n|---|---|---|---|---|")
    for form in FORMS[: arguments.forms]:
        meter = DivergenceMeter(bound_for("fp16"))
        meter.add(exact, RoundedCache(package, arguments.context, form, ranges).run(ids, arguments.scored))
        print(f"| {form[0]} | {form[1]} | {form[2]} | {meter.mean_kl:.2e} | {meter.top1:.3f} |", flush=True)


if __name__ == "__main__":
    main()
