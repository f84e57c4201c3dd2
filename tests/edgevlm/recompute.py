"""The slow twin of the session and the loop: plain onnxruntime over the whole sequence, no cache, no binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.image import normalize
from edgevlm.prompt import ImageRun, build_segments
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tiling import cut_tiles, plan_tiles

onnxruntime = import_onnxruntime()


class Recompute:
    """Runs the decoder over the whole sequence each time, with an empty past; shares no code with OnnxSession."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.embed = self._open("embed_tokens")
        self.decoder = self._open("decoder_model_merged")

    def _open(self, name: str) -> Any:
        (file,) = self.path.glob(f"onnx/{name}*.onnx")
        return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

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
                _, heads, _, width = item.shape
                feeds[item.name] = np.zeros((1, heads, 0, width), np.float32)
        return self.decoder.run(["logits"], feeds)[0][0]

    def vision(self, pixels: Any) -> Any:
        """Returns image features (C, V, D)."""
        return self._open("vision_encoder").run(None, {"pixel_values": pixels})[0]

    def greedy(self, segments: list[Any], n_tokens: int) -> list[int]:
        """Returns the likeliest continuation."""
        out: list[int] = []
        for _ in range(n_tokens):
            out.append(int(self.logits([*segments, np.array(out, np.int64)])[-1].argmax()))
        return out

    def segments(self, model: Any, messages: list[Any], images: list[Any]) -> list[Any]:
        """Returns a conversation as ids and features, each tile encoded on its own."""
        manifest = model.package.manifest
        plans = [plan_tiles(*image.shape[:2], manifest.processor) for image in images]
        rows: list[Any] = []
        for segment in build_segments(messages, model.template, model.tokenizer, manifest.prompt, plans):
            if isinstance(segment, ImageRun):
                image, plan = images[segment.image], plans[segment.image]
                tiles = normalize(cut_tiles(image, plan, manifest.processor), manifest.processor)
                features = np.concatenate([self.vision(tile[None])[0] for tile in tiles])
                rows.append(features[segment.first_token : segment.first_token + segment.n_tokens])
            else:
                rows.append(np.array(segment, np.int64))
        return rows
