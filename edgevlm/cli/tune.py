"""`edgevlm tune`: searches the native kernels' tile sizes on real machines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgevlm.cli.output import answer, json_object, note, shown_path, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import output_file
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import BackendError, UsageError
from edgevlm.strict_json import to_json

if TYPE_CHECKING:
    from tvm_schedules.tune import SlotSpace
    from tvm_schedules.tune_space import Slot

SLOTS: tuple[Slot, ...] = ("prefill", "batch", "decode", "attend_prefill", "attend_decode", "tower")
"""What can be tuned; a test compares it with `tvm_schedules.tune_space`."""

JSON_FIELDS = {
    "record": "path of the record; null with --dry-run",
    "boards": "names of the machines that measured",
    "space": "list of {variant, slot, axes, n_points, default, legal}; with --dry-run",
    "results": "list of {variant, slot, default, best, gain (default time over best), noise, n_candidates, taken}",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "tune",
        help="search the native kernels' tile sizes on real machines",
        description="Search the native kernels' tile sizes on this machine, or on boards that a TVM RPC tracker hands "
        "out. The record is written after every candidate, so Ctrl-C keeps what was measured; the next build of the "
        "native library takes what gains more than 2 %.",
    )
    parser.add_argument(
        "--variant", action="append", metavar="NAME",
        help="CPU variant, such as avx2; repeatable (default: all that this machine runs)",
    )  # fmt: skip
    parser.add_argument(
        "--slot", action="append", choices=SLOTS, metavar="SLOT",
        help=f"what to tune: {', '.join(SLOTS)}; repeatable (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=number(int, 1), default=9, metavar="N",
        help="alternations with the default in the last comparison, a third of it for every candidate (default: 9)",
    )  # fmt: skip
    parser.add_argument("--tracker", metavar="HOST:PORT", help="measure on boards of this TVM RPC tracker")
    parser.add_argument("--key", metavar="KEY", help="the boards' key at the tracker")
    parser.add_argument(
        "--boards", type=number(int, 1), default=1, metavar="N", help="boards to ask the tracker for (default: 1)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        help="record to continue or begin (default: the build's own)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the space and measure nothing")
    return parser


def run(args: argparse.Namespace) -> int:
    """Tunes; returns the exit code."""
    from tvm_schedules import tune
    from tvm_schedules.targets import BY_NAME
    from tvm_schedules.tune_measure import fleet, host_variants, local_board
    from tvm_schedules.tune_record import record_path, worth_taking

    host, port = _tracker(args)
    for name in args.variant or ():
        if name not in BY_NAME:
            raise UsageError(f"there is no variant {name!r}; known: {', '.join(BY_NAME)}")
    runnable = host_variants()
    variants = [BY_NAME[name] for name in args.variant] if args.variant else runnable
    slots = [slot for slot in SLOTS if not args.slot or slot in args.slot]
    if len({variant.arch for variant in variants}) > 1:
        raise UsageError("the variants are of different architectures; tune one architecture at a time")
    if args.dry_run:
        _print_space(args, tune.spaces(variants, slots))
        return 0
    if args.tracker and not args.variant:
        raise UsageError("--tracker needs --variant: what the boards are cannot be asked from here")
    alien = [variant.name for variant in variants if variant not in runnable]
    if not variants or (alien and not args.tracker):
        names = ", ".join(alien) or "any variant"
        raise BackendError(f"this machine cannot run {names}; boards that do are named with --tracker")
    if args.output is not None and args.output.is_dir():
        raise UsageError(f"cannot write the record to {args.output}: it is a directory; give the name of a file in it")
    path = args.output or record_path(variants[0].arch)
    boards = fleet(host, port, args.key, args.boards) if args.tracker else [local_board()]
    cpu = f"boards {args.key}" if args.tracker else tune.cpu_name()
    try:
        with ProgressBar() as progress:
            record = tune.tune(variants, slots, boards, cpu, path, tune.Settings(samples=args.samples), progress)
    except KeyboardInterrupt:
        if path.exists():
            note(f"edgevlm: what was measured is in {shown_path(path)}")
        raise
    entries = [
        (variant.name, slot, entry)
        for variant in variants
        for slot in slots
        if (entry := getattr(record.variants[variant.name], slot)) is not None
    ]
    if args.json:
        results = [
            {
                "variant": name, "slot": slot, "default": entry.default, "best": entry.best, "gain": entry.gain,
                "noise": entry.noise, "n_candidates": len(entry.candidates), "taken": worth_taking(entry),
            }
            for name, slot, entry in entries
        ]  # fmt: skip
        json_object({"record": str(path), "boards": [board.name for board in boards], "space": [], "results": results})
        return 0
    rows = [("variant", "slot", "default", "best", "gain", "noise", "candidates", "taken")]
    for name, slot, entry in entries:
        rows.append((
            name, slot, _point(entry.default), _point(entry.best), f"{entry.gain:.3f}", f"{entry.noise:.3f}",
            str(len(entry.candidates)), "yes" if worth_taking(entry) else "no",
        ))  # fmt: skip
    answer(table(rows))
    answer(f"record: {shown_path(path)}; build the native library again to take it")
    return 0


def _tracker(args: argparse.Namespace) -> tuple[str, int]:
    if not args.tracker:
        return "", 0
    host, _, port = args.tracker.rpartition(":")
    if not host or not port.isdigit() or not args.key:
        raise UsageError("--tracker takes HOST:PORT, and needs --key")
    return host, int(port)


def _point(point: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items())


def _print_space(args: argparse.Namespace, space: Sequence[SlotSpace]) -> None:
    if args.json:
        json_object({"record": None, "boards": [], "space": to_json(list(space)), "results": []})
        return
    rows = [("variant", "slot", "points", "legal", "default", "values")]
    for s in space:
        values = "; ".join(f"{axis} {', '.join(map(str, all_values))}" for axis, all_values in s.axes.items())
        rows.append((s.variant, s.slot, str(s.n_points), str(len(s.legal)), _point(s.default), values))
    answer(table(rows))
