"""Loops of AArch64 assembly, and llvm-mca's estimate of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MCA = "llvm-mca-19"
_JUMP = re.compile(r"\s+(?:b\.\w+|cbnz|cbz|tbnz|tbz|b)\s+(?:.*,\s*)?(\.\w+)$")


def innermost_loop(path: Path, mnemonic: str) -> list[str]:
    """Instructions of the shortest loop that has `mnemonic`, without its closing jump."""
    lines = [line.split("//")[0].rstrip() for line in path.read_text().splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.?\w+:", line)}
    loops = []
    for i, line in enumerate(lines):
        jump = _JUMP.match(line)
        if jump and labels.get(jump[1], len(lines)) < i:
            body = [text for text in lines[labels[jump[1]] + 1 : i] if re.match(r"\s+[a-z]", text)]
            if count(body, mnemonic):
                loops.append(body)
    assert loops, f"{path} has no loop with {mnemonic}"
    return min(loops, key=len)


def count(instructions: list[str], mnemonic: str) -> int:
    """How often the mnemonic occurs."""
    return sum(instruction.split()[0] == mnemonic for instruction in instructions)


def cycles(instructions: list[str], cpu: str, scratch: Path) -> float:
    """llvm-mca's cycles of one iteration: all in the first-level cache. Skips without llvm-mca-19."""
    if shutil.which(MCA) is None:
        pytest.skip(f"{MCA} is missing; `make deps` installs it")
    source = scratch / "loop.s"
    source.write_text("\n".join(instructions) + "\n")
    command = [MCA, "-mtriple=aarch64", "-mattr=+i8mm", f"-mcpu={cpu}", "-iterations=1000", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"Total Cycles:\s+(\d+)", text)
    assert match
    return int(match[1]) / 1000
