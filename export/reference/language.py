"""Language models with their tokenizers, from snapshots and GGUF files."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.checkpoint import open_checkpoint
from export.checkpoints.gguf_keys import ARCH_READ
from export.checkpoints.gguf_split import open_gguf_file, piece_paths
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
    """Tensors and tokenizer as transformers reads them; the config as we do.

    transformers 5.24 leaves RoPE scaling and Llama 3's factors in GGUF files unread, refuses head counts that are
    listed by layer, and does not know files in several pieces. What we make of the metadata is compared with llama.cpp
    instead (tests/golden/make_gguf_logits.py).
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(**open_checkpoint(path).config)
    pieces = piece_paths(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # transformers draws its own progress bars here
        if len(pieces) > 1 or _lists_layers(path):
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "whole.gguf"
            join_gguf(pieces, path)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return Parts(str(model.config.model_type), language=model, tokenizer=tokenizer)


def _lists_layers(path: Path) -> bool:
    """Whether a number that all layers share is listed once for each of them."""
    metadata = open_gguf_file(path).metadata
    return any(isinstance(value, list) and key.partition(".")[2] in ARCH_READ for key, value in metadata.items())


def join_gguf(pieces: list[Path], out: Path) -> None:
    """Writes the pieces of a split GGUF file as one, by the gguf library alone; lists by layer become one number."""
    import gguf

    readers = [gguf.GGUFReader(piece) for piece in pieces]
    fields = readers[0].fields
    writer = gguf.GGUFWriter(out, fields["general.architecture"].contents())
    for key, field in fields.items():
        if not key.startswith(("GGUF.", "split.", "general.architecture")):
            kind, value = field.types[0], field.contents()
            if kind != gguf.GGUFValueType.ARRAY:
                writer.add_key_value(key, value, kind)
            elif key.partition(".")[2] in ARCH_READ:
                writer.add_key_value(key, value[0], gguf.GGUFValueType.UINT32)
            else:
                writer.add_key_value(key, value, kind, field.types[-1])
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
