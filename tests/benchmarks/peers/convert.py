"""A model in a peer's own form: `python convert.py TARGET FORM SOURCE [tied]`, in the environment with the tools.

4-bit weights in groups of 32 without zero points, activations in int8 where the peer can: what edgevlm's w4g32 is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
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


def executorch(target: Path, source: str) -> None:
    """A .pte by ExecuTorch's own example exporter: linears in int4 with int8 activations (8da4w), table in int4."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((Path(source) / "config.json").read_text())
    tensors = load_file(Path(source) / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    weights = {"tok_embeddings.weight": table, "output.weight": table, "norm.weight": tensors.pop("model.norm.weight")}
    tensors.pop("lm_head.weight", None)
    for name, tensor in tensors.items():
        _, _, layer, *place, kind = name.split(".")
        weights[f"layers.{layer}.{EXECUTORCH_NAMES['.'.join(place)]}.{kind}"] = tensor
    shape = {
        "dim": config["hidden_size"], "hidden_dim": config["intermediate_size"], "ffn_dim_multiplier": 1,
        "n_layers": config["num_hidden_layers"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"], "use_scaled_rope": False,
        "use_hf_rope": True, "attention_qkv_bias": "layers.0.attention.wq.bias" in weights,
        "rope_theta": config.get("rope_theta") or config["rope_parameters"]["rope_theta"],
    }  # fmt: skip
    family = {"llama": "smollm2", "qwen2": "qwen2_5_1_5b"}[config["model_type"]]
    with tempfile.TemporaryDirectory() as scratch:
        torch.save({name: tensor.float() for name, tensor in weights.items()}, f"{scratch}/model.pth")
        Path(f"{scratch}/params.json").write_text(json.dumps(shape))
        command = [sys.executable, "-m", "executorch.examples.models.llama.export_llama", "--model", family]
        command += ["--checkpoint", f"{scratch}/model.pth", "--params", f"{scratch}/params.json", "-o", scratch]
        command += ["-kv", "--use_sdpa_with_kv_cache", "-X", "--xnnpack-extended-ops", "-d", "fp32"]
        command += ["-qmode", "8da4w", "-G", "32", "-E", "4,32", "--output_name", "model"]
        subprocess.run([*command, "--max_seq_length", "1024", "--max_context_length", "1024"], check=True)
        shutil.move(f"{scratch}/model.pte", target)


EXECUTORCH_NAMES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip

if __name__ == "__main__":
    place, form, origin = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if form == "snapshot":
        snapshot(place, origin, tied="tied" in sys.argv[4:])
    else:
        {"q4_0": q4_0, "openvino": openvino, "ort-genai": ort_genai, "executorch": executorch}[form](place, origin)
