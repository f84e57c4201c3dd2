"""Remake processors.json: `python -m tests.golden.make_processors` (needs torch and transformers).

What transformers' own processors make of random pictures, for random processor files: grids, and sha256 of the pixels.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import tiny
from tests.processor_configs import ProcessorCase, draw, picture, sizes

GOLDEN = Path(__file__).parent / "processors.json"
SEEDS = range(100_000, 100_120)
FAILURES = (ValueError, TypeError, KeyError, AttributeError, OSError)
"""What transformers raises for files that it cannot work with."""


class TransformersProcessor:
    """The processor of a snapshot directory that has the files of `case`. Raises what transformers raises."""

    def __init__(self, case: ProcessorCase, source: Path) -> None:
        from transformers import AutoImageProcessor, SiglipImageProcessorPil

        self.nested = case.architecture != "siglip"
        named = case.said().get("image_processor_type") or case.said().get("feature_extractor_type")
        if not self.nested and not named:  # AutoImageProcessor knows no bare tower's class
            self.processor = SiglipImageProcessorPil.from_pretrained(source)
        else:
            self.processor = AutoImageProcessor.from_pretrained(source, backend="pil")

    def pixels(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixel values (C, 3, S, S) as a model casts them, and (rows, cols), (0, 0) for one tile."""
        if not self.nested:
            return np.asarray(self.processor(Image.fromarray(image))["pixel_values"]).astype(np.float32), (0, 0)
        found = self.processor([[Image.fromarray(image)]], return_row_col_info=True)
        values = np.asarray(found["pixel_values"]).astype(np.float32)[0]
        return values, (found["rows"][0][0], found["cols"][0][0])


def record(values: np.ndarray, grid: tuple[int, int]) -> dict[str, Any]:
    """Returns what the golden file holds of one picture."""
    digest = hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()
    return {"shape": list(values.shape), "grid": list(grid), "sha256": digest}


def answers(case: ProcessorCase, source: Path, seed: int) -> list[dict[str, Any]] | None:
    """Returns a record of each picture; None where transformers cannot work with the files."""
    try:
        processor = TransformersProcessor(case, source)
        return [record(*processor.pixels(picture(*size))) for size in sizes(seed)]
    except FAILURES:
        return None


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: tiny.MAKERS[name](Path(folder) / name) for name in ("smolvlm", "idefics3", "siglip")}
        rows = []
        for seed in SEEDS:
            case = draw(seed)
            found = answers(case, case.write(sources[case.architecture]), seed)
            files = {"own": case.own, "shared": case.shared}
            rows.append({"seed": seed, "architecture": case.architecture, **files, "drawn": case.drawn, "found": found})
    lines = ",\n".join(json.dumps(row) for row in rows)
    GOLDEN.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
