"""Measures how the scale of a block should be chosen, on weights that were never quantised before.

    python -m tests.benchmarks.scale_rules SNAPSHOT [--json FILE]

SNAPSHOT is a checkpoint with fp32 weights: `python assets/demo/fetch.py --dir DIR` lays one out (DINOv2-S/14) in
DIR/dinov2-s14. Weights of language models that come as GGUF files are on a 4-bit grid already and flatter every rule.
Prints a markdown table of ||W - W_q||^2 / ||W||^2, in thousandths; docs/quantisation.md holds it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import open_checkpoint
from export.quant import asymmetric, int8, symmetric
from export.quant.blocks import fp16_values, inverse

Floats = NDArray[np.float32]
Rule = Callable[[Floats], Floats]
"""Blocks (block, n) to what they become (block, n)."""


def _rounded(columns: Floats, scale: Floats, low: float, high: float) -> Floats:
    scale = fp16_values(scale)
    return np.clip(np.rint(columns * inverse(scale)), low, high) * scale


def absmax7(columns: Floats) -> Floats:
    """The largest magnitude becomes 7; code -8 is never used."""
    return _rounded(columns, np.abs(columns).max(axis=0) / np.float32(7), -7, 7)


def full_range(columns: Floats) -> Floats:
    """The signed element of the largest magnitude becomes -8."""
    return _rounded(columns, symmetric.signed_extreme(columns) / np.float32(-8), -8, 7)


def search_no_refit(columns: Floats) -> Floats:
    """The best of the tried inverse scales, as it is."""
    extreme = symmetric.signed_extreme(columns)
    return _best(columns, [_rounded(columns, extreme / np.float32(-m), -8, 7) for m in symmetric.SEARCH])


def search_refit(columns: Floats) -> Floats:
    """Each tried scale refitted in closed form; the best (what `export` does)."""
    codes, scale, _ = symmetric.fit(columns)
    return (codes - 8) * scale


def zero_point(columns: Floats) -> Floats:
    """Search with a uint4 zero point (`z` schemes)."""
    codes, scale, zero = asymmetric.fit(columns)
    return (codes - zero) * scale


def int8_absmax(columns: Floats) -> Floats:
    """The largest magnitude becomes 127 (what `export` does)."""
    codes, scale, _ = int8.fit(columns)
    return (codes - 128) * scale


def int8_full_range(columns: Floats) -> Floats:
    """The signed element of the largest magnitude becomes -128."""
    return _rounded(columns, symmetric.signed_extreme(columns) / np.float32(-128), -128, 127)


def int8_search(columns: Floats) -> Floats:
    """The best of 24 clips of the full range."""
    extreme = symmetric.signed_extreme(columns)
    tried = np.linspace(127, 150, 24, dtype=np.float32)
    return _best(columns, [_rounded(columns, extreme / -m, -128, 127) for m in tried])


def _best(columns: Floats, candidates: list[Floats]) -> Floats:
    errors = np.stack([np.square(columns - candidate).sum(axis=0) for candidate in candidates])
    winner = errors.argmin(axis=0)
    result: Floats = np.take_along_axis(np.stack(candidates), winner[None, None, :], axis=0)[0]
    return result


INT4_RULES: dict[str, Rule] = {
    "absmax ±7": absmax7,
    "signed full range": full_range,
    "search, no refit": search_no_refit,
    "search + refit (w4)": search_refit,
    "search + refit, zero point (w4z)": zero_point,
}
INT8_RULES: dict[str, Rule] = {
    "absmax ±127 (w8)": int8_absmax,
    "signed full range -128": int8_full_range,
    "clip search": int8_search,
}


def error(weights: list[Floats], block: int, rule: Rule) -> float:
    """Returns the error energy over the weight energy, each tensor weighed by its energy."""
    noise = energy = 0.0
    for weight in weights:
        width = weight.shape[1] // block * block
        columns = np.ascontiguousarray(weight[:, :width].reshape(-1, block).T)
        for start in range(0, columns.shape[1], 1 << 14):
            part = np.ascontiguousarray(columns[:, start : start + (1 << 14)])
            noise += float(np.square(part - rule(part)).sum(dtype=np.float64))
            energy += float(np.square(part).sum(dtype=np.float64))
    return noise / energy


def samples(snapshot: Path) -> dict[str, list[Floats]]:
    """Returns the weights of the linears in a snapshot, and as much of two distributions as is needed to be steady."""
    checkpoint = open_checkpoint(snapshot)
    names = [name for name, info in checkpoint.tensors().items() if len(info.shape) == 2 and min(info.shape) >= 128]
    random = np.random.default_rng(0)
    shape = (4096, 1536)
    return {
        "real tower": [checkpoint.read(name) for name in sorted(names)],
        "Gaussian": [random.standard_normal(shape).astype(np.float32)],
        "Student-t, 5": [random.standard_t(5, shape).astype(np.float32)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = samples(arguments.snapshot)
    rows = [("int4", block, name, rule) for block in (32, 64, 128) for name, rule in INT4_RULES.items()]
    rows += [("int8", block, name, rule) for block in (32, 128) for name, rule in INT8_RULES.items()]
    found = []
    print(f"| bits | block | rule | {' | '.join(data)} |\n|---|---|---|{'---|' * len(data)}")
    for bits, block, name, rule in rows:
        values = {source: error(weights, block, rule) * 1e3 for source, weights in data.items()}
        shown = " | ".join(f"{value:.3g}" if bits == "int8" else f"{value:.2f}" for value in values.values())
        print(f"| {bits} | {block} | {name} | {shown} |", flush=True)
        found.append({"bits": bits, "block": block, "rule": name, "nmse_thousandths": values})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
