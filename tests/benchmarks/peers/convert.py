"""A model in a peer's own form: `python convert.py TARGET FORM SOURCE [tied]`, in the environment with the tools.

4-bit weights in groups of 32 without zero points, activations in int8 where the peer can: what edgevlm's w4g32 is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def q4_0(target: Path, source: str) -> None:
    """llama.cpp's Q4_0, head included; from a file without a head of its own when the two tables are one."""
    import llama_cpp as lib

    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = lib.LLAMA_FTYPE_MOSTLY_Q4_0, True, 2
    parameters.output_tensor_type = parameters.token_embedding_type = 2  # GGML_TYPE_Q4_0
    parameters.pure = True
    if lib.llama_model_quantize(source.encode(), str(target).encode(), parameters):
        raise SystemExit(f"{source} could not be quantised")


def snapshot(target: Path, source: str, *, tied: bool) -> None:
    """A Hugging Face directory in fp16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float16)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if tied:
        model.config.tie_word_embeddings = True
        model.model.embed_tokens.weight = model.lm_head.weight
        model.tie_weights()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def openvino(target: Path, source: str) -> None:
    """Every linear in int4, the head included (ratio 1)."""
    command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino", "--model", source]
    command += ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "32", "--sym"]
    subprocess.run([*command, "--ratio", "1.0", str(target)], check=True)


def ort_genai(target: Path, source: str) -> None:
    """accuracy_level 4: int8 activations."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", str(target), "-p", "int4"]
    subprocess.run(
        [*command, "-e", "cpu", "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"], check=True
    )


if __name__ == "__main__":
    place, form, origin = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if form == "snapshot":
        snapshot(place, origin, tied="tied" in sys.argv[4:])
    else:
        {"q4_0": q4_0, "openvino": openvino, "ort-genai": ort_genai}[form](place, origin)
