"""Writes tiny random packages straight from onnx.helper, independent of `export`, for tests of the runtime.

The decoder is a 2-layer llama (GQA, RoPE outside, tied head) in fp32, the tower one patch convolution and a projection.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevlm.spec import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    CacheEntry,
    DecoderSpec,
    FileEntry,
    GenerationSpec,
    GraphEntry,
    Manifest,
    ProcessorSpec,
    PromptSpec,
    QuantEntry,
)
from edgevlm.strict_json import to_json

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, MLP = 32, 4, 2, 16, 2, 48
TILE_PX, PATCH, TOKENS_PER_TILE = 28, 7, 4
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<fake>")
VOCAB = 256 + len(SPECIAL)
EOS, IM_START, IM_END, IMAGE = 256, 257, 258, 259
CONTEXT = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _tokenizer_json() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return str(tokenizer.to_str())


class _Graph:
    """Collects nodes and initialisers; the smallest thing that writes a graph with external data."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def node(
        self, op: str, inputs: list[str], outputs: int | list[str] = 1, domain: str = "", **attributes: Any
    ) -> Any:
        self.count += 1
        names = outputs if isinstance(outputs, list) else [f"{op}_{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, name=f"{op}_{self.count}", **attributes))
        return names[0] if len(names) == 1 else names

    def random(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.constant(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, name: str, array: Any) -> str:
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def save(self, path: Path, inputs: list[Any], outputs: list[Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + "_data", size_threshold=128)


def _info(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _embed(path: Path, table: Any) -> None:
    graph = _Graph(0)
    graph.node("Gather", [graph.constant("table", table), "input_ids"], ["inputs_embeds"])
    graph.save(
        path,
        [_info("input_ids", TensorProto.INT64, "B", "T")],
        [_info("inputs_embeds", TensorProto.FLOAT, "B", "T", HIDDEN)],
    )


def _vision(path: Path, seed: int) -> None:
    graph = _Graph(seed)
    side = TILE_PX // PATCH
    patches = graph.node(
        "Conv", ["pixel_values", graph.random("conv", 24, 3, PATCH, PATCH, scale=0.1)], strides=[PATCH, PATCH]
    )
    flat = graph.node("Reshape", [patches, graph.constant("flat", np.array([0, 24 * side, side], np.int64))])
    flat = graph.node("Transpose", [flat], perm=[0, 2, 1])
    graph.node("MatMul", [flat, graph.random("project", 24 * side, HIDDEN, scale=0.1)], ["image_features"])
    graph.save(
        path,
        [_info("pixel_values", TensorProto.FLOAT, "C", 3, TILE_PX, TILE_PX)],
        [_info("image_features", TensorProto.FLOAT, "C", TOKENS_PER_TILE, HIDDEN)],
    )


def _decoder(path: Path, table: Any, seed: int) -> None:
    graph = _Graph(seed)
    microsoft = "com.microsoft"
    positions = np.arange(CONTEXT)[:, None] / (10000 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))[None]
    cos = graph.constant("cos", np.cos(positions).astype(np.float32))
    sin = graph.constant("sin", np.sin(positions).astype(np.float32))
    inputs = [
        _info("inputs_embeds", TensorProto.FLOAT, "B", "T", HIDDEN),
        _info("attention_mask", TensorProto.INT64, "B", "total"),
        _info("position_ids", TensorProto.INT64, "B", "T"),
        _info("num_logits_to_keep", TensorProto.INT64),
    ]
    outputs = [_info("logits", TensorProto.FLOAT, "B", "K", VOCAB)]
    one = graph.constant("one", np.array([1], np.int64))
    lengths = graph.node("ReduceSum", ["attention_mask", one], keepdims=0)
    lengths = graph.node("Cast", [graph.node("Sub", [lengths, one])], to=TensorProto.INT32)
    total = graph.node("Gather", [graph.node("Shape", ["attention_mask"]), graph.constant("axis", np.array(1))])
    total = graph.node("Cast", [total], to=TensorProto.INT32)
    hidden = "inputs_embeds"

    def norm(x: str, name: str) -> str:
        scale = graph.constant(name, 1 + 0.1 * graph.rng.standard_normal(HIDDEN).astype(np.float32))
        return str(graph.node("SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=1e-5, stash_type=1))

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        return str(graph.node("MatMul", [x, graph.random(name, rows, columns, scale=1.6 / rows**0.5)]))

    for i in range(LAYERS):
        x = norm(hidden, f"l{i}.norm1")
        q = linear(x, f"l{i}.q", HIDDEN, HEADS * HEAD_DIM)
        k = linear(x, f"l{i}.k", HIDDEN, KV_HEADS * HEAD_DIM)
        v = linear(x, f"l{i}.v", HIDDEN, KV_HEADS * HEAD_DIM)
        rotate = {"domain": microsoft, "rotary_embedding_dim": 0}
        q = graph.node("RotaryEmbedding", [q, "position_ids", cos, sin], num_heads=HEADS, **rotate)
        k = graph.node("RotaryEmbedding", [k, "position_ids", cos, sin], num_heads=KV_HEADS, **rotate)
        names = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        present = [f"present.{i}.key", f"present.{i}.value"]
        graph.node(
            "GroupQueryAttention",
            [q, k, v, *names, lengths, total],
            [f"attention_{i}", *present],
            domain=microsoft,
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
        )
        hidden = graph.node("Add", [hidden, linear(f"attention_{i}", f"l{i}.o", HEADS * HEAD_DIM, HIDDEN)])
        x = norm(hidden, f"l{i}.norm2")
        gate = linear(x, f"l{i}.gate", HIDDEN, MLP)
        gate = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        gate = graph.node("Mul", [gate, linear(x, f"l{i}.up", HIDDEN, MLP)])
        hidden = graph.node("Add", [hidden, linear(gate, f"l{i}.down", MLP, HIDDEN)])
        inputs += [_info(name, TensorProto.FLOAT, "B", KV_HEADS, "P", HEAD_DIM) for name in names]
        outputs += [_info(name, TensorProto.FLOAT, "B", KV_HEADS, "total", HEAD_DIM) for name in present]
    hidden = norm(hidden, "final_norm")
    start = graph.node("Neg", [graph.node("Reshape", ["num_logits_to_keep", one])])
    stop = graph.constant("stop", np.array([np.iinfo(np.int64).max], np.int64))
    hidden = graph.node("Slice", [hidden, start, stop, one])
    graph.node("MatMul", [hidden, graph.constant("head", table.T)], ["logits"])
    graph.save(path, inputs, outputs)


def write_package(
    path: Path,
    *,
    vision: bool = True,
    seed: int = 0,
    tiling: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Writes a package into the new directory `path` and returns it."""
    rng = np.random.default_rng(seed + 100)
    table = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    graphs = {"embed_tokens": "embed_tokens", "decoder_model_merged": "decoder_model_merged"}
    _embed(path / "onnx" / "embed_tokens.onnx", table)
    _decoder(path / "onnx" / "decoder_model_merged.onnx", table, seed)
    if vision:
        graphs["vision_encoder"] = "vision_encoder"
        _vision(path / "onnx" / "vision_encoder.onnx", seed + 1)
    (path / "tokenizer.json").write_text(_tokenizer_json())
    (path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"})
    )
    processor = {
        "scheme": "relaxed",
        "tile_px": TILE_PX,
        "resample": "bicubic",
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "thumbnail": "first",
        "max_rows": 3,
        "max_cols": 3,
        "max_tiles": 9,
    }
    cache = tuple(
        CacheEntry(kind, i, f"past_key_values.{i}.{kind}", f"present.{i}.{kind}", (KV_HEADS, "P", HEAD_DIM))
        for i in range(LAYERS)
        for kind in ("key", "value")
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        arch="bluelm_v" if vision else "llama",
        created="2026-01-01T00:00:00Z",
        source="tests",
        versions={},
        processor=ProcessorSpec(**{**processor, **(tiling or {})}) if vision else None,  # type: ignore[arg-type]
        prompt=PromptSpec("<image>", IMAGE, TOKENS_PER_TILE) if vision else None,
        decoder=DecoderSpec(
            HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT, CONTEXT, cache, ((16, 16),) * LAYERS
        ),
        generation=GenerationSpec(**{"eos_token_ids": (IM_END,), "bos_token_id": EOS, **(generation or {})}),
        graphs=tuple(
            GraphEntry(name, f"onnx/{stem}.onnx", (f"onnx/{stem}.onnx_data",))  # type: ignore[arg-type]
            for name, stem in graphs.items()
        ),
        quant=QuantEntry("fp32", "fp32", (), (), 32.0),
        sizes=(),
        parity=(),
        files=(),
    )
    write_manifest(path, manifest)
    return path


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes edgevlm.json with sizes and hashes of all the other files."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != MANIFEST_NAME]
    entries = [
        FileEntry(p.relative_to(path).as_posix(), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in files
    ]
    data = to_json(manifest)
    data["files"] = to_json(entries)
    (path / MANIFEST_NAME).write_text(json.dumps(data, indent=1))
