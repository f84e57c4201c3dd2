"""What 8 and 4 bits of cached keys and values cost, without any other rounding: fp32 graphs, a cache rounded in place.

    python -m tests.benchmarks.kv_bits FP32_PACKAGE [--context 8192] [--scored 128]

The engine rounds activations too, and two runs of it that differ in one bit drift apart by that rounding's own noise
(tvm_schedules/LOG.md); here only the cache differs. After each chunk its new keys, less the mean of each channel, and
its values are rounded as tvm_schedules/attention/cache.py does, one scale per token and head. Prints mean KL and top-1
agreement with the float cache over the last --scored positions, centred and as they are.
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
from tvm_schedules.compile import key_centres

Float32 = NDArray[np.float32]
TEXT = Path(__file__).resolve().parents[2] / "assets" / "text" / "devils-dictionary.txt"
CHUNK = 128
FORMS = ((8, 8, True), (8, 8, False), (8, 4, True), (4, 8, True), (4, 4, True))


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

    def __init__(
        self, package: Package, context: int, form: tuple[int, int, bool] | None, centres: list[Float32]
    ) -> None:
        self.session = OnnxSession(package, context=context)
        self.form, self.centres = form, centres
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
        key_bits, value_bits, centred = self.form
        layer = 0
        for kind, array in zip(self.kinds, self.session._cache, strict=True):
            new = array[:, :, begin:end]
            if kind == "key":
                centre = self.centres[layer][None, :, None] if centred else np.float32(0)
                new[...] = rounded(new - centre, key_bits) + centre
                layer += 1
            else:
                new[...] = rounded(new, value_bits)


def main() -> None:
    """Measures one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--scored", type=int, default=128)
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    ids = np.array(Tokenizer.open(package).encode(TEXT.read_text())[: arguments.context], np.int64)
    centres = key_centres(package, probes.text())
    exact = RoundedCache(package, arguments.context, None, centres).run(ids, arguments.scored)
    print(f"{package.manifest.name}, {len(ids)} tokens of context, the last {arguments.scored} scored")
    print("| keys | values | centred | mean KL | same argmax |\n|---|---|---|---|---|")
    for form in FORMS:
        meter = DivergenceMeter(bound_for("fp16"))
        meter.add(exact, RoundedCache(package, arguments.context, form, centres).run(ids, arguments.scored))
        centred = "yes" if form[2] else "no"
        print(f"| {form[0]} | {form[1]} | {centred} | {meter.mean_kl:.2e} | {meter.top1:.3f} |", flush=True)


if __name__ == "__main__":
    main()
