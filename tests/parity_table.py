"""README's parity table: every architecture in fp32 against transformers, with the same weights.

    python -m tests.parity_table [--write] [--no-real]

Rows: a tiny random checkpoint of each architecture (tests/tiny.py), then SmolLM2-135M and Qwen2.5-Coder-0.5B with their
real weights. Needs torch and transformers.
"""

from __future__ import annotations

import gc
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgevlm.backends.onnx import OnnxSession
from edgevlm.package import open_package
from edgevlm.spec import ParityEntry
from export import parity
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.pipeline import ExportOptions, export_package
from export.quant.rules import QuantPlan
from export.reference import Reference, load_reference, versions
from tests.tiny import MAKERS

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- parity:begin -->\n", "<!-- parity:end -->"
HEADING = ("checkpoint", "pictures and prompt ids", "vision features", "logits", "greedy tokens")


def main() -> int:
    """Prints the table, or writes it into README.md; returns 1 when a check failed."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-parity-") as folder:
        rows, failed = _rows(Path(folder), real="--no-real" not in sys.argv[1:])
    text = table(rows)
    if "--write" in sys.argv[1:]:
        page = README.read_text(encoding="utf-8")
        README.write_text(replace_table(page, text), encoding="utf-8")
    sys.stdout.write(text)
    sys.stdout.write("".join(f"FAILED {name}: {entry}\n" for name, entry in failed))
    return 1 if failed else 0


def _rows(folder: Path, real: bool) -> tuple[list[tuple[str, ...]], list[tuple[str, ParityEntry]]]:
    sources = [(f"{name}, tiny, random", maker(folder / name)) for name, maker in MAKERS.items()]
    if real:
        from tests.weights import qwen2_coder_0_5b, smollm2_135m

        sources += [("SmolLM2-135M-Instruct", smollm2_135m()), ("Qwen2.5-Coder-0.5B-Instruct", qwen2_coder_0_5b())]
    rows, failed = [], []
    for name, source in sources:
        entries = compare(source, folder)
        rows.append(row(name, entries))
        failed += [(name, entry) for entry in entries if entry.status != "pass"]
        gc.collect()
    return rows, failed


def compare(source: Path, folder: Path) -> list[ParityEntry]:
    """Returns the entries of the fp32 graphs of `source` against transformers."""
    reference = load_reference(source)
    if not reference.has_language:
        return _compare_tower(source, reference, Path(tempfile.mkdtemp(dir=folder)))
    path = Path(tempfile.mkdtemp(dir=folder)) / "package"
    options = ExportOptions(scheme="fp32", vision_scheme="fp32", verify=False)
    package = open_package(export_package(source, path, options))
    entries = [*parity.check_pictures(package, reference), *parity.check_prompt_ids(package, reference)]
    expected = parity.expect(reference)
    del reference
    gc.collect()
    prompt = package.manifest.prompt
    context = min(2048, package.manifest.decoder.max_position_embeddings)
    session = OnnxSession(package, context=context)
    return entries + parity.compare(session, expected, -1 if prompt is None else prompt.image_token_id)


def _compare_tower(source: Path, reference: Reference, folder: Path) -> list[ParityEntry]:
    """A bare tower is no package; its graph runs on its own."""
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    built = build_model(spec, checkpoint, QuantPlan("fp32", "fp32"), folder)
    expected = parity.expect(reference)
    if expected.pixel_values is None:
        raise ValueError(f"{source} has no tower")
    session = onnxruntime.InferenceSession(str(folder / built.graphs[0].path), providers=["CPUExecutionProvider"])
    features = np.asarray(session.run(["image_features"], {"pixel_values": expected.pixel_values})[0])
    return [parity.compare_features(features, expected)]


def row(name: str, entries: Sequence[ParityEntry]) -> tuple[str, ...]:
    """Returns the cells of one checkpoint."""
    by_stage: dict[str, list[ParityEntry]] = {}
    for entry in entries:
        by_stage.setdefault(entry.stage, []).append(entry)
    inputs = [e for stage in ("pixels", "pixel values", "tile grid", "prompt ids") for e in by_stage.get(stage, [])]
    return (
        name,
        _equal(inputs),
        _largest(by_stage.get("vision features", [])),
        _largest(by_stage.get("logits", [])),
        _tokens(by_stage.get("greedy tokens", [])),
    )


def _equal(entries: Sequence[ParityEntry]) -> str:
    if not entries:
        return ""
    wrong = [entry.stage for entry in entries if entry.status != "pass"]
    return f"differ: {', '.join(wrong)}" if wrong else "equal"


def _largest(entries: Sequence[ParityEntry]) -> str:
    """The largest absolute error of a stage; for logits also whether every argmax is the same."""
    cells = []
    for entry in entries:
        error = re.search(r"max abs error ([\d.e+-]+)", entry.detail)
        if error:
            cells.append(error.group(1) + ("" if entry.status == "pass" else " (fails)"))
        elif entry.value:
            cells.append(f"{entry.value:.0f} other argmax")
    return ", ".join(cells)


def _tokens(entries: Sequence[ParityEntry]) -> str:
    cells = []
    for entry in entries:
        total = int(entry.detail.split()[0])
        cells.append(f"{total - int(entry.value or 0)} of {total}")
    return ", ".join(cells)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns the table in Markdown, with the versions that it was made with."""
    found = versions()
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADING, ["---"] * len(HEADING), *rows)]
    names = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    return "\n".join([*lines, "", f"Errors are the largest absolute ones. Made with {names}.", ""])


def replace_table(page: str, text: str) -> str:
    """Returns the page with `text` between the markers."""
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}{text}{END}{tail}"


if __name__ == "__main__":
    sys.exit(main())
