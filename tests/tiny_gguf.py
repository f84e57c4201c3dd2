"""Tiny GGUF language models, written with the gguf library: random weights, and vocabularies learnt on the spot.

The vocabularies are trained without splitting text into words first, so that their merges cross every boundary a
pre-tokenizer could draw: leaving one of its rules out changes the ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from export.checkpoints.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, byte_alphabet
from tests.tokenizer_strings import make_strings

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 256, 2, 8, 2, 32
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_TOKEN = "<tool>"
ABSENT_BYTE = 0xF1
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@dataclass
class TinyVocabulary:
    """What goes under tokenizer.ggml.*."""

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def learn_merges(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of symbols, most frequent pair first, ties by the pair itself."""
    lines = [list(text) for text in texts]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for line in lines for pair in pairwise(line))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        lines = [_merge_pair(line, best) for line in lines]
    return merges


def _merge_pair(line: list[str], pair: tuple[str, str]) -> list[str]:
    merged, at = [], 0
    while at < len(line):
        if at + 1 < len(line) and (line[at], line[at + 1]) == pair:
            merged.append(line[at] + line[at + 1])
            at += 2
        else:
            merged.append(line[at])
            at += 1
    return merged


@cache
def _byte_level_merges() -> tuple[tuple[str, str], ...]:
    alphabet = byte_alphabet()
    texts = ["".join(alphabet[byte] for byte in text.encode()) for text in make_strings((), 120, seed=1)]
    return tuple(learn_merges(texts, 400))


@cache
def _sentencepiece_merges() -> tuple[tuple[str, str], ...]:
    return tuple(learn_merges(["▁" + text.replace(" ", "▁") for text in make_strings((), 120, seed=1)], 400))


def byte_level(pre: str | None, **extra: Any) -> TinyVocabulary:
    """GPT-2 style; one byte has no token, and ' foto' is a token that no merge makes."""
    alphabet = [character for byte, character in enumerate(byte_alphabet()) if byte != ABSENT_BYTE]
    merges = _byte_level_merges()
    words = list(dict.fromkeys(left + right for left, right in merges))
    tokens = [*CONTROL_TOKENS, *alphabet, *words, "Ġfoto", USER_TOKEN]
    types = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 4) + [USER_DEFINED]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2, "unknown_token_id": 0}
    lines = [f"{left} {right}" for left, right in merges]
    return TinyVocabulary("gpt2", pre, tokens, types, merges=lines, extra={**ids, **extra})


def sentencepiece(**extra: Any) -> TinyVocabulary:
    """Llama 2 style: scores, byte tokens; many characters have no token of their own."""
    merges = _sentencepiece_merges()
    words = list(dict.fromkeys(left + right for left, right in merges))
    letters = sorted({letter for word in words for letter in word})
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *words, *letters, USER_TOKEN]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(words) + len(letters)), USER_DEFINED]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(tokens) - 259)]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return TinyVocabulary("llama", None, tokens, types, scores=scores, extra={**ids, **extra})


def tensors(arch: str, n_tokens: int, *, tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under llama.cpp's names; Q and K as llama.cpp stores them."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_tokens, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (n_tokens, HIDDEN)
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (MLP, HIDDEN),
            "ffn_up.weight": (MLP, HIDDEN),
            "ffn_down.weight": (HIDDEN, MLP),
        }
        if arch == "qwen2":
            block |= {f"attn_{x}.bias": (block[f"attn_{x}.weight"][0],) for x in "qkv"}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def calm_tensors(arch: str, n_tokens: int) -> dict[str, np.ndarray]:
    """`tensors` of the sizes that trained models have, so that logits tell one computation from another."""

    def scaled(name: str, value: np.ndarray) -> np.ndarray:
        if value.ndim == 2:
            return value * np.float32(0.05)
        return np.float32(0.1) * value + np.float32("norm" in name)

    return {name: scaled(name, value) for name, value in tensors(arch, n_tokens).items()}


def llama3_factors() -> np.ndarray:
    """rope_freqs.weight of a Llama 3 with a base of 10,000: of 16 divisors some are 1, some 8 and some between."""
    inverse = 10000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = 8192 * inverse / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    return np.asarray(1 / ((1 - smooth) / 8 + smooth), np.float32)


ROTATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none with a factor": {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    "none with an old factor": {"rope.scaling.type": "none", "rope.scale_linear": 4.0},
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "linear by the old key": {"rope.scaling.type": "linear", "rope.scale_linear": 4.0},
    "a factor without a type": {"rope.scaling.factor": 4.0},
    "an old factor without a type": {"rope.scale_linear": 4.0},
    "a factor of 0 beside an old one": {"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0},
    "another base": {"rope.freq_base": 500000.0},
    "key heads listed by layer": {"attention.head_count_kv": [KV_HEADS] * LAYERS},
    "keys that change nothing": {
        "tensor_data_layout": "Meta AI original pth",
        "attention.layer_norm_epsilon": 0.5,
        "rope.scaling.finetuned": True,
        "rope.scaling.original_context_length": 64,
        "attention.sliding_window_pattern": 2,
        "vocab_size": 660,
    },
}
"""Metadata below the architecture's prefix that is read, by what it says."""


def add(out: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds one metadata value under the GGUF type that llama.cpp expects of it."""
    if isinstance(value, list):
        out.add_array(key, value)
    else:
        kinds = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32, str: out.add_string}
        kinds[type(value)](key, value)


def write_calm(
    path: Path, arch: str, metadata: dict[str, Any] | None = None, more: dict[str, np.ndarray] | None = None
) -> Path:
    """Writes a model of calm tensors with `metadata` below the architecture's prefix and `more` tensors."""
    vocabulary = byte_level("smollm")
    with writer(path, arch, vocabulary) as out:
        for name, value in {**calm_tensors(arch, len(vocabulary.tokens)), **(more or {})}.items():
            out.add_tensor(name, value)
        for key, value in (metadata or {}).items():
            add(out, f"{arch}.{key}", value)
    return path


@contextmanager
def writer(path: Path, arch: str = "llama", vocabulary: TinyVocabulary | None = None) -> Iterator[gguf.GGUFWriter]:
    """A GGUFWriter with complete metadata; tensors (and changes) are added inside the with block."""
    vocabulary = vocabulary or byte_level("smollm")
    out = gguf.GGUFWriter(path, arch)
    out.add_name(f"tiny {arch}")
    out.add_vocab_size(len(vocabulary.tokens))
    out.add_context_length(512)
    out.add_embedding_length(HIDDEN)
    out.add_feed_forward_length(MLP)
    out.add_block_count(LAYERS)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        out.add_tokenizer_pre(vocabulary.pre)
    out.add_token_list(vocabulary.tokens)
    out.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        out.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        out.add_token_merges(vocabulary.merges)
    for key, value in vocabulary.extra.items():
        (out.add_bool if isinstance(value, bool) else out.add_uint32)(f"tokenizer.ggml.{key}", value)
    out.add_chat_template(TEMPLATE)
    yield out
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_model(
    path: Path,
    arch: str = "llama",
    *,
    vocabulary: TinyVocabulary | None = None,
    quant: str = "F32",
    tied: bool = True,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Writes a whole model, its matrices quantised by the gguf library; returns the tensors before quantisation."""
    vocabulary = vocabulary or byte_level("smollm")
    values = tensors(arch, len(vocabulary.tokens), tied=tied, seed=seed)
    kind = gguf.GGMLQuantizationType[quant]
    with writer(path, arch, vocabulary) as out:
        for name, value in values.items():
            if value.ndim == 1 or quant == "F32":
                out.add_tensor(name, value)
            else:
                out.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    return values


def variants() -> dict[str, TinyVocabulary]:
    """Every kind of tokenizer that is read, by name."""
    return {
        **{pre: byte_level(pre) for pre in ("smollm", "qwen2", "llama-bpe", "gpt-2", "default")},
        "bos-eos": byte_level("qwen2", add_bos_token=True, add_eos_token=True),
        "spm": sentencepiece(),
        "spm-no-prefix": sentencepiece(add_space_prefix=False, add_bos_token=False),
    }


def write_split(
    whole: Path,
    directory: Path,
    *,
    max_tensors: int = 0,
    max_bytes: int = 0,
    skip: str | None = None,
    small_first: bool = False,
) -> list[Path]:
    """Writes `whole` again in pieces, by the gguf library's reader and writer; returns their paths.

    With `small_first` the first piece has the metadata and no tensor.
    """
    reader = gguf.GGUFReader(whole)
    fields = reader.fields
    directory.mkdir(parents=True, exist_ok=True)
    out = gguf.GGUFWriter(
        directory / whole.name,
        fields["general.architecture"].contents(),
        split_max_tensors=max_tensors,
        split_max_size=max_bytes,
        small_first_shard=small_first,
    )
    for key, entry in fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            element = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            out.add_key_value(key, entry.contents(), entry.types[0], element)
    for tensor in reader.tensors:
        if tensor.name != skip:
            out.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return sorted(directory.glob(f"{whole.stem}-*.gguf"))


def rewrite(path: Path, metadata: dict[str, int]) -> None:
    """Sets integers of a file's metadata in place."""
    reader = gguf.GGUFReader(path, "r+")
    for key, value in metadata.items():
        entry = reader.fields[key]
        entry.parts[entry.data[0]][0] = value
