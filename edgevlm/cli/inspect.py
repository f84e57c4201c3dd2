"""`edgevlm inspect`: what is in a package."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgevlm.cli.export import size_rows
from edgevlm.cli.output import answer, json_object, parity_table, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file

if TYPE_CHECKING:
    from edgevlm.package import Package

DEFAULT_ARRAY = (32, 32, 64)
DEFAULT_BALANCE = 200.0
MAX_ARRAY = 4096

JSON_FIELDS = {
    "package": "path of the package",
    "manifest": "edgevlm.json as it stands (docs/package-format.md)",
    "hashes": "'match', or 'unchecked' without --hash (a difference is an error)",
    "npu": "with --npu: 'array', 'products' and 'advice' (docs/npu.md); null without",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what is in a package",
        description="Check a package and show what is in it.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument("--hash", action="store_true", help="compare the sha256 of every file, too")
    group = parser.add_argument_group("NPU")
    group.add_argument(
        "--npu",
        action="store_true",
        help="how well the model's products fill an NPU's MAC array, instead of the contents; only shapes are read",
    )
    group.add_argument(
        "--npu-array",
        type=_array,
        default=DEFAULT_ARRAY,
        metavar="KxNxROWS",
        help="multipliers along k and n, and the step in which rows enter (default: 32x32x64)",
    )
    group.add_argument(
        "--npu-balance",
        type=number(float, 0.001),
        default=DEFAULT_BALANCE,
        metavar="X",
        help=f"MACs that the array does while memory moves one byte (default: {DEFAULT_BALANCE:g})",
    )
    return parser


def _array(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() and 0 < int(size) <= MAX_ARRAY for size in sizes):
        raise argparse.ArgumentTypeError(f"expected three numbers from 1 to {MAX_ARRAY} as in 32x32x64, found {text!r}")
    return tuple(map(int, sizes))


def run(args: argparse.Namespace) -> int:
    """Prints the package; returns the exit code."""
    from edgevlm.package import open_package
    from edgevlm.strict_json import to_json

    package = open_package(args.package)
    if args.hash:
        package.check_hashes()
    hashes = "match" if args.hash else "unchecked"
    report = None
    if args.npu:
        from export.npu.report import package_report

        report = package_report(package, args.npu_array, args.npu_balance)
    if args.json:
        manifest = to_json(package.manifest)
        npu = None if report is None else report.as_json()
        json_object({"package": str(args.package), "manifest": manifest, "hashes": hashes, "npu": npu})
    elif report is not None:
        answer(report.as_text())
    else:
        answer(_text(package, hashes))
    return 0


def _text(package: Package, hashes: str) -> str:
    m = package.manifest
    d = m.decoder
    facts: list[tuple[str, Any]] = [
        ("name", m.name),
        ("architecture", m.arch),
        ("source", m.source),
        ("created", m.created),
        ("language scheme", m.quant.language_scheme),
        ("vision scheme", m.quant.vision_scheme),
        ("bits per weight", f"{m.quant.mean_bits_per_weight:.2f}"),
        ("layers", d.num_hidden_layers),
        ("hidden size", d.hidden_size),
        ("heads", f"{d.num_attention_heads} query, {d.num_key_value_heads} key/value, {d.head_dim} wide"),
        ("vocabulary", d.vocab_size),
        ("context", f"{d.default_context} by default, {d.max_position_embeddings} at most"),
    ]
    if m.processor is not None and m.prompt is not None:
        p = m.processor
        facts.append(("pictures", f"{p.scheme}, tiles of {p.tile_px} px, {m.prompt.tokens_per_tile} tokens each"))
    else:
        facts.append(("pictures", "none (a language model)"))
    if m.generation.not_applied:
        facts.append(("not applied", f"{', '.join(m.generation.not_applied)} (of generation_config.json)"))
    facts.append(("hashes", hashes))
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)]
    parts.append(table([("component", "parameters", "size"), *size_rows(m)]))
    parts.append(table([("file", "bytes", "sha256"), *((f.path, f"{f.size_bytes}", f.sha256[:16]) for f in m.files)]))
    if m.parity:
        parts.append(parity_table(m.parity))
    return "\n\n".join(parts)
