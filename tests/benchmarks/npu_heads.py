"""Whether HTP takes attention better with its heads split: one whole layer in several forms, tower and decoder.

    python -m tests.benchmarks.npu_heads [--soc SM8650] [--graphs vision_1,prefill,decode] [--heads 16,8,1]
        [--context 1024] [--mlp 11008] [--run]

The tower's layer has the shapes of SigLIP so400m (width 1152, 16 heads of 72 channels) with 784 tokens, the decoder's
those of Qwen2.5-VL-3B (width 2048, 16 query heads on 2 key/value heads of 128 channels); weights are random, w8 and
w4g32. A form is the builder's own attention (export/graphs/ops/npu.py) on all heads at once, or on slices of them whose
results are concatenated. Ranges are the extremes of one random input. Prints a Markdown table: `spill` is the buffer
that the compiler asks for to move values out of the NPU's own memory; with --run, the emulator's error against
onnxruntime's CPU on the same graph, in logits or image features over their RMS. Needs the provider.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgevlm.backends.qnn import quiet_stdout, session_options
from edgevlm.package import Package, open_package
from edgevlm.telemetry import import_onnxruntime
from export.graphs.ops.npu import NpuOps
from export.npu import graphs as npu_graphs
from export.npu.qdq import Codes, WeightPool, quantise_graph
from export.npu.ranges import Feeds, observe
from export.pipeline import ExportOptions, export_package
from tests import tiny

onnxruntime = import_onnxruntime()

CHUNK = 128
VISION = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1,
    "image_size": 392, "patch_size": 14,
}  # fmt: skip
TEXT = {
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "num_hidden_layers": 1,
    "max_position_embeddings": 8192,
}  # fmt: skip


class SplitOps(NpuOps):
    """NpuOps whose attention is one product per `n_heads` query heads."""

    def __init__(self, *arguments: Any, n_heads: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.n_heads = n_heads

    def masked_heads(self, query: str, keys: str, values: str, heads: int, kv_heads: int, head_dim: int) -> str:
        narrow = max(1, kv_heads * self.n_heads // heads)

        def attend(q: str, k: str, v: str) -> str:
            return NpuOps.masked_heads(self, q, k, v, self.n_heads, narrow, head_dim)

        return self._joined((query, keys, values), heads, kv_heads, attend)

    def plain_heads(self, query: str, keys: str, values: str, heads: int) -> str:
        def attend(q: str, k: str, v: str) -> str:
            return NpuOps.plain_heads(self, q, k, v, self.n_heads)

        return self._joined((query, keys, values), heads, heads, attend)

    def _joined(
        self, qkv: tuple[str, str, str], heads: int, kv_heads: int, attend: Callable[[str, str, str], str]
    ) -> str:
        """The parts' results along the heads; a key or value that several query heads read is cut once."""
        if self.n_heads == heads:
            return attend(*qkv)
        cut: dict[tuple[str, int], str] = {}
        parts = []
        for head in range(0, heads, self.n_heads):
            taken = []
            for name, value, count in zip("qkv", qkv, (heads, kv_heads, kv_heads), strict=True):
                first, size = head * count // heads, max(1, count * self.n_heads // heads)
                if (name, first) not in cut:
                    cut[name, first] = self._slice(value, first, first + size, 1, f"{name}_part")
                taken.append(cut[name, first])
            parts.append(attend(*taken))
        return self.builder.node("Concat", parts, name="heads_together", axis=1)


def layer_package(directory: Path, mlp: int) -> Package:
    """A package of one tower layer and one decoder layer."""
    text = {**TEXT, "intermediate_size": mlp}
    checkpoint = tiny.make_smolvlm(directory / "checkpoint", vision=VISION, text=text)
    options = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
    return open_package(export_package(checkpoint, directory / "package", options))


def float_feeds(graph: Path) -> Feeds:
    """Normal values; two thirds of the cache are in use."""
    random = np.random.default_rng(0)
    feeds: Feeds = {}
    for item in onnx.load(graph, load_external_data=False).graph.input:
        shape = tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
        if item.name == "attention_mask":
            rows, total = shape[2:]
            mask = np.tri(rows, total, total - rows, dtype=np.bool_)
            mask[:, (total - rows) * 2 // 3 : total - rows] = False
            feeds[item.name] = mask[None, None]
        elif item.name in ("position_ids", "last_row"):
            feeds[item.name] = np.arange(shape[0], dtype=np.int32)
        else:
            feeds[item.name] = random.standard_normal(shape).astype(np.float32)
    return feeds


def quantised(package: Package, graph: str, n_heads: int, context: int, directory: Path) -> tuple[Path, Feeds]:
    """The graph as compile makes it, with `n_heads` query heads in one product, and what it is fed."""
    npu_graphs.NpuOps = functools.partial(SplitOps, n_heads=n_heads)  # type: ignore[misc,assignment]
    built = npu_graphs.build_npu_graphs(package, directory, context=context, chunk_tokens=CHUNK, tile_batches=(4, 1))
    source = next(one.path for one in built if one.name == graph)
    feeds = float_feeds(source)
    observed = observe(source, [feeds])
    ranges = {name: one.range("minmax", is_cached=name.startswith("present.")) for name, one in observed.items()}
    pool = WeightPool(directory / "weights.bin")
    codes: dict[str, Codes] = quantise_graph(source, directory / "form.onnx", ranges, pool)
    pool.close()
    cached = {name: codes[name].quantise(value) for name, value in feeds.items() if name.startswith("past_")}
    return directory / "form.onnx", {**feeds, **cached}


def measure(package: Package, graph: str, n_heads: int, given: argparse.Namespace) -> tuple[str, ...]:
    """Cells of one row: nodes, seconds of the compiler, MB of the binary and of the spill buffer, the error."""
    with tempfile.TemporaryDirectory() as scratch, quiet_stdout():
        directory = Path(scratch)
        path, feeds = quantised(package, graph, n_heads, given.context, directory)
        target = directory / "ctx.onnx"
        options = session_options(given.soc, enable_htp_spill_fill_buffer="1")
        for key, value in (("enable", "1"), ("file_path", str(target)), ("embed_mode", "0")):
            options.add_session_config_entry(f"ep.context_{key}", value)
        start = time.perf_counter()
        onnxruntime.InferenceSession(str(path), options)
        compile_s = time.perf_counter() - start
        size_bytes = sum(file.stat().st_size for file in directory.glob("ctx*.bin"))
        n_nodes = len(onnx.load(path, load_external_data=False).graph.node)
        spill = spill_bytes(target)
        error = f"{emulator_error(path, target, feeds, given.soc):.1e}" if given.run else ""
    return (f"{n_nodes}", f"{compile_s:.1f}", f"{size_bytes / 1e6:.2f}", f"{spill / 1e6:.1f}", error)


def spill_bytes(wrapper: Path) -> int:
    """What the compiler wrote beside the context binary."""
    (node,) = onnx.load(wrapper, load_external_data=False).graph.node
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "max_size")


def emulator_error(path: Path, target: Path, feeds: Feeds, soc: str) -> float:
    """RMS of the difference between emulator and CPU in the first output, over the RMS of the CPU's."""
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(str(path), plain).run(None, feeds)[0]
    found = onnxruntime.InferenceSession(str(target), session_options(soc)).run(None, feeds)[0]
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soc", default="SM8650")
    parser.add_argument("--graphs", default="vision_1,prefill,decode")
    parser.add_argument("--heads", default="16,8,1", help="query heads of one product")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--mlp", type=int, default=11008, help="the decoder's feed-forward width")
    parser.add_argument("--run", action="store_true", help="run each form in the emulator, too")
    given = parser.parse_args()
    print("| graph | heads of one product | nodes | compiled in s | MB | spill in MB | emulator's error |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        package = layer_package(Path(scratch), given.mlp)
        for graph in given.graphs.split(","):
            for n_heads in given.heads.split(","):
                cells = measure(package, graph, int(n_heads), given)
                print(f"| {' | '.join((graph, n_heads, *cells))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
