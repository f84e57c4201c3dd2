"""Context binaries of one decoder layer at real size: time, bytes per weight, where every node runs.

    python -m tests.benchmarks.npu_layer [--socs SM8550,SM8650,SM8750,SM8850] [--context 1024] [--scheme w4g32] [-o DIR]

The layer has the shapes of Qwen2.5-VL-3B's language model (hidden 2048, 16 heads, 2 key/value heads of 128 channels,
feed-forward 11008) with random weights and a vocabulary of 384, so that the layer is what is measured. Runs one prefill
and one decode in the emulator and in the simulation, and prints a Markdown table. Needs `pip install 'edgevlm[qnn]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgevlm.backends.npu import simulated_session
from edgevlm.backends.qnn import qnn_session
from edgevlm.package import Package, open_package
from export.npu.compile import NpuOptions, compile_npu
from export.pipeline import ExportOptions, export_package
from tests import tiny

SHAPES = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 2048,
}
HEADING = ("chip", "graph", "nodes on HTP", "on the CPU", "compiled in s", "MB", "MB per million weights")


def n_weights() -> int:
    """Weights of the layer and the small head."""
    hidden, mlp = SHAPES["hidden_size"], SHAPES["intermediate_size"]
    head_dim = hidden // SHAPES["num_attention_heads"]
    narrow = SHAPES["num_key_value_heads"] * head_dim
    return 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * mlp + tiny.VOCAB * hidden


def binary_rows(package: Package) -> list[tuple[str, ...]]:
    """One row per chip and graph."""
    assert package.manifest.npu is not None
    rows: list[tuple[str, ...]] = []
    for target in package.manifest.npu.targets:
        report = json.loads(package.file(f"lib/qnn-htp-{target.arch}/partition.json").read_text())
        for item in report:
            size = item["size_bytes"] / 1e6
            rows.append((
                f"{target.soc} ({target.arch})", item["graph"], f"{len(item['on_npu'])}", f"{len(item['on_cpu'])}",
                f"{item['compile_s']:.1f}", f"{size:.1f}", f"{size / (n_weights() / 1e6):.3f}",
            ))  # fmt: skip
    return rows


def emulated_noise(package: Package) -> dict[str, float]:
    """RMS of the emulator's logits against the simulation's over their spread, behind a prefill and one decode."""
    ids = np.arange(4, 4 + 40) % tiny.VOCAB
    found = {}
    rows = []
    for session in (simulated_session(package), qnn_session(package)):
        prefilled = session.prefill([ids], np.arange(len(ids)))
        rows.append((prefilled, session.step(7, len(ids))))
    for name, one, other in zip(("prefill", "decode"), *rows, strict=True):
        found[name] = float(np.sqrt(np.square(one - other).mean()) / one.std())
    return found


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socs", default="SM8550,SM8650,SM8750,SM8850")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--scheme", default="w4g32")
    parser.add_argument("-o", "--output", type=Path, help="keep the package here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = given.output or Path(scratch)
        path = directory / "package"
        if not path.exists():
            checkpoint = tiny.make_qwen2(directory / "checkpoint", **SHAPES)
            export_package(checkpoint, path, ExportOptions(scheme=given.scheme, verify=False))
        options = NpuOptions(socs=tuple(given.socs.split(",")), context=given.context, ranges="minmax")
        compile_npu(path, options, lambda stage, done, total: print(stage, done, total, file=sys.stderr))
        package = open_package(path)
        lines = [f"| {' | '.join(row)} |" for row in (HEADING, ("---",) * len(HEADING), *binary_rows(package))]
        print("\n".join(lines))
        print(f"\n{n_weights() / 1e6:.1f} million weights; emulator against simulation: {emulated_noise(package)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
