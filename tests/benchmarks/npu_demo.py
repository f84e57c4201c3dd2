"""A package on the NPU's emulator beside its simulation and the CPU's int4: one picture, then text.

    edgevlm compile PACKAGE --target qnn-htp --soc SM8650 --context 256
    python -m tests.benchmarks.npu_demo PACKAGE FP32_PACKAGE [--image FILE] [--question TEXT] [--tokens 8]

FP32_PACKAGE is the same checkpoint exported with --scheme fp32 --vision-scheme fp32: the teacher of the KL. Prints one
JSON object: each backend's tokens, where two part and how far the two candidates' logits lie apart there, cosines of
picture tokens, and mean KL over text. Needs `pip install 'edgevlm[qnn]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.npu import simulated_session
from edgevlm.backends.qnn import qnn_session
from edgevlm.generate import TokenLoop
from edgevlm.image import load_image, normalize
from edgevlm.model import load
from edgevlm.package import Package, open_package
from edgevlm.tiling import cut_tiles, plan_tiles
from export.divergence import token_cosines
from export.npu.distance import cpu_logits, float_features, float_logits, mean_kl, measured_ids, session_logits

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("onnx", "qnn-sim", "qnn")
N_TEXT_TOKENS = 48

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """One backend's greedy tokens and the logits that each was taken from."""

    tokens: list[int]
    logits: list[Float32]
    text: str
    elapsed_s: float


def answer(package: Path, backend: str, question: str, image: Path, n_tokens: int) -> Answer:
    """Asks about the picture, greedily; goes on behind an end token, for the demo answers in one word."""
    rows: list[Float32] = []
    start = time.perf_counter()
    with load(package, backend=backend, threads=2) as model:
        session: Any = model.session
        model.loop = TokenLoop(session, ())
        for name in ("prefill", "step"):
            setattr(session, name, _recorded(getattr(session, name), rows))
        response = model.generate(question, [image], max_new_tokens=n_tokens, temperature=0)
    tokens = list(response.token_ids)
    return Answer(tokens, rows[: len(tokens)], response.text, time.perf_counter() - start)


def _recorded(call: Any, rows: list[Float32]) -> Any:
    def recorded(*arguments: Any) -> Float32:
        logits: Float32 = call(*arguments)
        rows.append(logits.copy())
        return logits

    return recorded


def parting(first: Answer, second: Answer) -> dict[str, Any] | None:
    """Where the tokens differ: step, both tokens, how far apart `first` sees them; None when they never do."""
    for step, (one, other) in enumerate(zip(first.tokens, second.tokens, strict=False)):
        if one != other:
            row = first.logits[step]
            gap = float(row[one] - row[other])
            return {"step": step, "tokens": [one, other], "logit_gap": gap, "logit_spread": float(row.std())}
    return None


def tiles_of(package: Package, image: Path) -> Float32:
    """The picture as the tower takes it."""
    spec = package.manifest.processor
    assert spec is not None
    pixels = load_image(image)
    plan = plan_tiles(pixels.shape[0], pixels.shape[1], spec)
    return normalize(cut_tiles(pixels, plan, spec), spec)


def compare(path: Path, teacher_path: Path, image: Path, question: str, n_tokens: int) -> dict[str, Any]:
    """Runs everything; returns what is printed."""
    package, teacher = open_package(path), open_package(teacher_path)
    answers = {backend: answer(path, backend, question, image, n_tokens) for backend in BACKENDS}
    tiles = tiles_of(package, image)
    expected = float_features(teacher, tiles)
    sessions = {"qnn-sim": simulated_session(package), "qnn": qnn_session(package)}
    ids = measured_ids(package, N_TEXT_TOKENS)
    truth = float_logits(teacher, ids)
    kl = {"onnx": mean_kl(truth, cpu_logits(package, ids))}
    cosines = {}
    for backend, session in sessions.items():
        found = token_cosines(session.encode(tiles), expected)
        cosines[backend] = {"mean": float(found.mean()), "smallest": float(found.min())}
        session.release("vision")
        kl[backend] = mean_kl(truth, session_logits(session, ids))
    return {
        "package": path.name,
        "tiles": len(tiles),
        "answers": {
            name: {"tokens": a.tokens, "text": a.text, "elapsed_s": a.elapsed_s} for name, a in answers.items()
        },
        "partings": {
            f"{one} / {other}": parting(answers[one], answers[other])
            for one, other in (("qnn-sim", "qnn"), ("onnx", "qnn"))
        },
        "vision_cosine_to_fp32": cosines,
        "mean_kl_to_fp32": kl,
        "kl_over_cpu_int4": {backend: kl[backend] / kl["onnx"] for backend in sessions},
    }


def main() -> int:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "assets/blue-rectangle.png")
    parser.add_argument("--question", default="What color is the shape? Describe the picture.")
    parser.add_argument("--tokens", type=int, default=8)
    given = parser.parse_args()
    found = compare(given.package, given.teacher, given.image, given.question, given.tokens)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
