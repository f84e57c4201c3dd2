"""`edgevlm tiles`: how a picture is cut, and how many tokens that costs."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.cli.output import answer, json_object, note, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file, output_file
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from edgevlm.spec import ProcessorSpec

JSON_FIELDS = {
    "image": "the picture's file",
    "height_px": "its height",
    "width_px": "its width",
    "schemes": "list of {scheme, rows, cols, n_tiles, n_tokens}; n_tiles counts the thumbnail",
    "output": "the drawing's file, or null",
}

DRAWN_BY_DEFAULT = "bluelm_v"


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "tiles",
        help="show how a picture is cut into tiles",
        description="Print how a picture is cut into tiles and how many tokens each way costs; -o draws the grid.",
    )
    parser.add_argument("image", type=input_file, metavar="IMAGE", help="a picture")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--package", type=input_file, metavar="DIR", help="as this package cuts it")
    which.add_argument("--scheme", metavar="NAME", help="as one published model does (default: all, compared)")
    parser.add_argument("--max-tiles", type=number(int, 1), metavar="N", help="at most N tiles in the grid")
    parser.add_argument(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        help=f"write the picture with the grid drawn on it, as PNG (default scheme: {DRAWN_BY_DEFAULT})",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the plans; returns the exit code."""
    from edgevlm.image import load_image
    from edgevlm.strict_json import to_json
    from edgevlm.tiles_drawing import draw_grid, tile_report
    from edgevlm.tiling import plan_tiles
    from edgevlm.whole_file import check_writable, write_whole

    if args.output is not None:
        check_writable(args.output, "the drawing")
    specs = _specs(args.package, args.scheme)
    image = load_image(args.image)
    height_px, width_px = image.shape[:2]
    rows = tile_report(image, specs, args.max_tiles)
    if args.output is not None:
        drawn = specs.get(DRAWN_BY_DEFAULT) or next(iter(specs.values()))
        drawing = io.BytesIO()
        draw_grid(image, plan_tiles(height_px, width_px, drawn[0], args.max_tiles)).save(drawing, format="PNG")
        write_whole(args.output, drawing.getvalue(), "the drawing")
    if args.json:
        output = None if args.output is None else str(args.output)
        found = {"image": str(args.image), "height_px": height_px, "width_px": width_px}
        json_object({**found, "schemes": to_json(rows), "output": output})
        return 0
    answer(f"{args.image}: {width_px} x {height_px} pixels")
    cells = [(r.scheme, f"{r.rows} x {r.cols}", f"{r.n_tiles}", f"{r.n_tokens}") for r in rows]
    answer(table([("scheme", "rows x cols", "tiles", "tokens"), *cells]))
    if args.output is not None:
        note(f"drawn: {args.output}")
    return 0


def _specs(package_dir: Path | None, scheme: str | None) -> dict[str, tuple[ProcessorSpec, int]]:
    """Returns (processor, tokens per tile) by name: the package's, one published model's, or all of these."""
    from edgevlm.package import open_package
    from edgevlm.tiles_drawing import SCHEMES

    if package_dir is not None:
        manifest = open_package(package_dir).manifest
        if manifest.processor is None or manifest.prompt is None:
            raise UsageError(f"{package_dir}: this package is a language model and takes no pictures")
        return {manifest.name: (manifest.processor, manifest.prompt.tokens_per_tile)}
    if scheme is None:
        return dict(SCHEMES)
    if scheme not in SCHEMES:
        raise UsageError(f"--scheme is {scheme!r}, expected one of: {', '.join(SCHEMES)}")
    return {scheme: SCHEMES[scheme]}
