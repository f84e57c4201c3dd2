"""SmolVLM-256M's real shapes with random weights: a full-size snapshot directory, written tensor by tensor in bf16.

    python tests/smolvlm_256m.py DIRECTORY TOKENIZER_GGUF

Shapes, token ids, processor and chat template are those of HuggingFaceTB/SmolVLM-256M-Instruct; the tokenizer is
SmolLM2's, read from a GGUF file, plus SmolVLM's 128 added tokens. 256,484,928 parameters, 513 MB.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

VOCAB = 49280
FIRST_ADDED_ID = 49152
VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 49279,
    "pad_token_id": 2,
}
CONFIG: dict[str, Any] = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 4,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": VISION,
    "text_config": TEXT,
}
PREPROCESSOR = {
    "image_processor_type": "SmolVLMImageProcessor",
    "processor_class": "SmolVLMProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 512},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 2048},
}
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def added_tokens() -> list[str]:
    """The 128 tokens behind SmolLM2's vocabulary; `<image>` gets id 49190, `<end_of_utterance>` 49279."""
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    known = ["<global-img>", *tiles, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    n_reserved = VOCAB - FIRST_ADDED_ID - len(known)
    reserved = [f"<|reserved_special_token_{index}|>" for index in range(n_reserved)]
    return [*known[:-1], *reserved, known[-1]]


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Names as in the hub's file and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(stem: str, out: int, into: int, bias: bool) -> None:
        shapes[f"{stem}.weight"] = (out, into)
        if bias:
            shapes[f"{stem}.bias"] = (out,)

    root, width, mlp = "model.vision_model.", 768, 3072
    shapes[f"{root}embeddings.patch_embedding.weight"] = (width, 3, 16, 16)
    shapes[f"{root}embeddings.patch_embedding.bias"] = (width,)
    shapes[f"{root}embeddings.position_embedding.weight"] = (32 * 32, width)
    for layer in range(12):
        stem = f"{root}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{stem}self_attn.{part}", width, width, True)
        linear(f"{stem}mlp.fc1", mlp, width, True)
        linear(f"{stem}mlp.fc2", width, mlp, True)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{stem}{norm}.weight"] = shapes[f"{stem}{norm}.bias"] = (width,)
    shapes[f"{root}post_layernorm.weight"] = shapes[f"{root}post_layernorm.bias"] = (width,)
    hidden, mlp = 576, 1536
    linear("model.connector.modality_projection.proj", hidden, width * 16, False)
    root = "model.text_model."
    shapes[f"{root}embed_tokens.weight"] = (VOCAB, hidden)
    for layer in range(30):
        stem = f"{root}layers.{layer}."
        linear(f"{stem}self_attn.q_proj", hidden, hidden, False)
        linear(f"{stem}self_attn.k_proj", 192, hidden, False)
        linear(f"{stem}self_attn.v_proj", 192, hidden, False)
        linear(f"{stem}self_attn.o_proj", hidden, hidden, False)
        linear(f"{stem}mlp.gate_proj", mlp, hidden, False)
        linear(f"{stem}mlp.up_proj", mlp, hidden, False)
        linear(f"{stem}mlp.down_proj", hidden, mlp, False)
        shapes[f"{stem}input_layernorm.weight"] = shapes[f"{stem}post_attention_layernorm.weight"] = (hidden,)
    shapes[f"{root}norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (VOCAB, hidden)
    return shapes


def make_snapshot(directory: Path, tokenizer_gguf: Path, seed: int = 0) -> Path:
    """Writes the snapshot and returns its directory; weights are drawn one at a time, so memory stays small."""
    directory.mkdir(parents=True, exist_ok=True)
    files = _text_files(tokenizer_gguf)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False)
        (directory / name).write_text(text, encoding="utf-8")
    _write_bf16(directory / "model.safetensors", tensor_shapes(), np.random.default_rng(seed))
    return directory


def _text_files(tokenizer_gguf: Path) -> dict[str, Any]:
    from export.checkpoint import open_checkpoint

    smollm2 = open_checkpoint(tokenizer_gguf).files
    tokenizer = json.loads(smollm2["tokenizer.json"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for offset, token in enumerate(added_tokens()):
        tokenizer["added_tokens"].append({"id": FIRST_ADDED_ID + offset, "content": token, **flags})
    return {
        "config.json": CONFIG,
        "preprocessor_config.json": PREPROCESSOR,
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": 64},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 49279, "pad_token_id": 2},
        "chat_template.jinja": CHAT_TEMPLATE,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "model_max_length": 8192,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
        },
    }


def _write_bf16(path: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in _draw(shapes, random):
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())


def _draw(shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights that keep activations near one through the layers; norms near one, biases near zero."""
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            yield values * 0.05 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embedding" in name or "embed_tokens" in name:
            yield values * (0.02 if "patch" in name else 0.1)
        else:
            yield values / np.sqrt(shape[1])


if __name__ == "__main__":
    print(make_snapshot(Path(sys.argv[1]), Path(sys.argv[2])))
