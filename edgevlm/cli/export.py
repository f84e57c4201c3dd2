"""`edgevlm export`: a checkpoint becomes a package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.cli.options import add_reference_options
from edgevlm.cli.output import answer, json_object, note, parity_table, shown_path, size, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file, output_file, source_argument
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from edgevlm.spec import Manifest

JSON_FIELDS = {
    "package": "path of the package",
    "name": "name of the model",
    "arch": "model type",
    "language_scheme": "scheme of the language model",
    "vision_scheme": "scheme of the vision tower",
    "mean_bits_per_weight": "of all quantised tensors, scales included",
    "sizes": "list of {component, parameters, size_bytes}",
    "worst_tensors": "list of {name, scheme, relative_rms}, the largest quantisation errors first",
    "parity": "list of {stage, against, metric, status, value, bound, detail}",
    "elapsed_s": "seconds that the export took",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a package",
        description="Turn a checkpoint into a package and verify it. Prints the package's path.",
    )
    parser.add_argument(
        "source",
        type=source_argument,
        metavar="SOURCE",
        help="snapshot directory, .gguf file, composed .json or its directory, or Hub id",
    )
    parser.add_argument(
        "-o", "--output", type=output_file, metavar="DIR", help="package directory (default: <name>-edgevlm-<scheme>)"
    )
    parser.add_argument(
        "--scheme", metavar="NAME", help="language model: w4g32[z], w4g64[z], w4g128[z], w4g32-mix, w8, fp16 or fp32"
    )
    parser.add_argument("--vision-scheme", default="w8g64", metavar="NAME", help="vision tower (default: w8g64)")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="PATTERN=SCHEME",
        help="scheme of the tensors whose name matches the regular expression; the first match wins; may be repeated",
    )
    parser.add_argument(
        "--tie-embeddings",
        action="store_true",
        help="store head and embedding once, where the checkpoint holds two roundings of one table",
    )
    parser.add_argument(
        "--mix-bits", type=number(float, 4, 9), metavar="X", help="mean bits per weight that w4g32-mix aims at"
    )
    parser.add_argument(
        "--max-tiles", type=number(int, 1), metavar="N", help="most tiles per picture (default: the model's)"
    )
    parser.add_argument(
        "--context", type=number(int, 1), metavar="N", help="default context in tokens (default: at most 4096)"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the model (default: from the source)")
    template = parser.add_mutually_exclusive_group()
    template.add_argument("--chat-template", type=input_file, metavar="FILE", help="use this chat template")
    template.add_argument(
        "--no-chat-template", action="store_true", help="leave the chat template out; the package continues plain text"
    )
    parser.add_argument(
        "--target", metavar="ARCH", help="compile for this architecture as the last step: x86_64 or arm64"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing package")
    parser.add_argument("--no-verify", action="store_true", help="leave the checks out; the package says so")
    add_reference_options(parser)
    return parser


def _override(text: str) -> tuple[str, str]:
    pattern, equals, scheme = text.rpartition("=")
    if not (pattern and equals and scheme):
        raise argparse.ArgumentTypeError(f"expected PATTERN=SCHEME, found {text!r}")
    return pattern, scheme


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    import time

    from edgevlm.package import open_package
    from export.pipeline import ExportOptions, export_package

    started = time.perf_counter()
    options = ExportOptions(
        scheme=args.scheme,
        vision_scheme=args.vision_scheme,
        overrides=tuple(args.override),
        mix_bits=args.mix_bits,
        tie_embeddings=args.tie_embeddings,
        max_tiles=args.max_tiles,
        context=args.context,
        force=args.force,
        verify=not args.no_verify,
        reference=args.reference,
        name=args.name,
        chat_template=_read_template(args.chat_template),
        no_chat_template=args.no_chat_template,
    )
    if args.target:
        from tvm_schedules.compile import check_arch

        check_arch(args.target)
    with ProgressBar() as progress:
        path = export_package(args.source, args.output, options, progress)
        if args.target:
            from export import probes
            from tvm_schedules.compile import compile_package

            compile_package(path, args.target, probes.text(), progress)
    manifest = open_package(path).manifest
    elapsed_s = time.perf_counter() - started
    if args.json:
        json_object(_as_json(path, manifest, elapsed_s))
    else:
        _report(manifest, elapsed_s)
        answer(shown_path(path))
    return 0


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat-template {path} cannot be read as text: {error}") from error


def _as_json(path: Path, manifest: Manifest, elapsed_s: float) -> dict[str, object]:
    from edgevlm.strict_json import to_json

    return {
        "package": shown_path(path),
        "name": manifest.name,
        "arch": manifest.arch,
        "language_scheme": manifest.quant.language_scheme,
        "vision_scheme": manifest.quant.vision_scheme,
        "mean_bits_per_weight": manifest.quant.mean_bits_per_weight,
        "sizes": to_json(manifest.sizes),
        "worst_tensors": to_json(manifest.quant.worst_tensors),
        "parity": to_json(manifest.parity),
        "elapsed_s": elapsed_s,
    }


def _report(manifest: Manifest, elapsed_s: float) -> None:
    note(table([("component", "parameters", "size"), *size_rows(manifest)]))
    if manifest.quant.worst_tensors:
        note("\nlargest quantisation errors (relative rms)")
        rows = [(t.name, t.scheme, f"{t.relative_rms:.4f}") for t in manifest.quant.worst_tensors[:8]]
        note(table([("tensor", "scheme", "error"), *rows]))
    if manifest.parity:
        note("\n" + parity_table(manifest.parity))
    note(f"\nexported in {elapsed_s:.1f} s")


def size_rows(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Returns the rows of the size table, with a total."""
    rows = [(s.component, f"{s.parameters:,}", size(s.size_bytes)) for s in manifest.sizes]
    total = sum(s.parameters for s in manifest.sizes), sum(s.size_bytes for s in manifest.sizes)
    return [*rows, ("total", f"{total[0]:,}", size(total[1]))]
