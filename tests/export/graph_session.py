"""Runs exported graphs in onnxruntime, for the tests of tests/export/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgevlm.telemetry import import_onnxruntime
from export.archs import arch_spec
from export.checkpoint import Checkpoint, open_checkpoint
from export.graphs.build import BuildResult, build_model
from export.quant.rules import QuantPlan

onnxruntime = import_onnxruntime()

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def build(source: Path, out: Path, scheme: str = "fp32", vision: str | None = None, **options: Any) -> Graphs:
    """Exports the graphs of a checkpoint under one scheme and opens them."""
    checkpoint = open_checkpoint(source)
    return build_from(checkpoint, out, QuantPlan(scheme, vision or scheme), **options)


def build_from(checkpoint: Checkpoint, out: Path, plan: QuantPlan, **options: Any) -> Graphs:
    spec = arch_spec(checkpoint.config, checkpoint.files)
    return Graphs(out, build_model(spec, checkpoint, plan, out, **options))


class Graphs:
    """A built model; sessions open on first use."""

    def __init__(self, out: Path, result: BuildResult) -> None:
        self.out = out
        self.result = result
        self.paths = {graph.name: out / graph.path for graph in result.graphs}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            self._sessions[name] = onnxruntime.InferenceSession(self.paths[name], options)
        return self._sessions[name]

    def edit(self, name: str, change: Any) -> None:
        """Applies `change(model)` to a graph's file, without touching its data."""
        model = onnx.load(self.paths[name], load_external_data=False)
        change(model)
        onnx.save_model(model, self.paths[name])
        self._sessions.pop(name, None)

    def encode(self, pixels: Float32) -> Float32:
        return self.session("vision_encoder").run(None, {"pixel_values": pixels})[0]

    def embed(self, ids: Int64) -> Float32:
        return self.session("embed_tokens").run(None, {"input_ids": ids[None]})[0]

    def decode(
        self, embeds: Float32, past: list[Float32] | None = None, keep: int = 0, **feed: Any
    ) -> tuple[Float32, list[Float32]]:
        """embeds (1, T, D) after `past`; returns logits (T or keep, vocab) and the present cache."""
        decoder = self.result.decoder
        assert decoder is not None
        if past is None:
            past = [np.zeros((1, entry.shape[0], 0, entry.shape[2]), np.float32) for entry in decoder.cache]
        n_past, n_new = past[0].shape[2], embeds.shape[1]
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, n_past + n_new), np.int64),
            "position_ids": np.arange(n_past, n_past + n_new)[None],
            "num_logits_to_keep": np.array(keep, np.int64),
            **{entry.past_name: value for entry, value in zip(decoder.cache, past, strict=True)},
            **feed,
        }
        logits, *present = self.session("decoder_model_merged").run(None, inputs)
        return logits[0], present

    def greedy(self, embeds: Float32, n_tokens: int) -> list[int]:
        """Prefill, then one token at a time on the cache."""
        logits, past = self.decode(embeds, keep=1)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < n_tokens:
            logits, past = self.decode(self.embed(np.array(tokens[-1:])), past)
            tokens.append(int(logits[-1].argmax()))
        return tokens
