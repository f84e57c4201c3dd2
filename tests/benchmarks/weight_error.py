"""Quantisation error of tensors that were never quantised before: a vision tower and a projector.

    python -m tests.benchmarks.weight_error COMPOSED [--json FILE]

COMPOSED is the demo's checkpoint (`python assets/demo/fetch.py --dir DIR`). Prints a markdown table of the relative RMS
error ||W - W_q|| / ||W|| in per cent, over all tensors of a role; docs/quantisation.md holds it. The demo's language
model was already on a 4-bit grid when it was published (Q4_1), which flatters int4: its row shows by how much.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

from export.checkpoint import open_checkpoint
from export.quant.scheme import linear_scheme, parse_scheme, stored_weight

SCHEMES = ("fp16", "w8", "w4g32z", "w4g32", "w4g64", "w4g128")
ROLES = {
    "tower: query, key, value": r"vision_tower\..*\.attention\.attention\.(query|key|value)\.weight",
    "tower: attention output": r"vision_tower\..*\.attention\.output\.dense\.weight",
    "tower: fc1": r"vision_tower\..*\.mlp\.fc1\.weight",
    "tower: fc2": r"vision_tower\..*\.mlp\.fc2\.weight",
    "projector": r"projector\..*\.weight",
    "language model (was Q4_1)": r"language_model\..*_proj\.weight",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("composed", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.composed)
    print(f"| tensors | n | weights | {' | '.join(SCHEMES)} |\n|---|---|---|{'---|' * len(SCHEMES)}")
    found = {}
    for role, pattern in ROLES.items():
        names = [name for name in checkpoint.tensors() if re.fullmatch(pattern, name)]
        energy, noise, n_weights = 0.0, dict.fromkeys(SCHEMES, 0.0), 0
        for name in names:
            weight = checkpoint.read(name)
            norm = float(np.vdot(weight, weight))
            energy, n_weights = energy + norm, n_weights + weight.size
            for scheme in SCHEMES:
                noise[scheme] += (
                    norm * stored_weight(weight, linear_scheme(parse_scheme(scheme), weight.shape[1]))[1] ** 2
                )
        errors = {scheme: 100 * (noise[scheme] / energy) ** 0.5 for scheme in SCHEMES}
        shown = " | ".join(f"{errors[scheme]:.2g} %" for scheme in SCHEMES)
        print(f"| {role} | {len(names)} | {n_weights / 1e6:.2f} M | {shown} |", flush=True)
        found[role] = errors
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
