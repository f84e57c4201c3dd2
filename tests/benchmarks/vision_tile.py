"""One tile through a vision tower: the native engine beside onnxruntime, in turn, and how near both are to fp32.

    python tests/benchmarks/vision_tile.py [--tower so400m | siglip-b | PACKAGE] [--scheme w8g64] [--layers N]
        [--dir DIR] [--threads 2] [--rounds 5] [--variant NAME] [--dynamic] [--json]

so400m: SigLIP so400m/14 at 384 px (27 layers, 729 tokens); siglip-b: SigLIP-B/16 at 512 px (12 layers, 1024 tokens);
random weights. PACKAGE takes the tower of an exported package with its real weights and a photograph, without the fp32
comparison. `--dynamic` adds onnxruntime's own dynamic int8 of the fp32 graph. Medians of runs in turn; CPU seconds are
those of all threads, which a busy machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.telemetry import import_onnxruntime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import tiny  # noqa: E402
from tests.edgevlm import towers  # noqa: E402

onnxruntime = import_onnxruntime()

SHAPES: dict[str, dict[str, int]] = {
    "so400m": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    },
    "siglip-b": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
}  # fmt: skip
PICTURE = ROOT / "assets" / "coffee.jpg"

Encode = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def cpu_s() -> float:
    """CPU seconds of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ort_encoder(graph: Path, threads: int) -> Encode:
    """The graph in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels})[0]


def dynamic_int8(graph: Path) -> Path:
    """onnxruntime's dynamic int8 of a fp32 graph: weights per channel, activations per tensor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = graph.with_name("dynamic_int8.onnx")
    if not path.exists():
        quantize_dynamic(
            graph, path, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
            use_external_data_format=True, extra_options={"DefaultTensorType": 1},
        )  # fmt: skip
    return path


def random_tower(shape: dict[str, int], directory: Path, scheme: str) -> tuple[Path, Path]:
    """Graphs of a tower with random weights: under `scheme`, and fp32."""
    graphs = []
    for name in (scheme, "fp32"):
        place = directory / f"{name}-{shape['num_hidden_layers']}"
        if not (place / "onnx").exists():
            checkpoint = directory / f"checkpoint-{shape['num_hidden_layers']}"
            if not checkpoint.exists():
                tiny.make_siglip(checkpoint, **shape)
            towers.export_graph(checkpoint, place, name)
        graphs.append(next((place / "onnx").glob("vision_encoder*.onnx")))
    return graphs[0], graphs[1]


def package_tower(path: Path) -> tuple[Path, NDArray[np.float32]]:
    """The graph of a package's tower, and a photograph's tiles as it sees them."""
    from edgevlm.image import load_image, normalize
    from edgevlm.package import open_package
    from edgevlm.tiling import cut_tiles, plan_tiles

    package = open_package(path)
    spec = package.manifest.processor
    if spec is None:
        raise SystemExit(f"{path} has no vision tower")
    image = load_image(PICTURE)
    return package.graph("vision_encoder"), normalize(cut_tiles(image, plan_tiles(*image.shape[:2], spec), spec), spec)


SETTLE_S = 0.3
"""Before each run: the threads of the runtime before spin for a while and would take a core from this one."""


def measure(encoders: dict[str, Encode], pixels: NDArray[np.float32], rounds: int) -> dict[str, dict[str, float]]:
    """Runs the encoders in turn; returns per name the medians of wall and CPU seconds a tile."""
    wall: dict[str, list[float]] = {name: [] for name in encoders}
    cpu: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(pixels)
    for _ in range(rounds):
        for name, encode in encoders.items():
            time.sleep(SETTLE_S)
            cpu_before, before = cpu_s(), time.perf_counter()
            encode(pixels)
            wall[name].append((time.perf_counter() - before) / len(pixels))
            cpu[name].append((cpu_s() - cpu_before) / len(pixels))
    return {
        name: {
            "wall_s": statistics.median(wall[name]), "wall_best_s": min(wall[name]),
            "cpu_s": statistics.median(cpu[name]), "cpu_best_s": min(cpu[name]),
        }
        for name in encoders
    }  # fmt: skip


def compare(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Measures what the options ask for."""
    exact = None
    if options.tower in SHAPES:
        shape = dict(SHAPES[options.tower])
        shape["num_hidden_layers"] = options.layers or shape["num_hidden_layers"]
        graph, exact = random_tower(shape, directory / options.tower, options.scheme)
        side = shape["image_size"]
        pixels = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
        plan = graph.parent.parent / "plan"
    else:
        graph, pixels = package_tower(Path(options.tower))
        plan = directory / "package-plan"
    shutil.rmtree(plan, ignore_errors=True)
    with towers.EngineTower(graph, plan, threads=options.threads, variant=options.variant) as engine:
        encoders: dict[str, Encode] = {"native": engine.tower.encode}
        if not options.native_only:
            encoders["onnxruntime"] = ort_encoder(graph, options.threads)
        if exact is not None and not options.native_only:
            encoders["onnxruntime fp32"] = ort_encoder(exact, options.threads)
            if options.dynamic:
                encoders["onnxruntime dynamic int8"] = ort_encoder(dynamic_int8(exact), options.threads)
        features = {name: encode(pixels) for name, encode in encoders.items()}
        result: dict[str, Any] = {"tower": str(options.tower), "scheme": options.scheme, "tiles": len(pixels)}
        result["times"] = measure(encoders, pixels, options.rounds)
    base = "onnxruntime fp32" if "onnxruntime fp32" in features else "onnxruntime"
    if base in features:
        result["cosine"] = {
            name: {"mean": float(values.mean()), "lowest": float(values.min())}
            for name, values in ((name, towers.cosines(value, features[base])) for name, value in features.items())
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="A tile through a vision tower, native beside onnxruntime.")
    parser.add_argument("--tower", default="so400m", help="so400m, siglip-b or a package directory")
    parser.add_argument("--scheme", default="w8g64")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dir", type=Path, help="where checkpoints and graphs are kept (default: temporary)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant")
    parser.add_argument("--dynamic", action="store_true", help="onnxruntime's dynamic int8 too")
    parser.add_argument("--native-only", action="store_true", help="no onnxruntime")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vision-tile-") as scratch:
        result = compare(options, options.dir or Path(scratch))
    if options.json:
        print(json.dumps(result))
        return
    for name, times in result["times"].items():
        cosine = result.get("cosine", {}).get(name)
        near = f"  cosine {cosine['mean']:.6f} lowest {cosine['lowest']:.6f}" if cosine else ""
        clock = f"{times['wall_s']:.3f} s a tile (best {times['wall_best_s']:.3f})"
        print(f"{name:26s} {clock}, CPU {times['cpu_s']:.3f} s (best {times['cpu_best_s']:.3f}){near}")


if __name__ == "__main__":
    main()
