"""`edgevlm inspect`: what is in a package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.cli.export import size_rows
from edgevlm.cli.output import answer, json_object, parity_table, table
from edgevlm.cli.parser import Subparsers

if TYPE_CHECKING:
    from edgevlm.package import Package

JSON_FIELDS = {
    "package": "path of the package",
    "manifest": "edgevlm.json as it stands (docs/package-format.md)",
    "hashes": "'match', or 'unchecked' without --hash (a difference is an error)",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what is in a package",
        description="Check a package and show what is in it.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="package directory")
    parser.add_argument("--hash", action="store_true", help="compare the sha256 of every file, too")
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the package; returns the exit code."""
    from edgevlm.package import open_package
    from edgevlm.strict_json import to_json

    package = open_package(args.package)
    if args.hash:
        package.check_hashes()
    hashes = "match" if args.hash else "unchecked"
    if args.json:
        json_object({"package": str(args.package), "manifest": to_json(package.manifest), "hashes": hashes})
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
    facts.append(("hashes", hashes))
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)]
    parts.append(table([("component", "parameters", "size"), *size_rows(m)]))
    parts.append(table([("file", "bytes", "sha256"), *((f.path, f"{f.size_bytes}", f.sha256[:16]) for f in m.files)]))
    if m.parity:
        parts.append(parity_table(m.parity))
    return "\n\n".join(parts)
