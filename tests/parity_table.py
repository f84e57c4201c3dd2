"""README's parity table: every architecture in fp32 against transformers, with the same weights.

    python -m tests.parity_table [--write] [--no-real]

Rows: a tiny random checkpoint of each architecture (tests/tiny.py), then SmolLM2-135M and Qwen2.5-Coder-0.5B with their
real weights. `--write` puts the numbers into tests/golden/parity.json and the table into README.md; a test compares the
two. Needs torch and transformers.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.spec import ParityEntry
from edgevlm.telemetry import import_onnxruntime
from export import parity
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.quant.rules import QuantPlan
from export.reference.installed import versions
from export.reference.load import load_reference
from tests.tiny import MAKERS
from tests.verify_case import build_package, image_token_id, session_of

onnxruntime = import_onnxruntime()

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GOLDEN = ROOT / "tests" / "golden" / "parity.json"
BEGIN, END = "<!-- parity:begin -->\n", "<!-- parity:end -->"
HEADING = (
    "architecture",
    "checkpoint",
    "pixels, grids, prompt ids",
    "vision features",
    "logits",
    "same argmax",
    "greedy tokens",
)
INPUT_STAGES = ("pixels", "pixel values", "tile grid", "prompt ids")


@dataclass(frozen=True)
class Row:
    """One checkpoint; None where the model has no such stage."""

    architecture: str
    checkpoint: str
    inputs_equal: bool | None
    features_max_abs: float | None
    logits_max_abs: float | None
    n_rows: int
    n_same_argmax: int
    n_greedy: int
    n_same_greedy: int
    passed: bool


def main() -> int:
    """Prints the table, or writes it into README.md and parity.json; returns 1 when a check failed."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgevlm-parity-") as folder:
        for architecture, checkpoint, source in _sources(Path(folder), real="--no-real" not in sys.argv[1:]):
            entries, expected = compare(source, Path(folder))
            rows.append(row(architecture, checkpoint, entries, expected))
            for entry in entries:
                if entry.status != "pass":
                    sys.stderr.write(f"FAILED {checkpoint}: {entry}\n")
            gc.collect()
    record = {"versions": versions() | {"onnxruntime": onnxruntime.__version__}, "rows": [asdict(r) for r in rows]}
    text = table(record)
    if "--write" in sys.argv[1:]:
        GOLDEN.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        README.write_text(replace_table(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    sys.stdout.write(text)
    return 0 if all(r.passed for r in rows) else 1


def _sources(folder: Path, real: bool) -> Iterator[tuple[str, str, Path]]:
    for name, maker in MAKERS.items():
        yield name, "tiny, random", maker(folder / name)
    if real:
        from tests.weights import qwen2_coder_0_5b, smollm2_135m

        yield "llama", "SmolLM2-135M-Instruct", smollm2_135m()
        yield "qwen2", "Qwen2.5-Coder-0.5B-Instruct", qwen2_coder_0_5b()


def compare(source: Path, folder: Path) -> tuple[list[ParityEntry], parity.Expected]:
    """Returns the entries of the fp32 graphs of `source` against transformers, and what transformers said."""
    reference = load_reference(source)
    graphs = Path(tempfile.mkdtemp(dir=folder))
    expected = parity.expect(reference)
    if not reference.has_language:
        return tower_entries(source, expected, graphs), expected
    package = build_package(source, graphs)
    entries = [*parity.check_pictures(package, reference), *parity.check_prompt_ids(package, reference)]
    del reference
    gc.collect()
    return entries + parity.compare(session_of(package), expected, image_token_id(package)), expected


def tower_entries(source: Path, expected: parity.Expected, folder: Path) -> list[ParityEntry]:
    """A bare tower is no package; its graph runs on its own."""
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    built = build_model(spec, checkpoint, QuantPlan("fp32", "fp32"), folder)
    session = onnxruntime.InferenceSession(str(folder / built.graphs[0].path), providers=["CPUExecutionProvider"])
    features = np.asarray(session.run(["image_features"], {"pixel_values": expected.pixel_values})[0])
    return parity.compare_features(features, expected)


def row(architecture: str, checkpoint: str, entries: Sequence[ParityEntry], expected: parity.Expected) -> Row:
    """Returns the row of one checkpoint."""
    inputs = [entry.status == "pass" for entry in entries if entry.stage in INPUT_STAGES]
    greedy = [entry for entry in entries if entry.stage == "greedy tokens"]
    argmax = [entry for entry in entries if entry.metric == "rows of another argmax"]
    logits = [rows for rows in (expected.text_logits, expected.prompt_logits) if rows is not None]
    n_rows = sum(len(rows) for rows in logits)
    n_greedy = len(expected.text_greedy) + len(expected.prompt_greedy)
    return Row(
        architecture=architecture,
        checkpoint=checkpoint,
        inputs_equal=all(inputs) if inputs else None,
        features_max_abs=_max_abs(entries, "vision features"),
        logits_max_abs=_max_abs(entries, "logits"),
        n_rows=n_rows,
        n_same_argmax=n_rows - int(sum(entry.value or 0 for entry in argmax)),
        n_greedy=n_greedy,
        n_same_greedy=n_greedy - int(sum(entry.value or 0 for entry in greedy)),
        passed=all(entry.status == "pass" for entry in entries),
    )


def _max_abs(entries: Sequence[ParityEntry], stage: str) -> float | None:
    values = [entry.value for entry in entries if entry.stage == stage and entry.metric == parity.MAX_ABS_METRIC]
    return values[0] if values else None


def table(record: dict[str, Any]) -> str:
    """Returns the table of parity.json's content in Markdown, with the versions that it was made with."""
    rows = [Row(**fields) for fields in record["rows"]]
    lines = [HEADING, ["---"] * len(HEADING), *map(_cells, rows)]
    names = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    made = f"Errors are the largest absolute ones, of features and logits in fp32. Made with {names}."
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + ["", made, ""])


def _cells(found: Row) -> tuple[str, ...]:
    return (
        f"`{found.architecture}`",
        found.checkpoint,
        "-" if found.inputs_equal is None else "equal" if found.inputs_equal else "DIFFER",
        "-" if found.features_max_abs is None else f"{found.features_max_abs:.1e}",
        "-" if found.logits_max_abs is None else f"{found.logits_max_abs:.1e}",
        f"{found.n_same_argmax} of {found.n_rows}" if found.n_rows else "-",
        f"{found.n_same_greedy} of {found.n_greedy}" if found.n_greedy else "-",
    )


def replace_table(page: str, text: str) -> str:
    """Returns the page with `text` between the markers."""
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}{text}{END}{tail}"


if __name__ == "__main__":
    sys.exit(main())
