"""Builds NPU graphs of tiny checkpoints and runs a decoder as a host does: it keeps the cache and hands in a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.package import Package
from edgevlm.spec import FileEntry, GenerationSpec, Manifest, QuantEntry
from edgevlm.telemetry import import_onnxruntime
from export.npu.graphs import build_npu_graphs
from tests.export.graph_session import Graphs

onnxruntime = import_onnxruntime()

Float32 = NDArray[np.float32]
CONTEXT, CHUNK = 48, 16


def as_package(checkpoint: Path, graphs: Graphs) -> Package:
    """The built graphs as a package, with the config that they were built from."""
    config = (checkpoint / "config.json").read_bytes()
    (graphs.out / "config.json").write_bytes(config)
    files = [FileEntry("config.json", len(config), "")]
    for path in checkpoint.glob("*.json"):
        if path.name != "config.json":
            (graphs.out / path.name).write_bytes(path.read_bytes())
            files.append(FileEntry(path.name, path.stat().st_size, ""))
    manifest = Manifest(
        schema_version=1,
        name="tiny",
        arch="tiny",
        created="",
        source="tiny",
        versions={},
        processor=None,
        prompt=None,
        decoder=graphs.result.decoder,  # type: ignore[arg-type]
        generation=GenerationSpec(eos_token_ids=()),
        graphs=graphs.result.graphs,
        quant=QuantEntry("fp32", "fp32", (), (), 32.0),
        sizes=(),
        parity=(),
        files=tuple(files),
    )
    return Package(graphs.out, manifest)


class NpuGraphs:
    """The fixed graphs of one package on onnxruntime's CPU."""

    def __init__(self, package: Package, directory: Path, **options: Any) -> None:
        graphs = build_npu_graphs(package, directory, context=CONTEXT, chunk_tokens=CHUNK, **options)
        self.package = package
        self.paths = {graph.name: graph.path for graph in graphs}

    def session(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self.paths[name], options)

    def encode(self, pixels: Float32) -> Float32:
        return self.session(f"vision_{len(pixels)}").run(None, {"pixel_values": pixels})[0]

    def logits(self, embeds: Float32, n_prefilled: int) -> Float32:
        """Logits of row n_prefilled - 1 and all after it: chunks first, then one token at a time."""
        entries = self.package.manifest.decoder.cache
        sessions = {CHUNK: self.session("prefill"), 1: self.session("decode")}
        cache = {
            item.name: np.zeros(item.shape, np.float32) for item in sessions[1].get_inputs() if "past" in item.name
        }
        steps = [(start, min(CHUNK, n_prefilled - start)) for start in range(0, n_prefilled, CHUNK)]
        rows = []
        for start, n_rows in [*steps, *((row, 1) for row in range(n_prefilled, embeds.shape[1]))]:
            size = CHUNK if start < n_prefilled else 1
            session = sessions[size]
            padded = np.full((1, size, embeds.shape[2]), 7, np.float32)
            padded[:, :n_rows] = embeds[:, start : start + n_rows]
            mask = np.zeros((1, 1, size, CONTEXT + size), bool)
            mask[..., :start] = True
            mask[..., CONTEXT:] = np.tril(np.ones((size, size), bool))
            positions = np.minimum(np.arange(start, start + size), CONTEXT - 1)
            feed = {"inputs_embeds": padded, "attention_mask": mask, "position_ids": positions.astype(np.int32)}
            feed |= cache
            if size > 1:
                feed["last_row"] = np.array([n_rows - 1], np.int32)
            found, *present = session.run(None, feed)
            for entry, new in zip(entries, present, strict=True):
                if entry.kind == "key":
                    cache[entry.past_name][..., start : start + n_rows] = new[..., :n_rows]
                else:
                    cache[entry.past_name][:, :, start : start + n_rows] = new[:, :, :n_rows]
            rows.append(found[0])
        return np.concatenate(rows[len(steps) - 1 :])
