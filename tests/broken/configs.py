"""Broken configs: fields of config.json that contradict, are of odd type or size, or ask for what is not computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from tests import tiny
from tests.broken import BrokenCase


def _config(maker: str = "llama", text: dict[str, Any] | None = None, **fields: Any) -> Callable[[Path], Path]:
    """Returns a maker of a tiny checkpoint with these fields in config.json; `text` are those of text_config."""

    def make(tmp_path: Path) -> Path:
        path = tiny.MAKERS[maker](tmp_path / "checkpoint")
        config = json.loads((path / "config.json").read_text())
        config.update(fields)
        if text is not None:
            config["text_config"].update(text)
        (path / "config.json").write_text(json.dumps(config))
        return path

    return make


def _case(
    name: str, fragment: str, error: type[EdgeVLMError] = PackageError, maker: str = "llama", **fields: Any
) -> BrokenCase:
    return BrokenCase(name, _config(maker, **fields), error, fragment)


def _unsupported(name: str, fragment: str, maker: str = "llama", **fields: Any) -> BrokenCase:
    return _case(name, fragment, UnsupportedModelError, maker, **fields)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}

SIZES = [
    _unsupported("10^9 layers", "num_hidden_layers is 1000000000; at most 1,024", num_hidden_layers=10**9),
    _unsupported("a vocabulary of 10^12", "vocab_size is 1000000000000; at most 16,777,215", vocab_size=10**12),
    _unsupported("a vocabulary of other size than the table", "tensor 'model.embed_tokens.weight'", vocab_size=10**7),
    _case("no layers", "num_hidden_layers must be a positive integer, found 0", num_hidden_layers=0),
    _case("heads as a negative number", "num_attention_heads must be a positive integer", num_attention_heads=-4),
    _case("a hidden size that is a float", "hidden_size must be a positive integer, found 64.0", hidden_size=64.0),
    _case("a hidden size that is a string", "hidden_size must be a positive integer, found '64'", hidden_size="64"),
    _case("a context that is true", "max_position_embeddings must be a positive", max_position_embeddings=True),
    _case("a list for a number", "intermediate_size must be a positive integer, found [96]", intermediate_size=[96]),
    _case("an epsilon that is NaN", "rms_norm_eps must be a finite number, found nan", rms_norm_eps=float("nan")),
    _case("an epsilon that is null", "rms_norm_eps is null", rms_norm_eps=None),
    _case("a negative epsilon", "rms_norm_eps must be above 0", rms_norm_eps=-1e-5),
    _case("a rotation base that is infinite", "rope_theta must be a finite number", rope_theta=float("inf")),
    _case("a rotation base beyond a float", "rope_theta must be a finite number", rope_theta=10**400),
    _unsupported("a rotation base below 1", "rope_theta is 1e-30; implemented: 1 or", rope_theta=1e-30),
    _case("a rotation base of 0", "rope_theta must be above 0", rope_theta=0),
    _case("a flag that is a word", "tie_word_embeddings must be true or false", tie_word_embeddings="yes"),
    _case("a flag that is null", "attention_bias is null", attention_bias=None),
    _unsupported("an activation that is a list", "activation ['silu'] (config.json: hidden_act)", hidden_act=["silu"]),
    _case(
        "a patch larger than the tile",
        "vision_config.patch_size is 64, more than the tile's 32",
        maker="smolvlm",
        vision_config={**tiny.VISION, "patch_size": 64},
    ),
    _unsupported(
        "a tile of a million patches",
        "has 1024x1024 patches; at most 16,384",
        maker="smolvlm",
        vision_config={**tiny.VISION, "image_size": 1024, "patch_size": 1},
    ),
    _unsupported("a tile of 2^23 pixels", "patches; at most 16,384 are implemented", maker="bluelm_v", tile_px=1 << 23),
    _case("bluelm_v: an image token that is a number", "image_token must be a text", maker="bluelm_v", image_token=7),
    _case("a text_config that is false", "text_config must be an object", maker="smolvlm", text_config=False),
]

DIALECTS = [
    _case("a rotation factor that is a string", "rope_scaling.factor", rope_scaling={"type": "linear", "factor": "4"}),
    _case("a rotation factor of 0", "factor must be above 0", rope_scaling={"type": "linear", "factor": 0}),
    _case("linear rotation without its factor", "rope_parameters.factor", rope_parameters={"rope_type": "linear"}),
    _case(
        "a rotation whose rope_type is null and type is not",
        "rope_scaling.rope_type is null",
        rope_scaling={"rope_type": None, "type": "linear", "factor": 4.0},
    ),
    _case("llama3 rotation whose two limits are one", "must be above low_freq_factor", rope_scaling=LLAMA3),
    _unsupported("rotation parameters for each kind of layer", "one set for all layers",
                 rope_parameters={"full_attention": {"rope_type": "default"}}),
    _unsupported("a rotation that follows the length", "rope kind 'dynamic'",
                 rope_scaling={"type": "dynamic", "factor": 2.0}),
    _unsupported("half of a head rotated", "partial_rotary_factor 0.5", rope_theta=1e4, partial_rotary_factor=0.5),
    _unsupported(
        "layers that see a window", "use_sliding_window True", maker="qwen2", use_sliding_window=True,
        max_window_layers=1,
    ),
    _unsupported(
        "a kind of layer that sees a window", "layer_types 'sliding_attention'", maker="qwen2",
        layer_types=["full_attention", "sliding_attention"],
    ),
    _case("kinds of other many layers", "must be a list of num_hidden_layers (2) names", maker="qwen2",
          layer_types=["full_attention"]),
    _case("kinds of layers in one word", "must be a list of num_hidden_layers", maker="qwen2",
          layer_types="full_attention"),
    _case(
        "bluelm_v: two flags that contradict", "leave one of the two out", maker="bluelm_v", tie_word_embeddings=False
    ),
    _unsupported(
        "quantised weights named inside text_config", "text_config.quantization_config", maker="smolvlm",
        text={"quantization_config": {"quant_method": "gptq"}},
    ),
    _unsupported("a language model of another kind", "text_config.model_type", maker="smolvlm",
                 text={"model_type": "mistral"}),
    _unsupported("more key-value heads than fit", "config.json implies [48, 64]", num_key_value_heads=3),
]  # fmt: skip

CASES = [*SIZES, *DIALECTS]
