"""`edgevlm compile`: adds the native engine's form, or an NPU's, to a package."""

from __future__ import annotations

import argparse

from edgevlm.backends.native_library import host_arch
from edgevlm.cli.output import answer, json_object, note, parity_table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file, output_file
from edgevlm.cli.progress import ProgressBar

NPU_TARGET = "qnn-htp"
RANGE_METHODS = ("minmax", "percentile", "mse")

JSON_FIELDS = {
    "package": "path of the package",
    "arch": "architecture that it was compiled for; for an NPU a list of chips",
    "plan": "path of plan.bin in the package (native engine)",
    "weights": "path of weights.bin in the package",
    "vision": "path of vision.bin in the package; null when onnxruntime runs the vision tower (native engine)",
    "npu": "the manifest's NPU entry (docs/package-format.md), for --target qnn-htp",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "compile",
        help="add the native engine's or an NPU's form to a package",
        description="Add the native engine's or an NPU's form to a package. What it adds is data, not code.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument(
        "--target",
        default=host_arch(),
        metavar="ARCH",
        help="architecture: x86_64 or arm64, or qnn-htp for Qualcomm's NPU (default: this machine's)",
    )
    parser.add_argument("--language-only", action="store_true", help="leave the vision tower to onnxruntime")
    group = parser.add_argument_group("qnn-htp")
    group.add_argument(
        "--soc",
        default="SM8650",
        metavar="CHIPS",
        help="chips, separated by commas (default: SM8650); 'none' writes the graphs and their simulation only",
    )
    group.add_argument(
        "--context", type=number(int, 1), metavar="N", help="longest conversation in tokens (default: 1024)"
    )
    group.add_argument(
        "--ranges",
        choices=RANGE_METHODS,
        metavar="METHOD",
        help="minmax, percentile or mse (default: the best of them, measured)",
    )
    group.add_argument(
        "--allow-cpu",
        action="append",
        default=[],
        metavar="OP",
        help="let nodes of this operator run on the CPU; may be repeated, and is recorded (default: none may)",
    )
    group.add_argument(
        "--share-weights",
        action="store_true",
        help="prefill and decode in one binary with one copy of the weights; the x86-64 emulator cannot load it",
    )
    group.add_argument(
        "--part-mb",
        type=number(int, 1),
        metavar="N",
        help="split graphs into parts with less than N MB of weights each (default: what one binary holds, 2147)",
    )
    parser.add_argument(
        "--device-only",
        type=output_file,
        metavar="DIR",
        help="write a copy to DIR that holds no ONNX graphs, for one device",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Compiles; returns the exit code."""
    if args.target == NPU_TARGET:
        return _run_npu(args)
    from edgevlm.package_lock import changing
    from export import probes
    from export.device.files import add_device_files
    from tvm_schedules.compile import compile_for_device, compile_package

    package = args.device_only or args.package
    with changing(args.package), ProgressBar() as progress:
        add_device_files(args.package)
        if args.device_only:
            entry = compile_for_device(args.package, args.device_only, args.target, probes.text(), progress)
        else:
            text = probes.text()
            entry = compile_package(args.package, args.target, text, progress, language_only=args.language_only)
    if args.json:
        fields = {"arch": entry.arch, "plan": entry.plan, "weights": entry.weights, "vision": entry.vision, "npu": None}
        json_object({"package": str(package), **fields})
    else:
        answer(str(package / entry.plan))
    return 0


def _run_npu(args: argparse.Namespace) -> int:
    from edgevlm.backends.qnn import licence_notice, provider_device
    from edgevlm.package import open_package
    from edgevlm.strict_json import to_json
    from export.npu.compile import NpuOptions, bits_advice, compile_npu
    from export.npu.parts import MAX_BINARY_BYTES

    socs = () if args.soc == "none" else tuple(args.soc.split(","))
    if socs:
        provider_device()
        if (licence := licence_notice()) is not None:
            note(licence)
    advice = bits_advice(open_package(args.package))
    if advice is not None:
        note(f"note: {advice}")
    options = NpuOptions(
        socs=socs,
        context=args.context,
        ranges=args.ranges,
        allow_cpu=tuple(args.allow_cpu),
        share_weights=args.share_weights,
        part_bytes=args.part_mb * 10**6 if args.part_mb else MAX_BINARY_BYTES,
    )
    with ProgressBar() as progress:
        entry = compile_npu(args.package, options, progress)
    if args.json:
        chips = [target.soc for target in entry.targets]
        fields = {"arch": chips, "plan": None, "weights": entry.weights, "vision": None, "npu": to_json(entry)}
        json_object({"package": str(args.package), **fields})
    else:
        for target in entry.targets:
            answer(f"{target.soc}: {', '.join(target.binaries)}")
        note(parity_table(entry.parity))
    return 0
