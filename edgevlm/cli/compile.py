"""`edgevlm compile`: adds the native engine's form to a package."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevlm.backends.native_library import host_arch
from edgevlm.cli.output import answer, json_object
from edgevlm.cli.parser import Subparsers
from edgevlm.cli.progress import ProgressBar

JSON_FIELDS = {
    "package": "path of the package",
    "arch": "architecture that it was compiled for",
    "plan": "path of plan.bin in the package",
    "weights": "path of weights.bin in the package",
    "vision": "path of vision.bin in the package; null when onnxruntime runs the vision tower",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "compile",
        help="add the native engine's form to a package",
        description="Add the native engine's form to a package. What it adds is data, not code.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="package directory")
    parser.add_argument(
        "--target", default=host_arch(), metavar="ARCH", help="architecture: x86_64 or arm64 (default: this machine's)"
    )
    parser.add_argument(
        "--language-only", action="store_true", help="leave the vision tower to onnxruntime"
    )
    parser.add_argument(
        "--device-only", type=Path, metavar="DIR", help="write a copy to DIR that holds no ONNX graphs, for one device"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Compiles; returns the exit code."""
    from export import probes
    from export.device.files import add_device_files
    from tvm_schedules.compile import compile_for_device, compile_package

    add_device_files(args.package)
    package = args.device_only or args.package
    with ProgressBar() as progress:
        if args.device_only:
            entry = compile_for_device(args.package, args.device_only, args.target, probes.text(), progress)
        else:
            text = probes.text()
            entry = compile_package(args.package, args.target, text, progress, language_only=args.language_only)
    if args.json:
        fields = {"arch": entry.arch, "plan": entry.plan, "weights": entry.weights, "vision": entry.vision}
        json_object({"package": str(package), **fields})
    else:
        answer(str(package / entry.plan))
    return 0
