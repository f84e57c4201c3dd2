"""SmolVLM-256M's real shapes with random weights: export time, peak memory, package size, speed, and that it runs.

    python tests/benchmarks/smolvlm_256m.py TOKENIZER_GGUF [--dir DIR] [--scheme NAME] [--json]

Export and run each happen in a process of their own, so that the peak (ru_maxrss) is theirs alone; of an export that
asks transformers in a further process, the peak is the larger one's.
Prints a row for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MAX_EXPORT_BYTES_ABOVE_LARGEST = 2_000_000_000
PICTURE = ROOT / "assets" / "coffee.jpg"
N_PREFILL, N_DECODE = 512, 64


@dataclass(frozen=True)
class Result:
    """What one run measured; bytes are peaks of resident memory."""

    scheme: str
    export_s: float
    verify_export_s: float
    export_peak_bytes: int
    verify_export_peak_bytes: int
    reference_export_peak_bytes: int | None
    """With the comparison with transformers; None where it is not installed."""
    largest_tensor_bytes: int
    package_bytes: int
    prefill_tok_per_s: float
    decode_tok_per_s: float
    encode_s_per_tile: float
    picture_tiles: int
    picture_answer_tokens: int
    run_peak_bytes: int
    machine: str


CHECKED_EXPORT = """
import sys
from export.pipeline import ExportOptions, export_package
source, out, scheme, reference = sys.argv[1:]
export_package(source, out, ExportOptions(scheme=scheme, force=True, reference=reference == "reference"))
"""
"""An export with its checks, with or without the comparison with transformers, which most machines do not have."""


LAUNCHER = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""A small process in between: a child's ru_maxrss begins at its parent's size, and that of pytest may be gigabytes."""


def run_measured(arguments: list[str]) -> tuple[float, int, str]:
    """Runs python with `arguments`; returns seconds, peak resident bytes and stdout."""
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, "-c", LAUNCHER, peak.name, sys.executable, *arguments]
        started = time.perf_counter()
        code = subprocess.call(command, cwd=ROOT, stdout=output)
        elapsed_s = time.perf_counter() - started
        output.seek(0)
        text = output.read().decode()
        peak_bytes = int(peak.read() or 0) * 1024
    if code:
        raise SystemExit(f"python {' '.join(arguments)} ended with exit code {code}: {text}")
    return elapsed_s, peak_bytes, text


def measure(tokenizer_gguf: Path, directory: Path, scheme: str) -> Result:
    """Builds the snapshot in `directory`, exports it twice (with and without checks) and runs it."""
    from export.checkpoint import open_checkpoint
    from export.reference.installed import is_available
    from tests import smolvlm_256m

    snapshot = smolvlm_256m.make_snapshot(directory / "smolvlm-256m", tokenizer_gguf)
    largest = max(info.size_bytes for info in open_checkpoint(snapshot).tensors().values())
    package = directory / f"smolvlm-256m-{scheme}"
    export = ["-m", "edgevlm", "export", str(snapshot), "--scheme", scheme, "-o", str(package), "--force"]
    export_s, export_peak, _ = run_measured([*export, "--no-verify"])
    checked = ["-c", CHECKED_EXPORT, str(snapshot), str(package), scheme]
    reference_peak = run_measured([*checked, "reference"])[1] if is_available() else None
    verify_s, verify_peak, _ = run_measured([*checked, "alone"])
    speed = _speed(package)
    picture = [
        "-m",
        "edgevlm",
        "run",
        str(package),
        "What is this?",
        "--image",
        str(PICTURE),
        "--max-new-tokens",
        "8",
        "--json",
    ]
    _, run_peak, answer = run_measured(picture)
    response: dict[str, Any] = json.loads(answer)
    return Result(
        scheme=scheme,
        export_s=export_s,
        verify_export_s=verify_s,
        export_peak_bytes=export_peak,
        verify_export_peak_bytes=verify_peak,
        reference_export_peak_bytes=reference_peak,
        largest_tensor_bytes=largest,
        package_bytes=sum(path.stat().st_size for path in package.rglob("*") if path.is_file()),
        picture_tiles=response["n_tiles"],
        picture_answer_tokens=len(response["token_ids"]),
        run_peak_bytes=run_peak,
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        **speed,
    )


def _speed(package_dir: Path) -> dict[str, float]:
    """Prefill and decode rates of the language model, and seconds per tile, on fixed random input."""
    import numpy as np

    from edgevlm.backends.onnx import OnnxSession
    from edgevlm.package import open_package

    session = OnnxSession(open_package(package_dir), context=N_PREFILL + N_DECODE)
    random = np.random.default_rng(0)
    ids = random.integers(3, 49152, N_PREFILL)
    session.prefill([ids[:128]], np.arange(128))
    session.truncate(0)
    started = time.perf_counter()
    session.prefill([ids], np.arange(N_PREFILL))
    prefilled = time.perf_counter()
    for position in range(N_PREFILL, N_PREFILL + N_DECODE):
        session.step(int(ids[position % N_PREFILL]), position)
    decoded = time.perf_counter()
    tiles = random.standard_normal((4, 3, 512, 512), dtype=np.float32)
    session.encode(tiles)
    encoding = time.perf_counter()
    session.encode(tiles)
    encoded = time.perf_counter()
    return {
        "prefill_tok_per_s": N_PREFILL / (prefilled - started),
        "decode_tok_per_s": N_DECODE / (decoded - prefilled),
        "encode_s_per_tile": (encoded - encoding) / 4,
    }


def markdown_row(result: Result) -> str:
    """Returns the header and one row for docs/benchmarks.md."""
    reference = result.reference_export_peak_bytes
    cells = {
        "scheme": result.scheme,
        "export": f"{result.export_s:.1f} s",
        "with checks": f"{result.verify_export_s:.1f} s",
        "export peak": f"{result.export_peak_bytes / 1e6:,.0f} MB",
        "peak with checks": f"{result.verify_export_peak_bytes / 1e6:,.0f} MB",
        "and transformers": "not installed" if reference is None else f"{reference / 1e6:,.0f} MB",
        "package": f"{result.package_bytes / 1e6:,.1f} MB",
        "prefill 512": f"{result.prefill_tok_per_s:,.0f} tok/s",
        "decode 64": f"{result.decode_tok_per_s:,.0f} tok/s",
        "a tile": f"{result.encode_s_per_tile:.2f} s",
        "picture run": f"{result.picture_tiles} tiles, peak {result.run_peak_bytes / 1e6:,.0f} MB",
    }
    rows = [list(cells), ["---"] * len(cells), list(cells.values())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an export of SmolVLM-256M's shapes with random weights.")
    parser.add_argument("tokenizer", type=Path, help="SmolLM2 GGUF file, for its tokenizer")
    parser.add_argument("--dir", type=Path, help="where the snapshot (513 MB) and packages go (default: temporary)")
    parser.add_argument("--scheme", default="w4g32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smolvlm-256m-") as scratch:
        result = measure(options.tokenizer, options.dir or Path(scratch), options.scheme)
    print(json.dumps(asdict(result)) if options.json else markdown_row(result))


if __name__ == "__main__":
    main()
