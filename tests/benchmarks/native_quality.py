"""Native against onnxruntime on the same codes, and onnxruntime against itself with inputs moved by a rounding error.

    python -m tests.benchmarks.native_quality PACKAGE [--positions 1024] [--noise 1e-7]

Both round activations to int8, and a sum that falls on the other side of the edge between two codes changes the layers
behind it by whole steps. How far two correct programs drift apart by that alone shows onnxruntime beside itself, its
embeddings multiplied by 1 + noise: no agreement between two implementations can be expected to be better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.native import NativeSession
from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.ort import cancellable
from edgevlm.package import Package, open_package
from edgevlm.tokenizer import Tokenizer

Float32 = NDArray[np.float32]
TEXT = Path(__file__).resolve().parents[2] / "assets" / "text" / "devils-dictionary.txt"
WINDOW = 256
ROWS = 16


def native_logits(package: Package, ids: NDArray[np.int64]) -> Float32:
    """Logits of every position of one window, float cache."""
    table = [(16, 16)] * package.manifest.decoder.num_hidden_layers
    session = NativeSession(package, context=WINDOW, kv_bits=table)
    rows = []
    for start in range(0, len(ids), ROWS):
        part = ids[start : start + ROWS]
        rows.append(session.score(part, np.arange(len(part)) - 1, np.arange(start, start + len(part))))
        session.accept(np.arange(len(part)))
    return np.concatenate(rows)


def onnx_logits(package: Package, ids: NDArray[np.int64], noise: float) -> Float32:
    """The same through onnxruntime, the embeddings multiplied by 1 + noise (uniform, seeded)."""
    session = OnnxSession(package, context=WINDOW)
    rows = []
    random = np.random.default_rng(0)
    for start in range(0, len(ids), ROWS):
        part = ids[start : start + ROWS]
        with cancellable(None) as running:
            session._ids[0, : len(part)] = part
            session._embed_rows(len(part), 0, running)
            session._embeds[0, : len(part)] *= 1 + noise * random.uniform(-1, 1, (len(part), 1))
            positions = np.arange(start, start + len(part))
            rows.append(session._decode(len(part), positions, session.n_past, running, keep=0).copy())
        session.n_past += len(part)
    return np.concatenate(rows)


def report(name: str, first: Float32, second: Float32) -> None:
    """One line: relative distance, agreement, and agreement where the first is decided."""
    distance = np.linalg.norm(first - second) / np.linalg.norm(first)
    same = first.argmax(1) == second.argmax(1)
    top = np.sort(first, axis=1)[:, -2:]
    decided = top[:, 1] - top[:, 0] > 1
    shares = f"{same.mean():.4f} | {same[decided].mean():.4f} | {decided.mean():.2f}"
    print(f"| {name} | {distance:.2e} | {shares} |", flush=True)


def main() -> None:
    """Measures one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--noise", type=float, default=1e-7)
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    ids = np.array(Tokenizer.open(package).encode(TEXT.read_text())[: arguments.positions], np.int64)
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    plain = np.concatenate([onnx_logits(package, window, 0.0) for window in windows])
    moved = np.concatenate([onnx_logits(package, window, arguments.noise) for window in windows])
    native = np.concatenate([native_logits(package, window) for window in windows])
    print(f"{package.manifest.name}, {len(ids)} positions; decided: the likeliest leads by a logit or more")
    print("| compared with onnxruntime | relative distance | same argmax | decided | share |\n|---|---|---|---|---|")
    report("onnxruntime again", plain, np.concatenate([onnx_logits(package, window, 0.0) for window in windows]))
    report(f"onnxruntime, inputs moved by {arguments.noise:g}", plain, moved)
    report("native", plain, native)


if __name__ == "__main__":
    main()
