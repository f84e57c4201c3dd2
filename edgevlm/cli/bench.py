"""`edgevlm bench`: medians per stage."""

from __future__ import annotations

import argparse

from edgevlm.cli.options import add_load_options, load_arguments
from edgevlm.cli.output import answer, json_object, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file, output_file
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import UsageError

JSON_FIELDS = {
    "package": "path of the package",
    "backend": "backend that ran",
    "n_prompt_tokens": "tokens of the prompt",
    "n_new_tokens": "tokens decoded",
    "n_tiles": "picture tiles encoded",
    "repeat": "runs that the medians are of",
    "stages": "list of {stage, median_s, min_s, max_s, rate, unit}",
    "peak_memory_bytes": "largest resident memory of the process",
    "limits": "null, or {giga_operations_per_s, giga_bytes_per_s}: what this machine can do at most, measured",
    "kernels": "list of {stage, kernel, calls, seconds, share, giga_operations_per_s, giga_bytes_per_s}; of native",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a package on this machine",
        description="Measure a package on this machine: load, picture encoding, prefill, decode; medians of the runs.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument(
        "--prompt-tokens", type=number(int, 1), default=512, metavar="N", help="length of the prompt (default: 512)"
    )
    parser.add_argument(
        "--new-tokens", type=number(int, 1), default=64, metavar="N", help="tokens to decode (default: 64)"
    )
    parser.add_argument(
        "--repeat", type=number(int, 1), default=3, metavar="N", help="runs, after one that is not counted (default: 3)"
    )
    parser.add_argument("--image", type=input_file, metavar="FILE", help="encode this picture, too")
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="draw the kernels under the machine's roof (PNG)"
    )
    add_load_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    from edgevlm.backends.opening import choose_backend
    from edgevlm.bench import measure
    from edgevlm.package import open_package
    from edgevlm.roofline import NO_KERNELS, check_plot, draw_roofline
    from edgevlm.strict_json import to_json

    if args.plot is not None:
        check_plot(args.plot)
        if choose_backend(open_package(args.package), args.backend) != "native":
            raise UsageError(NO_KERNELS)
    with ProgressBar() as progress:
        result = measure(
            args.package,
            n_prompt_tokens=args.prompt_tokens,
            n_new_tokens=args.new_tokens,
            repeat=args.repeat,
            image=args.image,
            load_arguments=load_arguments(args),
            progress=progress,
        )
    if args.plot is not None:
        draw_roofline(result, args.plot)
    if args.json:
        json_object(to_json(result))
        return 0
    rows = [("stage", "median s", "min s", "max s", "rate", "")]
    for s in result.stages:
        rate = "" if s.rate is None else f"{s.rate:.1f}"
        rows.append((s.stage, f"{s.median_s:.3f}", f"{s.min_s:.3f}", f"{s.max_s:.3f}", rate, s.unit))
    answer(table(rows))
    if result.limits is not None:
        limits = result.limits
        kernels = [("stage", "kernel", "calls", "ms", "share", "GOPS", "of limit", "GB/s", "of limit")]
        for k in result.kernels:
            kernels.append(
                (k.stage, k.kernel, str(k.calls), f"{k.seconds * 1e3:.1f}", f"{k.share:.1%}",
                 f"{k.giga_operations_per_s:.0f}", f"{k.giga_operations_per_s / limits.giga_operations_per_s:.0%}",
                 f"{k.giga_bytes_per_s:.1f}", f"{k.giga_bytes_per_s / limits.giga_bytes_per_s:.0%}")
            )  # fmt: skip
        answer("")
        answer(table(kernels))
        answer(
            f"limits of this machine: {limits.giga_operations_per_s:.0f} GOPS of int8 dot products on registers, "
            f"{limits.giga_bytes_per_s:.1f} GB/s of memory"
        )
    answer(f"peak memory {result.peak_memory_bytes / 1e6:.0f} MB, backend {result.backend}, medians of {result.repeat}")
    return 0
