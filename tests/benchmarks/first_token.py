"""A picture to the first token of the answer, native and onnxruntime in turn.

    python -m tests.benchmarks.first_token PACKAGE PICTURE [--rounds 5] [--threads 2]

Both backends stay loaded; each round changes one pixel, so that nothing is reused. Prints medians of encode, prefill
and first token in seconds, the number of tiles, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from edgevlm.image import load_image
from edgevlm.model import load

STAGES = ("encode_s", "prefill_s", "first_token_s")


def main() -> None:
    """Measures one package on one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prompt", default="What is this?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    image = load_image(arguments.picture).copy()
    models = {name: load(arguments.package, backend=name, threads=arguments.threads) for name in ("native", "onnx")}
    seconds: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in models}
    n_tiles = 0
    for round_ in range(arguments.rounds + 1):
        image[0, 0, 0] = round_
        for name, model in models.items():
            response = model.generate(arguments.prompt, images=[image.copy()], max_new_tokens=1, temperature=0)
            n_tiles = response.n_tiles
            if round_:
                for stage in STAGES:
                    seconds[name][stage].append(getattr(response.timings, stage))
    print(f"{n_tiles} tiles, medians of {arguments.rounds} alternating rounds, {arguments.threads} threads")
    print("| backend | encode s | prefill s | first token s |\n|---|---|---|---|")
    for name, stages in seconds.items():
        print(f"| {name} | " + " | ".join(f"{statistics.median(stages[stage]):.3f}" for stage in STAGES) + " |")
    first = [statistics.median(seconds[name]["first_token_s"]) for name in ("native", "onnx")]
    print(f"native is {first[1] / first[0]:.2f} times as fast")


if __name__ == "__main__":
    main()
