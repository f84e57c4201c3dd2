"""Packets and 32-bit words that the HVX GEMMs execute per multiply-accumulate, counted by the plugin of ../arm64.

    python -m tests.tvm_schedules.hexagon.instruction_counts --write    # after a change that is meant

writes instruction_counts.json, which a test compares with, and the table of docs/npu.md. v68 and v73 do not run here:
for them the words of the loop over groups are counted in the assembly.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.tvm_schedules.arm64.instruction_counts import plugin
from tests.tvm_schedules.gemm_problem import Problem
from tests.tvm_schedules.hexagon import emulator

BASELINE = Path(__file__).with_name("instruction_counts.json")
PAGE = Path(__file__).resolve().parents[3] / "docs/npu.md"
BEGIN, END = "<!-- hvx:begin -->", "<!-- hvx:end -->"
N, K = 64, 512
ROWS = {"prefill": 16, "batch": 2, "decode": 1}
UNITS = ("packets", "words")


def measure(directory: Path) -> dict[str, dict[str, int]]:
    """Unit → kernel → count of one call on N x K weights."""
    counter = plugin(directory)
    found: dict[str, dict[str, int]] = {}
    for unit in UNITS:
        counts = directory / f"{unit}.counts"
        environment = {"COUNTS": str(counts), **({"COUNT_WORDS": "1"} if unit == "words" else {})}
        kernels = emulator.Kernels(counter, environment)
        for scheme in emulator.SCHEMES:
            for tile, rows in ROWS.items():
                tile_rows = getattr(emulator.VARIANTS[emulator.EXECUTED], f"{tile}_tile").rows
                problem = Problem(*scheme, rows=rows, tile_rows=tile_rows, arch="hexagon", n=N, k=K)
                y = np.zeros((rows, N), np.float32)
                name = emulator.kernel_name(*scheme, tile)
                kernels.call(name, *problem.arguments, y, N, K, problem.row_tiles, 0, 0, 0, N // 32)
        kernels.close()
        lines = [line.rsplit(" ", 1) for line in counts.read_text().splitlines()]
        found[unit] = {name.removeprefix("ev_"): int(count) for name, count in sorted(lines)}
    return found


def loop_words(variant: str, directory: Path) -> dict[str, float]:
    """Kernel → words per multiply-accumulate of the loop over groups, of 4-bit codes without zero points."""
    schemes = tuple(scheme for scheme in emulator.SCHEMES if scheme in ((4, 32, False), (4, 128, False)))
    path = directory / f"{variant}.s"
    emulator.compiled(emulator.VARIANTS[variant], path, schemes)
    functions = re.split(r"^ev_(\w+):.*$", path.read_text(), flags=re.MULTILINE)[1:]
    words = {}
    for name, body in zip(functions[::2], functions[1::2], strict=True):
        loop = _loop(body.splitlines())
        macs = sum("vrmpy(" in line for line in loop) * 128
        words[name] = sum(bool(re.match(r"\t\t\S", line)) for line in loop) / macs
    return dict(sorted(words.items()))


def _loop(lines: list[str]) -> list[str]:
    """Lines of the shortest loop with a product and a float in it."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"(\.L\w+):", line))}
    loops = []
    for i, line in enumerate(lines):
        jump = re.search(r"jump\S* (\.L\w+)", line)
        if jump and labels.get(jump[1], i) < i:
            loops.append(lines[labels[jump[1]] : i + 1])
        if ":endloop" in line:
            begin = next(j for j in range(i, -1, -1) if re.match(r"\.L\S+:", lines[j]))
            loops.append(lines[begin : i + 1])
    loops = [loop for loop in loops if any("vrmpy(" in line for line in loop) and any("qf32" in line for line in loop)]
    return min(loops, key=len)


def table(found: dict[str, dict[str, int]], newer: dict[str, dict[str, float]]) -> str:
    """The table of docs/npu.md."""
    heading = ["kernel", "exact", "v66 packets per MAC", "v66 words per MAC", *(f"{name[3:]} words" for name in newer)]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for name in found["words"]:
        macs = N * K * ROWS[name.rsplit("_", 1)[1]]
        counts = [f"{found[unit][name] / macs:.4f}" for unit in UNITS]
        static = [f"{words[name]:.4f}" if name in words else "" for words in newer.values()]
        lines.append(f"| `{name}` | yes | {' | '.join([*counts, *static])} |")
    return "\n".join(lines)


def page_with(text: str) -> str:
    """docs/npu.md with the table between its markers."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Prints the counts, or writes them and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch))
        newer = {name: loop_words(name, Path(scratch)) for name in emulator.VARIANTS if name != emulator.EXECUTED}
    both = {"executed": found, "loops": newer}
    if arguments.write:
        BASELINE.write_text(json.dumps(both, indent=1) + "\n")
        PAGE.write_text(page_with(table(found, newer)), encoding="utf-8")
    else:
        sys.stdout.write(json.dumps(both, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
