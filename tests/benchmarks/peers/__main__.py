"""`python -m tests.benchmarks.peers --work DIR MODEL.gguf=PACKAGE [...]`: edgevlm beside its peers, in turn.

Every runtime stands in a process of its own; one works at a time, round after round, each round with a new text.
Writes docs/benchmarks/peers.json and .png and the table between the markers of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgevlm.package import open_package
from edgevlm.tokenizer import Tokenizer
from tests.benchmarks.peers.install import NOT_HERE, REQUIREMENTS, Model, environment, prepared

ROOT = Path(__file__).resolve().parents[3]
RUNNER = Path(__file__).with_name("runner.py")
TEXT = ROOT / "assets" / "text" / "devils-dictionary.txt"
PAGE, FOLDER = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
PEERS = tuple(name for name in REQUIREMENTS if name != "convert")
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"


@dataclass
class Runtime:
    """A running process and its measurements."""

    name: str
    process: subprocess.Popen[str]
    open_s: float = 0.0
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def ask(self, ids: list[int], n_new: int) -> None:
        """One round."""
        answer = _exchange(self, {"ids": ids, "n_new": n_new})
        self.prefill.append(len(ids) / answer["prefill_s"])
        self.decode.append(n_new / answer["decode_s"])
        self.peak_mb = answer["peak_mb"]


def start(name: str, command: list[str]) -> Runtime:
    """Starts a runtime and waits until its model is open."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runtime = Runtime(name, process)
    runtime.open_s = _exchange(runtime, None)["open_s"]
    return runtime


def _exchange(runtime: Runtime, request: dict[str, Any] | None) -> dict[str, Any]:
    stdin, stdout, stderr = (
        _stream(s) for s in (runtime.process.stdin, runtime.process.stdout, runtime.process.stderr)
    )
    if request is not None:
        print(json.dumps(request), file=stdin, flush=True)
    line = stdout.readline()
    if not line:
        raise RuntimeError(f"{runtime.name} ended: {stderr.read()[-2000:]}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _stream(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("a runtime was started without pipes")
    return stream


def compare(model: Model, package: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of every runtime on one model."""
    opened = open_package(package)
    ids = Tokenizer.open(opened).encode(TEXT.read_text())
    size = arguments.prompt_tokens
    threads = str(arguments.threads)
    own = [sys.executable, "-m", "tests.benchmarks.peers.own", str(package)]
    runtimes = [start("edgevlm", [*own, "native", threads]), start("edgevlm, onnxruntime", [*own, "onnx", threads])]
    if arguments.variant:
        runtimes.append(start(f"edgevlm, {arguments.variant}", [*own, "native", threads, arguments.variant]))
    for peer in arguments.peers:
        python, converted = environment(arguments.work, peer), prepared(arguments.work, peer, model)
        runtimes.append(start(peer, [str(python), str(RUNNER), peer, str(converted), threads]))
    for round_ in range(arguments.rounds + 1):
        for runtime in runtimes:
            begin = round_ * size
            runtime.ask(ids[begin : begin + size], arguments.new_tokens)
            rates = f"{runtime.prefill[-1]:.1f} / {runtime.decode[-1]:.1f} tok/s"
            print(f"{model.key} round {round_}: {runtime.name} {rates}", file=sys.stderr, flush=True)
    rows = []
    for runtime in runtimes:
        _stream(runtime.process.stdin).close()
        runtime.process.wait(60)
        rows.append({
            "model": model.key, "runtime": runtime.name, "open_s": runtime.open_s, "peak_mb": runtime.peak_mb,
            "prefill_tok_per_s": statistics.median(runtime.prefill[1:]), "prefill_runs": runtime.prefill[1:],
            "decode_tok_per_s": statistics.median(runtime.decode[1:]), "decode_runs": runtime.decode[1:],
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians, and edgevlm's lead in each round's terms."""
    lines = ["| model | runtime | prompt, tok/s | decode, tok/s | open | peak memory | edgevlm is faster by |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    first = {row["model"]: row for row in rows if row["runtime"] == "edgevlm"}
    for row in rows:
        lead = "-"
        if row["runtime"] != "edgevlm":
            own = first[row["model"]]
            ratios = [own[key] / row[key] for key in ("prefill_tok_per_s", "decode_tok_per_s")]
            lead = f"{ratios[0]:.2f} and {ratios[1]:.2f}"
        lines.append(
            f"| {row['model']} | {row['runtime']} | {row['prefill_tok_per_s']:.1f} | {row['decode_tok_per_s']:.1f} | "
            f"{row['open_s']:.2f} s | {row['peak_mb']:.0f} MB | {lead} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars per model: prompt and decode."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(9, 2.6 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False)
    for line, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        for column, (key, title) in enumerate((("prefill_tok_per_s", "prompt"), ("decode_tok_per_s", "decode"))):
            axis = axes[line][column]
            names = [row["runtime"] for row in own][::-1]
            values = [row[key] for row in own][::-1]
            bars = axis.barh(
                names, values, color=["#1f77b4" if name.startswith("edgevlm") else "#9aa5b1" for name in names]
            )
            axis.bar_label(bars, fmt="%.0f", padding=3)
            axis.set_title(f"{model}: {title}, tokens per second", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlim(0, max(values) * 1.15)
    figure.savefig(path, dpi=110)


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON, the picture, and the page's table."""
    FOLDER.mkdir(exist_ok=True)
    conditions = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "threads": arguments.threads,
        "prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens, "rounds": arguments.rounds,
        "cpu": _cpu(), "load": os.getloadavg()[0], "versions": {name: REQUIREMENTS[name] for name in arguments.peers},
        "not_compared": NOT_HERE,
    }  # fmt: skip
    (FOLDER / "peers.json").write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")
    plot(rows, FOLDER / "peers.png")
    missing = "; ".join(f"{name}: {reason}" for name, reason in NOT_HERE.items())
    text = "\n".join((
        BEGIN, table(rows), "",
        f"{conditions['date']}, {conditions['cpu']}, {arguments.threads} threads, a prompt of",
        f"{arguments.prompt_tokens} tokens, {arguments.new_tokens} new ones, medians of {arguments.rounds} alternating",
        f"rounds; load of the machine at the end {conditions['load']:.1f}. Not compared: {missing}.",
        "", "![bars](benchmarks/peers.png)", END,
    ))  # fmt: skip
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(BEGIN)] + text + page[page.index(END) + len(END) :])


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> int:
    """Measures what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="GGUF=PACKAGE", help="a compiled w4g32 package and its source")
    parser.add_argument("--work", type=Path, required=True, help="environments and converted models are kept here")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--variant", help="also edgevlm with this CPU variant forced")
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for pair in arguments.models:
        gguf, _, package = pair.partition("=")
        tied = open_package(package).manifest.quant.tied_at_import
        model = Model(Path(gguf).stem, Path(gguf), tied_apart=tied, requantise="q4_0" not in gguf.lower() and tied)
        rows += compare(model, Path(package), arguments)
    print(table(rows))
    if not arguments.dry:
        write(rows, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
