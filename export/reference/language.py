"""Language models with their tokenizers, from snapshots and GGUF files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.reference.model import Parts
from export.reference.weights import load_model


def load_language(source: Path, config: Mapping[str, Any]) -> Parts:
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    classes = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}
    model = load_model(classes[str(config["model_type"])], source)
    return Parts(str(config["model_type"]), language=model, tokenizer=load_tokenizer(source))


def load_tokenizer(source: Path) -> Any:
    """The class that tokenizer_config.json names: AutoTokenizer may prefer the model type's and its own splitting."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = source / "tokenizer_config.json"
    declared = json.loads(path.read_text()).get("tokenizer_class") if path.is_file() else None
    tokenizer_class = PreTrainedTokenizerFast if declared == "PreTrainedTokenizerFast" else AutoTokenizer
    return tokenizer_class.from_pretrained(source)


def load_gguf(path: Path) -> Parts:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # transformers draws its own progress bars here
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return Parts(str(model.config.model_type), language=model, tokenizer=tokenizer)
