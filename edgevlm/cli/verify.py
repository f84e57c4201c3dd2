"""`edgevlm verify`: a package against its checkpoint, against transformers, and against its own fp32 graphs."""

from __future__ import annotations

import argparse

from edgevlm.cli.options import add_reference_options
from edgevlm.cli.output import answer, json_object, parity_table
from edgevlm.cli.parser import Subparsers
from edgevlm.cli.paths import input_file, source_argument
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import ParityError

JSON_FIELDS = {
    "package": "path of the package",
    "passed": "no check failed (an unverified one does not count)",
    "parity": "list of {stage, against, metric, status, value, bound, detail}",
    "error": "only when a check failed: {type, message, exit_code}",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "verify",
        help="check a package's numbers",
        description="Check a package's numbers. A failed check ends with exit code 5; the package is not changed.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument(
        "--source", type=source_argument, metavar="SOURCE", help="the checkpoint that it was exported from"
    )
    add_reference_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Verifies; returns the exit code."""
    from edgevlm.strict_json import to_json
    from export.verify import verify_package

    with ProgressBar() as progress:
        entries = verify_package(args.package, args.source, reference=args.reference, progress=progress)
    failed = [entry for entry in entries if entry.status == "fail"]
    if failed and args.json:
        message = f"{len(failed)} of {len(entries)} checks failed, the first: {failed[0].stage} {failed[0].metric}"
        error = {"type": "ParityError", "message": message, "exit_code": ParityError.exit_code}
        json_object({"package": str(args.package), "passed": False, "parity": to_json(entries), "error": error})
        return ParityError.exit_code
    if args.json:
        json_object({"package": str(args.package), "passed": True, "parity": to_json(entries)})
    else:
        answer(parity_table(entries))
    if failed:
        raise ParityError(f"{len(failed)} of {len(entries)} checks failed")
    return 0
