"""Tiny random checkpoints, saved as real Hugging Face snapshot directories.

Two layers, width 64, weights from numpy's frozen RandomState stream (seed 0) under their hub names, every 1-D parameter
perturbed (norms are not one, biases not zero). The same directory loads in transformers, so golden files made there
hold for weights that a test regenerates without torch.

    make_llama(path) make_qwen2(path) make_dinov2(path) make_siglip(path) make_idefics3(path) make_smolvlm(path)
    make_bluelm_v(path)

Each writes the directory and returns it; keyword arguments override fields of config.json (`vision={...}` and
`text={...}` those of the parts of a whole model).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = dict[str, NDArray[np.float32]]

VOCAB = 384
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
SMOLVLM_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_PARTS = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class Weights:
    """Draws named tensors in the order of the calls."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)
        self.tensors: Tensors = {}

    def matrix(self, name: str, *shape: int, gain: float = 1.2) -> None:
        fan_in = int(np.prod(shape[1:]))
        self.tensors[name] = (self.random.standard_normal(shape) * gain / np.sqrt(fan_in)).astype(np.float32)

    def table(self, name: str, *shape: int, scale: float = 0.5) -> None:
        self.tensors[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)

    def vector(self, name: str, size: int, around: float = 0.0, spread: float = 0.2) -> None:
        self.tensors[name] = (around + spread * self.random.standard_normal(size)).astype(np.float32)

    def linear(self, stem: str, out: int, into: int, bias: bool) -> None:
        self.matrix(f"{stem}.weight", out, into)
        if bias:
            self.vector(f"{stem}.bias", out)

    def layer_norm(self, stem: str, size: int) -> None:
        self.vector(f"{stem}.weight", size, around=1.0)
        self.vector(f"{stem}.bias", size)


def make_llama(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    """Llama; by default tied and with plain RoPE."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **TEXT,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **over,
    }
    weights = Weights(seed)
    draw_decoder(weights, config, "model.", "lm_head")
    return write_snapshot(directory, config, weights.tensors, text_files(CHATML))


def make_qwen2(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **TEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 512,
        "max_window_layers": 2,
        **over,
    }
    weights = Weights(seed)
    draw_decoder(weights, config, "model.", "lm_head")
    return write_snapshot(directory, config, weights.tensors, text_files(CHATML))


def make_dinov2(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    config = {**dinov2_config(), **over}
    weights = Weights(seed)
    draw_dinov2(weights, config, "")
    return write_snapshot(directory, config, weights.tensors, {})


def make_siglip(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    """A SigLIP vision tower with the pooling head that image features do not use."""
    config = {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", **VISION, **over}
    width = int(config["hidden_size"])
    weights = Weights(seed)
    draw_siglip(weights, config, "vision_model.")
    head = "vision_model.head."
    weights.table(f"{head}probe", 1, 1, width)
    weights.matrix(f"{head}attention.in_proj_weight", 3 * width, width)
    weights.vector(f"{head}attention.in_proj_bias", 3 * width)
    weights.linear(f"{head}attention.out_proj", width, width, True)
    weights.layer_norm(f"{head}layernorm", width)
    weights.linear(f"{head}mlp.fc1", int(config["intermediate_size"]), width, True)
    weights.linear(f"{head}mlp.fc2", width, int(config["intermediate_size"]), True)
    size = int(config["image_size"])
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 3,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "rescale_factor": 1 / 255,
        }
    }
    return write_snapshot(directory, config, weights.tensors, files)


def make_smolvlm(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    return _make_idefics3_like(directory, "smolvlm", "SmolVLMForConditionalGeneration", seed, over)


def make_idefics3(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    return _make_idefics3_like(directory, "idefics3", "Idefics3ForConditionalGeneration", seed, over)


def _make_idefics3_like(directory: Path, model_type: str, architecture: str, seed: int, over: dict[str, Any]) -> Path:
    over = dict(over)
    tokenizer = tokenizer_json(SMOLVLM_TOKENS)
    ids = added_token_ids(tokenizer)
    text = {**TEXT, "model_type": "llama", "rope_theta": 100000.0, "tie_word_embeddings": False, **over.pop("text", {})}
    text["eos_token_id"] = ids["<end_of_utterance>"]
    vision = {**VISION, "model_type": model_type + "_vision", **over.pop("vision", {})}
    if model_type == "idefics3":
        vision.pop("model_type")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "image_token_id": ids["<image>"],
        "scale_factor": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
        **over,
    }
    tied = bool(config["tie_word_embeddings"])
    weights = Weights(seed)
    draw_siglip(weights, vision, "model.vision_model.")
    into = vision["hidden_size"] * config["scale_factor"] ** 2
    weights.linear("model.connector.modality_projection.proj", text["hidden_size"], into, False)
    draw_decoder(weights, {**text, "tie_word_embeddings": tied}, "model.text_model.", "lm_head")
    tile = vision["image_size"]
    class_name = "SmolVLM" if model_type == "smolvlm" else "Idefics3"
    files: dict[str, Any] = {
        **text_files(CHATML_PARTS, SMOLVLM_TOKENS, eos="<end_of_utterance>"),
        "preprocessor_config.json": {
            "image_processor_type": f"{class_name}ImageProcessor",
            "processor_class": f"{class_name}Processor",
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": tile},
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": 4 * tile},
        },
        "processor_config.json": {
            "processor_class": f"{class_name}Processor",
            "image_seq_len": (tile // vision["patch_size"] // config["scale_factor"]) ** 2,
        },
    }
    return write_snapshot(directory, config, weights.tensors, files)


def make_bluelm_v(directory: Path, *, seed: int = 0, **over: Any) -> Path:
    """The reference model: DINOv2 tower (5x5 patches a tile, so that the 2x2 downsampler pads), MLP, tied llama."""
    over = dict(over)
    tokens = ("<image>",)
    text = {"model_type": "llama", **TEXT, "rope_theta": 10000.0, "tie_word_embeddings": True, **over.pop("text", {})}
    vision = {**dinov2_config(), **over.pop("vision", {})}
    config = {
        "model_type": "bluelm_v",
        "vision_config": vision,
        "text_config": text,
        "image_token_id": added_token_ids(tokenizer_json(tokens))["<image>"],
        "tile_px": 40,
        "max_tiles": 16,
        "relaxed_alpha": 0.1,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        **over,
    }
    weights = Weights(seed)
    draw_dinov2(weights, vision, "vision_tower.")
    width, hidden = vision["hidden_size"], text["hidden_size"]
    weights.linear("projector.downsampler", width, config.get("scale_factor", 2) ** 2 * width, True)
    weights.linear("projector.mlp.0", 2 * hidden, width, True)
    weights.linear("projector.mlp.2", hidden, 2 * hidden, True)
    draw_decoder(weights, text, "language_model.model.", "language_model.lm_head")
    return write_snapshot(directory, config, weights.tensors, text_files(CHATML, tokens))


MAKERS: dict[str, Callable[..., Path]] = {
    "llama": make_llama,
    "qwen2": make_qwen2,
    "dinov2": make_dinov2,
    "siglip": make_siglip,
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "bluelm_v": make_bluelm_v,
}


def dinov2_config() -> dict[str, Any]:
    """A 7x7 position table, as trained, over tiles that may have another size."""
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 4,
        "image_size": 56,
        "patch_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
    }


def draw_decoder(weights: Weights, config: dict[str, Any], root: str, head: str) -> None:
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    n_query = config["num_attention_heads"] * head_dim
    n_key = config["num_key_value_heads"] * head_dim
    bias_qkv = config["model_type"] == "qwen2" or bool(config.get("attention_bias"))
    bias_o, bias_mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    weights.table(f"{root}embed_tokens.weight", vocab, hidden, scale=0.2)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}layers.{i}."
        weights.vector(f"{layer}input_layernorm.weight", hidden, around=1.0)
        weights.linear(f"{layer}self_attn.q_proj", n_query, hidden, bias_qkv)
        weights.linear(f"{layer}self_attn.k_proj", n_key, hidden, bias_qkv)
        weights.linear(f"{layer}self_attn.v_proj", n_key, hidden, bias_qkv)
        weights.linear(f"{layer}self_attn.o_proj", hidden, n_query, bias_o)
        weights.vector(f"{layer}post_attention_layernorm.weight", hidden, around=1.0)
        weights.linear(f"{layer}mlp.gate_proj", mlp, hidden, bias_mlp)
        weights.linear(f"{layer}mlp.up_proj", mlp, hidden, bias_mlp)
        weights.linear(f"{layer}mlp.down_proj", hidden, mlp, bias_mlp)
    weights.vector(f"{root}norm.weight", hidden, around=1.0)
    if not config.get("tie_word_embeddings"):
        weights.matrix(f"{head}.weight", vocab, hidden)


def draw_dinov2(weights: Weights, config: dict[str, Any], root: str) -> None:
    width, patch = config["hidden_size"], config["patch_size"]
    n_positions = (config["image_size"] // patch) ** 2 + 1
    weights.table(f"{root}embeddings.cls_token", 1, 1, width)
    weights.table(f"{root}embeddings.mask_token", 1, width)
    weights.matrix(f"{root}embeddings.patch_embeddings.projection.weight", width, 3, patch, patch)
    weights.vector(f"{root}embeddings.patch_embeddings.projection.bias", width)
    weights.table(f"{root}embeddings.position_embeddings", 1, n_positions, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}encoder.layer.{i}."
        weights.layer_norm(f"{layer}norm1", width)
        for part in ("query", "key", "value"):
            weights.linear(f"{layer}attention.attention.{part}", width, width, config["qkv_bias"])
        weights.linear(f"{layer}attention.output.dense", width, width, True)
        weights.vector(f"{layer}layer_scale1.lambda1", width, around=0.7)
        weights.layer_norm(f"{layer}norm2", width)
        weights.linear(f"{layer}mlp.fc1", config["mlp_ratio"] * width, width, True)
        weights.linear(f"{layer}mlp.fc2", width, config["mlp_ratio"] * width, True)
        weights.vector(f"{layer}layer_scale2.lambda1", width, around=0.7)
    weights.layer_norm(f"{root}layernorm", width)


def draw_siglip(weights: Weights, config: dict[str, Any], root: str) -> None:
    width, patch, mlp = config["hidden_size"], config["patch_size"], config["intermediate_size"]
    weights.matrix(f"{root}embeddings.patch_embedding.weight", width, 3, patch, patch)
    weights.vector(f"{root}embeddings.patch_embedding.bias", width)
    weights.table(f"{root}embeddings.position_embedding.weight", (config["image_size"] // patch) ** 2, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}encoder.layers.{i}."
        weights.layer_norm(f"{layer}layer_norm1", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights.linear(f"{layer}self_attn.{part}", width, width, True)
        weights.layer_norm(f"{layer}layer_norm2", width)
        weights.linear(f"{layer}mlp.fc1", mlp, width, True)
        weights.linear(f"{layer}mlp.fc2", width, mlp, True)
    weights.layer_norm(f"{root}post_layernorm", width)


def text_files(
    chat_template: str, added: tuple[str, ...] = (), *, bos: str = "<|im_start|>", eos: str = "<|im_end|>"
) -> dict[str, Any]:
    """tokenizer.json and the files beside it."""
    tokenizer = tokenizer_json(added)
    ids = added_token_ids(tokenizer)
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": "<|endoftext|>",
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in token if key != "id"}
                for token in tokenizer["added_tokens"]
            },
            **({"additional_special_tokens": list(added)} if added else {}),
        },
        "chat_template.jinja": chat_template,
        "generation_config.json": {"bos_token_id": ids[bos], "eos_token_id": ids[eos], "pad_token_id": 0},
    }


def tokenizer_json(added: tuple[str, ...] = ()) -> dict[str, Any]:
    """A byte-level BPE like SmolLM2's: 3 special tokens, 256 bytes, a few merges, then `added` (special) tokens."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    merges = [
        *(("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġ", "a"), ("r", "e"), ("Ġt", "he"), ("o", "n"), ("e", "r")),
        *(("Ġ", "w"), ("Ġ", "s"), ("a", "t"), ("Ċ", "Ċ"), ("o", "u"), ("n", "d"), ("i", "s"), ("in", "g")),
    ]
    pieces = [*specials, *(byte_symbol(byte) for byte in range(256)), *(left + right for left, right in merges)]
    tokens = [*specials, *added]
    first_free = len(pieces)
    ids = {**{token: i for i, token in enumerate(specials)}, **{t: first_free + i for i, t in enumerate(added)}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in tokens],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }


def byte_symbol(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    others = [other for other in range(256) if other not in printable]
    return chr(256 + others.index(byte))


def added_token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def write_snapshot(directory: Path, config: dict[str, Any], tensors: Tensors, files: dict[str, Any]) -> Path:
    """Writes config.json, model.safetensors and the other files (dicts as JSON)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": config, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False)
        (directory / name).write_text(text, encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
