"""Random spellings of config.json: fields present, absent, null, contradictory and of odd types, two or three at once.

A case is a tiny checkpoint with its weights as they are and a changed config. `ours` and `theirs` run it on one input;
either may refuse.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError
from export.checkpoint import open_checkpoint
from export.quant.rules import QuantPlan
from tests import tiny
from tests.export.graph_session import build_from

Float32 = NDArray[np.float32]
Values = dict[str, Float32]
Config = dict[str, Any]
ABSENT = "(absent)"
REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError),
    ValueError,
)
"""What transformers raises for configs that it does not take, besides its own errors."""
N_TOKENS, VOCAB = 24, tiny.VOCAB

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama untied, biases": (
        "llama",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "llama, wide heads": ("llama", {"head_dim": 32, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "siglip": ("siglip", {}),
    "dinov2": ("dinov2", {}),
    "idefics3": ("idefics3", {}),
    "idefics3 tied": ("idefics3", {"tie_word_embeddings": True}),
    "smolvlm": ("smolvlm", {}),
}
"""Name → maker of tests/tiny.py and what it is told: tensors that a flag may agree with or contradict."""

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: tuple[Any, ...] = (
    *(ABSENT, None, {}),
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2, "rope_theta": 1234.5},
    {"rope_type": "default", "type": "linear", "factor": 4.0},
    {"rope_type": "linear", "type": "default", "factor": 4.0},
    {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 16},
    {"type": "llama3", **LLAMA3},
    {"rope_type": "llama3", **LLAMA3, "rope_theta": 777.0, "original_max_position_embeddings": 64},
    {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    {"rope_theta": 2000.0},
    {"rope_theta": None},
    {"rope_type": None, "type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": "4"},
    {"full_attention": {"rope_type": "linear", "factor": 4.0}},
)
HUGE = 10**9
MAX_WEIGHTS = 20_000_000
FLAGS = (ABSENT, True, False, False, None)
ODD: tuple[Any, ...] = (None, -1, 0, 2.0, "2", True, [2], {}, HUGE, 1e400, float("nan"))
TEXT_FIELDS: dict[str, tuple[Any, ...]] = {
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "rope_theta": (ABSENT, 100.0, 5000, 1e6, None, "1e6"),
    "original_max_position_embeddings": (ABSENT, 16, 48),
    "partial_rotary_factor": (ABSENT, 1.0, 0.5),
    "num_key_value_heads": (ABSENT, None, 2, 4),
    "head_dim": (ABSENT, None, 16, 32, 8),
    "num_attention_heads": (4, 2, 8, 5),
    "attention_bias": FLAGS,
    "mlp_bias": FLAGS,
    "hidden_act": (
        *(ABSENT, "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu"),
        *("gelu_fast", "mish", None, 3),
    ),
    "hidden_activation": ("gelu", "relu"),
    "rms_norm_eps": (ABSENT, 1e-5, 1e-6, 0.1, 1, None, "1e-5"),
    "max_position_embeddings": (ABSENT, 32, 64, 4096),
    "pretraining_tp": (1, 2, None),
    "sliding_window": (ABSENT, None, 8, 4096),
    "use_sliding_window": (ABSENT, True, False),
    "max_window_layers": (ABSENT, 0, 1, 2, 28),
    "layer_types": (
        *(ABSENT, None, ["full_attention"] * 2, ["full_attention"], ["sliding_attention"] * 2),
        ["full_attention", "sliding_attention"],
    ),
    "dtype": ("float32", "bfloat16"),
    "torch_dtype": ("float32", "float16"),
    "quantization_config": (None, {"quant_method": "gptq", "bits": 4}),
    "tie_word_embeddings": FLAGS,
    "num_hidden_layers": (ABSENT, 2, 1, 3),
    "vocab_size": (ABSENT, VOCAB, VOCAB + 1),
    "intermediate_size": (ABSENT, 96),
}
VISION_FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_act": (ABSENT, "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "gelu_fast", None),
    "layer_norm_eps": (ABSENT, 1e-6, 1e-3, 0.1, None),
    "num_attention_heads": (ABSENT, 1, 2, 4, 3),
    "head_dim": (ABSENT, 16, 8, None),
    "num_channels": (ABSENT, 3, 1),
    "attention_dropout": (0.0, 0.1),
    "image_size": ("list", "wide", "more", ABSENT),
    "patch_size": ("list", ABSENT),
    "intermediate_size": (ABSENT, 48),
    "num_hidden_layers": (ABSENT, 2, 1),
    "model_type": (ABSENT, "siglip_vision_model", "idefics3"),
    "qkv_bias": FLAGS,
    "mlp_ratio": (ABSENT, 4, 2, 4.0),
    "layerscale_value": (1.0, 0.1),
    "use_swiglu_ffn": (ABSENT, False, True),
    "use_mask_token": (ABSENT, True, False),
    "apply_layernorm": (True, False),
    "vision_use_head": (ABSENT, True, False),
    "rms_norm_eps": (1e-2,),
}
TOP_FIELDS: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": FLAGS,
    "scale_factor": (ABSENT, 2, 4, 1),
    "pad_token_id": (ABSENT, 0, 2),
    **{name: TEXT_FIELDS[name] for name in ("rope_theta", "rope_scaling", "hidden_act", "rms_norm_eps", "dtype")},
    "vocab_size": (ABSENT, 500),
    "hidden_size": (ABSENT, 77),
    "quantization_config": (None, {"quant_method": "awq", "bits": 4}),
    "text_config": (None, "llama"),
    "vision_config": (None,),
}
"""Of whole models: flags of the model itself, and doubles of fields of its parts, which nobody reads there."""
OF_TENSORS = (
    *("num_attention_heads", "head_dim", "num_key_value_heads", "num_hidden_layers", "vocab_size", "hidden_size"),
    *("intermediate_size", "mlp_ratio", "patch_size", "image_size", "text_config", "vision_config", "layer_types"),
    *("quantization_config", "attention_bias", "mlp_bias", "qkv_bias", "use_swiglu_ffn", "num_channels"),
)
WHOLE, TOWERS = ("idefics3", "smolvlm"), ("siglip", "dinov2")


@dataclass(frozen=True)
class Case:
    """One config; `changes` are (object, field, value)."""

    number: int
    base: str
    config: Config
    changes: tuple[tuple[str, str, Any], ...]

    @property
    def family(self) -> str:
        return BASES[self.base][0]

    def __str__(self) -> str:
        said = ", ".join(f"{part}{field} {value!r}" for part, field, value in self.changes)
        return f"case {self.number}, {self.base}: {said}"


def make_bases(directory: Path) -> dict[str, Path]:
    """Writes the checkpoints that cases change."""
    return {
        name: tiny.MAKERS[maker](directory / f"base{i}", **over)
        for i, (name, (maker, over)) in enumerate(BASES.items())
    }


def draw(number: int, bases: Mapping[str, Path]) -> Case:
    """The case of that number: one to four changed fields, now and then one of an odd type."""
    random = Random(number)
    base = list(BASES)[number % len(BASES)]
    config = json.loads((bases[base] / "config.json").read_text())
    family = BASES[base][0]
    tables: list[tuple[str, Config, dict[str, tuple[Any, ...]]]] = []
    if family in WHOLE:
        tables = [
            ("text_config.", config["text_config"], TEXT_FIELDS),
            ("vision_config.", config["vision_config"], VISION_FIELDS),
            ("", config, TOP_FIELDS),
        ]
    else:
        fields = VISION_FIELDS if family in TOWERS else TEXT_FIELDS
        tables = [("", config, {name: values for name, values in fields.items() if name != "model_type"})]
    changes = []
    for _ in range(random.choice((1, 2, 2, 3, 3, 4))):
        part, holder, table = random.choice(tables)
        field = random.choice(_weighted(table))
        value = random.choice(ODD) if random.random() < 0.03 else copy.deepcopy(random.choice(table[field]))
        _set(holder, field, value)
        changes.append((part, field, value))
    return Case(number, base, config, tuple(changes))


def _weighted(table: Mapping[str, Any]) -> list[str]:
    """Fields of which many dialects exist are drawn more often than those that only have to fit the tensors."""
    often = {"rope_scaling": 9, "rope_parameters": 9, "rope_theta": 6, "tie_word_embeddings": 6, "hidden_act": 4}
    return [field for field in table for _ in range(1 if field in OF_TENSORS else often.get(field, 3))]


def _set(holder: Config, field: str, value: Any) -> None:
    if value == ABSENT:
        holder.pop(field, None)
        return
    present = holder.get(field)
    if isinstance(value, str) and field in ("image_size", "patch_size"):
        if not isinstance(present, int):
            return
        value = {"list": [present, present], "wide": [present, 2 * present], "more": present + 3}[value]
    holder[field] = value


def snapshot(case: Case, bases: Mapping[str, Path], directory: Path) -> Path:
    """The case as a checkpoint; its other files are links."""
    directory.mkdir()
    for path in bases[case.base].iterdir():
        if path.name == "config.json":
            (directory / path.name).write_text(json.dumps(case.config))
        else:
            (directory / path.name).hardlink_to(path)
    return directory


def token_ids() -> NDArray[np.int64]:
    return np.random.RandomState(11).randint(3, VOCAB - 1, N_TOKENS)


def pixels(side: int) -> Float32:
    return np.random.RandomState(12).standard_normal((2, 3, side, side)).astype(np.float32)


def ours(source: Path, out: Path) -> Values | EdgeVLMError:
    """Features and logits of the exported fp32 graphs, or the refusal."""
    try:
        graphs = build_from(open_checkpoint(source), out, QuantPlan("fp32", "fp32"))
    except EdgeVLMError as error:
        return error
    found: Values = {}
    if "vision_encoder" in graphs.paths:
        side = graphs.session("vision_encoder").get_inputs()[0].shape[-1]
        found["features"] = graphs.encode(pixels(int(side)))
    if graphs.result.decoder is not None:
        found["logits"] = graphs.decode(graphs.embed(token_ids()))[0]
    return found


def theirs(case: Case, source: Path) -> Values | str:
    """The same of transformers, or why it has none: an error, or weights that it would draw at random.

    It is not asked for a size of 10^9, for which it would take the machine's memory, nor for a part of its own default
    size: a text_config that is null is a language model of 7 billion weights.
    """
    if any(value == HUGE for _, _, value in case.changes):
        return "not asked"
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors.torch import load_file

    try:
        model_class = _model_class(case.family)
        config = model_class.config_class.from_pretrained(source)
        with torch.device("meta"):
            n_weights = sum(weight.numel() for weight in model_class(config).parameters())
        if n_weights > MAX_WEIGHTS:
            return f"a model of {n_weights:,} weights"
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=load_file(source / "model.safetensors"),
            dtype=torch.float32,
            output_loading_info=True,
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            return f"drawn at random: {sorted(map(str, [*info['missing_keys'], *info['mismatched_keys']]))[:3]}"
        with torch.no_grad():
            return {name: value.float().numpy() for name, value in _run(model.eval(), case.family).items()}
    except (*REFUSALS, StrictDataclassError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _model_class(family: str) -> Any:
    import transformers

    name = {
        "llama": "LlamaForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "siglip": "SiglipVisionModel",
        "dinov2": "Dinov2Model",
        "idefics3": "Idefics3ForConditionalGeneration",
        "smolvlm": "SmolVLMForConditionalGeneration",
    }[family]
    return getattr(transformers, name)


def _run(model: Any, family: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    vision = model.config if family in TOWERS else getattr(model.config, "vision_config", None)
    if vision is not None:
        size = vision.image_size
        images = torch.from_numpy(pixels(size if isinstance(size, int) else size[0]))
        encode: dict[str, Callable[[Any], Any]] = {
            "siglip": lambda x: model(x).last_hidden_state,
            "dinov2": lambda x: model(x).last_hidden_state[:, 1:],
        }
        whole = lambda x: torch.stack(  # noqa: E731
            [torch.cat(list(model.model.get_image_features(tile[None, None]).pooler_output)) for tile in x]
        )
        found["features"] = encode.get(family, whole)(images)
    if family not in TOWERS:
        found["logits"] = model(input_ids=torch.from_numpy(token_ids())[None], use_cache=False).logits[0]
    return found
