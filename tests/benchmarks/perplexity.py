"""Perplexity of one language model under every scheme, through the exported graphs as onnxruntime runs them.

    python -m tests.benchmarks.perplexity CHECKPOINT [--schemes fp32,w8,...] [--windows N] [--scratch DIR] [--json F]

The text is assets/text/devils-dictionary.txt (public domain; the mix is measured on other pages of the book). Windows
of 512 tokens start from an empty cache; positions 64 to 510 are scored. KL and top-1 agreement are against the fp32
graphs on the same positions. Prints a markdown table, which docs/quantisation.md holds. Each package is deleted after
its row.

`embedding-w8` is w4g32 with only the embedding at 8 bits, and `first-layers` gives w4g32-mix's bytes to the first
layers instead: what the measured allocation must beat.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.package import Package, open_package
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tokenizer import Tokenizer
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.divergence import Bound, DivergenceMeter
from export.pipeline import ExportOptions, export_package

ort = import_onnxruntime()

TEXT = Path(__file__).resolve().parents[2] / "assets" / "text" / "devils-dictionary.txt"
SCHEMES = "fp32,w8,w4g32,w4g64,w4g128,w4g32z,embedding-w8,first-layers,w4g32-mix"
WINDOW_TOKENS = 512
FIRST_SCORED = 64
MIX_BITS, LOW_BITS, HIGH_BITS = 5.5, 4.5, 8.25

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One scheme's numbers."""

    scheme: str
    perplexity: float
    ratio: float
    mean_kl: float
    top1: float
    mean_bits_per_weight: float
    size_mb: float
    export_s: float


class Decoder:
    """The two language graphs of a package, on whole windows."""

    def __init__(self, package: Package) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._embed = ort.InferenceSession(str(package.graph("embed_tokens")), options, providers=providers)
        path = str(package.graph("decoder_model_merged"))
        self._decoder = ort.InferenceSession(path, options, providers=providers)
        self._empty = {
            entry.past_name: np.zeros((1, *(0 if axis == "P" else int(axis) for axis in entry.shape)), np.float32)
            for entry in package.manifest.decoder.cache
        }

    def logits(self, ids: NDArray[np.int64]) -> Float32:
        """Returns the rows FIRST_SCORED to the last but one, (T, vocab)."""
        n_tokens = len(ids)
        feeds: dict[str, NDArray[Any]] = {
            "inputs_embeds": self._embed.run(None, {"input_ids": ids[None]})[0],
            "attention_mask": np.ones((1, n_tokens), np.int64),
            "position_ids": np.arange(n_tokens, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(n_tokens - FIRST_SCORED, np.int64),
            **self._empty,
        }
        rows: Float32 = self._decoder.run(["logits"], feeds)[0][0, :-1]
        return rows


def negative_log_likelihood(logits: Float32, targets: NDArray[np.int64]) -> float:
    """Returns the sum of -log p(target) over rows, in nats."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        wide = row.astype(np.float64)
        wide -= wide.max()
        total += float(np.log(np.exp(wide).sum()) - wide[target])
    return total


def options_for(scheme: str, checkpoint: str) -> ExportOptions:
    """Returns the export options of a row."""
    if scheme not in ("embedding-w8", "first-layers"):
        return ExportOptions(scheme=scheme, verify=False, force=True)
    opened = open_checkpoint(checkpoint)
    language = arch_spec(opened.config, opened.files).language
    assert language is not None
    overrides = [(r".*embed_tokens\.weight", "w8")]
    if not language.tied:
        overrides.append((r"lm_head\.weight", "w8"))
    if scheme == "first-layers":
        share = (MIX_BITS - LOW_BITS) / (HIGH_BITS - LOW_BITS)
        n_layers = round(share * len(language.layer_kinds))
        overrides.append((rf".*layers\.({'|'.join(map(str, range(n_layers)))})\..*", "w8"))
    return ExportOptions(scheme="w4g32", overrides=tuple(overrides), verify=False, force=True)


def windows_of(package: Package, n_windows: int) -> list[NDArray[np.int64]]:
    ids = Tokenizer.open(package).encode(TEXT.read_text(encoding="utf-8"))
    found = [np.asarray(ids[i : i + WINDOW_TOKENS], np.int64) for i in range(0, len(ids), WINDOW_TOKENS)]
    return [ids for ids in found if len(ids) == WINDOW_TOKENS][:n_windows]


def measure(checkpoint: str, schemes: list[str], n_windows: int, scratch: Path) -> list[Row]:
    """Returns one row per scheme; the first must be fp32, whose logits lie in `scratch` meanwhile."""
    rows: list[Row] = []
    teacher: np.memmap[Any, Any] | None = None
    n_rows = WINDOW_TOKENS - FIRST_SCORED - 1
    for scheme in schemes:
        started = time.perf_counter()
        package = open_package(export_package(checkpoint, scratch / "package", options_for(scheme, checkpoint)))
        export_s = time.perf_counter() - started
        windows = windows_of(package, n_windows)
        decoder, meter, total = Decoder(package), DivergenceMeter(Bound(0.0, 0.0)), 0.0
        if teacher is None:
            shape = (len(windows), n_rows, package.manifest.decoder.vocab_size)
            teacher = np.memmap(scratch / "teacher.f32", np.float32, "w+", shape=shape)
        for index, ids in enumerate(windows):
            logits = decoder.logits(ids)
            total += negative_log_likelihood(logits, ids[FIRST_SCORED + 1 :])
            if scheme == "fp32":
                teacher[index] = logits
            else:
                meter.add(teacher[index], logits)
        perplexity = float(np.exp(total / (len(windows) * n_rows)))
        size = sum(entry.size_bytes for entry in package.manifest.files if entry.path.startswith("onnx/"))
        row = Row(
            scheme,
            perplexity,
            perplexity / rows[0].perplexity if rows else 1.0,
            meter.mean_kl if rows else 0.0,
            meter.top1 if rows else 1.0,
            package.manifest.quant.mean_bits_per_weight,
            size / 1e6,
            export_s,
        )
        rows.append(row)
        print(
            f"| {scheme} | {row.perplexity:.2f} | {100 * (row.ratio - 1):+.1f} % | {row.mean_kl:.4f} | "
            f"{100 * row.top1:.1f} % | {row.mean_bits_per_weight:.2f} | {row.size_mb:.0f} |",
            flush=True,
        )
        del decoder
        shutil.rmtree(package.path)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--schemes", default=SCHEMES, help="comma-separated, fp32 first")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    schemes = arguments.schemes.split(",")
    if schemes[0] != "fp32":
        parser.error("--schemes must start with fp32, which the others are compared with")
    print("| scheme | perplexity | against fp32 | mean KL | top-1 | bits per weight | onnx MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        rows = measure(arguments.checkpoint, schemes, arguments.windows, Path(scratch))
    if arguments.json:
        found = {"checkpoint": Path(arguments.checkpoint).name, "windows": arguments.windows}
        arguments.json.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
