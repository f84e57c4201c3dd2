"""`edgevlm android`: a real phone through adb."""

from __future__ import annotations

import argparse
import time
from typing import Any

from edgevlm.cli.output import answer, json_object, size, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import UsageError

JSON_FIELDS = {
    "phone": "{serial, model, android}",
    "folder": "name that the package has on the phone; null with bench",
    "size_bytes": "bytes that were pushed; null with bench",
    "elapsed_s": "seconds that it took",
    "benchmark": "null with push, or the app's own JSON: {package, device, kernels, threads, runs}",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "android",
        help="push a package to a phone, or measure there",
        description="Drive the demo app on a phone through adb. `push` copies what a phone reads of a package and lets "
        "the app import it; `bench` runs the app's benchmark page and prints its numbers.",
    )
    parser.add_argument("action", choices=("push", "bench"), metavar="ACTION", help="push or bench")
    parser.add_argument("package", type=input_file, nargs="?", metavar="PACKAGE", help="package directory to push")
    parser.add_argument(
        "--serial", metavar="SERIAL", help="which phone, as `adb devices` names it (default: the only one)"
    )
    parser.add_argument(
        "--timeout", type=number(float, 1), default=900.0, metavar="SECONDS",
        help="how long bench may take (default: 900)",
    )  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> int:
    """Pushes or measures; returns the exit code."""
    from edgevlm.adb import find_device
    from edgevlm.package import open_package
    from edgevlm.phone import ARCH, check_phone, push_package, run_benchmark

    if (args.action == "push") != (args.package is not None):
        raise UsageError("push needs a PACKAGE" if args.action == "push" else "bench takes no PACKAGE; push it first")
    package = None if args.package is None else open_package(args.package)
    if package is not None:
        package.device_files(ARCH)
    device = find_device(args.serial)
    phone = check_phone(device)
    start = time.perf_counter()
    folder = size_bytes = benchmark = None
    if package is not None:
        with ProgressBar() as progress:
            folder, size_bytes = push_package(device, package, progress)
    else:
        benchmark = run_benchmark(device, args.timeout)
    elapsed_s = time.perf_counter() - start
    if args.json:
        told = {"serial": phone.serial, "model": phone.model, "android": phone.android}
        json_object(
            {"phone": told, "folder": folder, "size_bytes": size_bytes, "elapsed_s": elapsed_s, "benchmark": benchmark}
        )
    elif benchmark is not None:
        answer(_benchmark_table(benchmark))
    else:
        where = f"{phone.model} ({phone.serial})"
        answer(f"{folder}: {size(size_bytes or 0)} on {where} in {elapsed_s:.1f} s; the app imports it")
    return 0


def _benchmark_table(found: dict[str, Any]) -> str:
    rows = [("run", "encode ms", "prefill ms", "tok/s", "decode ms", "tok/s", "peak MB", "heat before", "after")]
    for i, one in enumerate(found["runs"], start=1):
        stages = one["stages"]
        rows.append((
            str(i), f"{stages['encode_ms']:.0f}", f"{stages['prefill_ms']:.0f}", f"{stages['prefill_tok_per_s']:.1f}",
            f"{stages['decode_ms']:.0f}", f"{stages['decode_tok_per_s']:.1f}", f"{stages['peak_rss_bytes'] / 1e6:.0f}",
            one["thermal_before"], one["thermal_after"],
        ))  # fmt: skip
    words = f"{found['package']} on {found['device']}: kernels {found['kernels']}, {found['threads']} threads"
    return f"{table(rows)}\n{words}"
