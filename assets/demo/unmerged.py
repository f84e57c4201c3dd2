"""Writes a model without the downsampler, a token for each patch, for a training that shows what merging them costs.

    python assets/demo/unmerged.py --start assets/demo --out runs/unmerged
    EDGEVLM_COMPOSED=runs/unmerged/composed.json python assets/demo/train.py --start runs/unmerged --out runs/patches

A block of four equal patches gave what each of them gives now: the downsampler's matrix becomes the sum of its four
blocks of columns. So the language model meets embeddings it knows, four times as many.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

FILES = ("composed.json", "projector.safetensors", "low_rank.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model without the downsampler.")
    parser.add_argument("--start", type=Path, required=True, help="directory of composed.json and its tensors")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    composed, projector, low_rank = (options.start / name for name in FILES)
    fields = json.loads(composed.read_text())
    factor = fields.get("scale_factor", 2)
    tensors = load_file(projector)
    weight = tensors["downsampler.weight"]
    summed = weight.float().unflatten(1, (factor**2, -1)).sum(1)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {"downsampler.weight": summed.to(weight.dtype)}, options.out / projector.name)
    shutil.copyfile(low_rank, options.out / low_rank.name)
    fields |= {"scale_factor": 1, "name": f"{fields['name']}-unmerged"}
    (options.out / composed.name).write_text(json.dumps(fields, indent=2) + "\n")


if __name__ == "__main__":
    main()
