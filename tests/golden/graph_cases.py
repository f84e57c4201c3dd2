"""The tiny checkpoints and inputs that tests/golden/graphs.npz is made of; shared by its maker and by the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests import tiny

N_GREEDY = 32


@dataclass(frozen=True)
class Case:
    """One checkpoint: a maker of tests/tiny.py, its overrides, and how the reference is computed."""

    maker: str
    reference: Literal["text", "tower", "idefics3", "bluelm_v"]
    over: dict[str, Any] = field(default_factory=dict)
    tile_px: int = 0
    n_tiles: int = 3

    def make(self, directory: Path) -> Path:
        return tiny.MAKERS[self.maker](directory, **self.over)

    def pixels(self) -> NDArray[np.float32]:
        """(n_tiles, 3, S, S): normal noise, no pixel is 0."""
        random = np.random.RandomState(7)
        return random.standard_normal((self.n_tiles, 3, self.tile_px, self.tile_px)).astype(np.float32)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, Case] = {
    "llama": Case("llama", "text"),
    "llama_untied": Case("llama", "text", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama_llama3": Case("llama", "text", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "llama_linear": Case("llama", "text", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama_head_dim": Case("llama", "text", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "qwen2": Case("qwen2", "text"),
    "dinov2": Case("dinov2", "tower", tile_px=56),
    "siglip": Case("siglip", "tower", tile_px=32),
    "idefics3": Case("idefics3", "idefics3", tile_px=32),
    "smolvlm": Case("smolvlm", "idefics3", tile_px=32),
    "bluelm_v": Case("bluelm_v", "bluelm_v", tile_px=40),
}


def prompt_ids() -> NDArray[np.int64]:
    return np.random.RandomState(1).randint(3, tiny.VOCAB, 20).astype(np.int64)


def picture_prompt_ids(image_token_id: int, n_image_tokens: int) -> NDArray[np.int64]:
    """5 text tokens, the picture, 8 text tokens; text ids are below the first added token's."""
    text = np.random.RandomState(2).randint(3, 250, 13)
    image = np.full(n_image_tokens, image_token_id)
    return np.concatenate([text[:5], image, text[5:]]).astype(np.int64)
