"""Executed instructions of the arm64 kernels on fixed problems, counted by a qemu plugin of our own.

    python -m tests.tvm_schedules.arm64.instruction_counts --write    # after a change that is meant

writes instruction_counts.json, which a test compares with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.tvm_schedules.arm64 import emulator
from tests.tvm_schedules.attention_problem import Cache
from tests.tvm_schedules.gemm_problem import Problem
from tests.tvm_schedules.tower_problem import Attention, Product
from tvm_schedules.targets import BY_NAME
from tvm_schedules.tower_kernels import LINEAR_ROWS

BASELINE = Path(__file__).with_name("instruction_counts.json")
N, K = 64, 512
GEMMS = (
    (4, 32, False, "prefill", 64), (4, 32, False, "batch", 4), (4, 32, False, "decode", 1),
    (4, 128, False, "prefill", 64), (4, 128, False, "decode", 1), (4, 32, True, "decode", 1),
    (8, 128, False, "prefill", 64), (8, 128, False, "decode", 1),
)  # fmt: skip
"""(bits, group, zero point, tile, rows)."""


def plugin(directory: Path) -> Path:
    """Compiles count_plugin.c for this machine."""
    target = directory / "count_plugin.so"
    flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(target), str(emulator.HERE / "count_plugin.c")], check=True)
    return target


def measure(variant: str, directory: Path) -> dict[str, int]:
    """Kernel → executed instructions, on the least CPU that has the variant."""
    counts = directory / f"{variant}.counts"
    running = emulator.Kernels(variant, emulator.CPUS[variant], plugin=plugin(directory), counts=counts)
    run_all(running)
    running.close()
    lines = [line.rsplit(" ", 1) for line in counts.read_text().splitlines()]
    prefix = f"ev_{variant}_"
    return {name.removeprefix(prefix): int(count) for name, count in sorted(lines) if name.startswith(prefix)}


def run_all(kernels: emulator.Kernels) -> None:
    """Calls every kernel that is counted."""
    rng = np.random.default_rng(0)
    for bits, group, zero_point, tile, rows in GEMMS:
        tile_rows = getattr(BY_NAME[kernels.variant], f"{tile}_tile").rows
        problem = Problem(bits, group, zero_point, rows, tile_rows, "arm64", n=N, k=K)
        y = np.zeros((rows, N), np.float32)
        name = f"gemm_w{bits}g{group}{'z' if zero_point else ''}_{tile}"
        kernels.call(name, *problem.arguments, y, N, K, problem.row_tiles, 0, 0, 0, N // 16)
    x, gamma = rng.standard_normal((8, K)).astype(np.float32), rng.random(K).astype(np.float32)
    for name, group in (("quantise_rms_g32", 32), ("quantise_none_g128", 128)):
        codes, scales = np.zeros((1, K // 8, 8, 8), np.int8), np.zeros((1, K // group, 8, 2), np.float32)
        kernels.call(name, x, gamma, gamma, codes, scales, scales.view(np.int32).copy(), K, 8, 1e-5, 0, 8)
    for rows, tile in ((48, "prefill"), (1, "decode")):
        cache = Cache(kernels.call, (8, 8), 64)
        qkv = rng.standard_normal((128, cache.width)).astype(np.float32)
        cache.append(qkv)
        cache.n_past = 128 - rows
        cache.attend(qkv[:rows].copy(), [0, 128], 0, tile)
    product = Product(64, LINEAR_ROWS * 4, LINEAR_ROWS, "arm64", k=K)
    y = np.zeros((LINEAR_ROWS * 4, 192), np.float32)
    for epilogue in ("add", "gelu"):
        kernels.call(f"tower_gemm_{epilogue}_g64", *product.arguments, y, 192, K, 192, 0, 0, 4, 0, 12)
    qkv = rng.standard_normal((196, 3 * 64)).astype(np.float32)
    Attention(kernels.call, BY_NAME[kernels.variant].prefill_tile.rows, 64)(qkv, 1)


def main() -> int:
    """Prints the counts, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    directory = emulator.ROOT / "build/arm64"
    emulator.kernel_caller()
    found = {variant: measure(variant, directory) for variant in emulator.CPUS}
    text = json.dumps(found, indent=1) + "\n"
    if arguments.write:
        BASELINE.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
