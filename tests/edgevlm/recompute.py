"""The slow twin of the session and the loop: plain onnxruntime over the whole sequence, no cache, no binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.edgevlm.tiny_package import HEAD_DIM, KV_HEADS


class Recompute:
    """Runs the decoder over the whole sequence each time, with an empty past; shares no code with OnnxSession."""

    def __init__(self, path: Path) -> None:
        self.path = path
        providers = ["CPUExecutionProvider"]
        self.embed = onnxruntime.InferenceSession(str(path / "onnx/embed_tokens.onnx"), providers=providers)
        self.decoder = onnxruntime.InferenceSession(str(path / "onnx/decoder_model_merged.onnx"), providers=providers)

    def embeds(self, segments: list[Any]) -> Any:
        rows = [s if s.ndim == 2 else self.embed.run(None, {"input_ids": s[None]})[0][0] for s in segments]
        return np.concatenate(rows)

    def logits(self, segments: list[Any]) -> Any:
        """Returns logits of every row (T, vocab)."""
        rows = self.embeds(segments)
        feeds = {
            "inputs_embeds": rows[None],
            "attention_mask": np.ones((1, len(rows)), np.int64),
            "position_ids": np.arange(len(rows))[None],
            "num_logits_to_keep": np.array(0),
        }
        for item in self.decoder.get_inputs():
            if item.name.startswith("past"):
                feeds[item.name] = np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.float32)
        return self.decoder.run(["logits"], feeds)[0][0]

    def vision(self, pixels: Any) -> Any:
        """Returns image features (C, V, D)."""
        session = onnxruntime.InferenceSession(
            str(self.path / "onnx/vision_encoder.onnx"), providers=["CPUExecutionProvider"]
        )
        return session.run(None, {"pixel_values": pixels})[0]
