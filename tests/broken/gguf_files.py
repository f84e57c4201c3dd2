"""Broken GGUF files: what `open_checkpoint` must refuse at once, in one piece or several."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import PackageError, UnsupportedModelError
from tests.broken import BrokenCase
from tests.broken.checkpoints import LFS, PAGE, one_file


def _split(change: Callable[[list[Path]], object], given: int = 0) -> Callable[[Path], Path]:
    """Returns a maker of a GGUF model in three pieces, of which `change` gets the paths; `given` is the one given."""

    def make(tmp_path: Path) -> Path:
        from tests.tiny_gguf import write_model, write_split

        write_model(tmp_path / "model.gguf")
        pieces = write_split(tmp_path / "model.gguf", tmp_path / "pieces", max_tensors=8)
        change(pieces)
        return pieces[given]

    return make


def _exchange(pieces: list[Path]) -> None:
    pieces[0].rename(pieces[0].with_name("scratch"))
    pieces[2].rename(pieces[0])
    pieces[0].with_name("scratch").rename(pieces[2])


def _another_piece(pieces: list[Path]) -> None:
    from tests.tiny_gguf import write_split

    other = write_split(pieces[0].parents[1] / "model.gguf", pieces[0].parent / "other", max_tensors=9)
    other[2].replace(pieces[2])


def _mmproj(tmp_path: Path) -> Path:
    from gguf import GGUFWriter

    path = tmp_path / "mmproj-model.gguf"
    out = GGUFWriter(path, "clip")
    out.add_type("mmproj")
    out.add_tensor("v.patch_embd.weight", np.ones((2, 2), np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _gguf(change: Callable[[bytearray], object]) -> Callable[[Path], Path]:
    """Returns a maker of a tiny GGUF model whose bytes `change` edits in place."""

    def make(tmp_path: Path) -> Path:
        from tests.tiny_gguf import write_model

        path = tmp_path / "model.gguf"
        write_model(path)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(bytes(content))
        return path

    return make


def _after(content: bytearray, key: str, value: bytes) -> None:
    """Overwrites what follows the text `key` and the type of its value."""
    at = content.index(key.encode()) + len(key) + 4
    content[at : at + len(value)] = value


def _table(name: str, tensor: str, value: int) -> Callable[[bytearray], object]:
    """Overwrites a field of a tensor's entry: 'type' or 'offset'."""

    def change(content: bytearray) -> None:
        at = content.index(tensor.encode()) + len(tensor)
        (n_dimensions,) = struct.unpack_from("<I", content, at)
        at += 4 + 8 * n_dimensions
        struct.pack_into(*{"type": ("<I", content, at), "offset": ("<Q", content, at + 4)}[name], value)

    return change


def _written(**options: Any) -> Callable[[Path], Path]:
    """Returns a maker of a GGUF model written with other options: arch, vocabulary, metadata, or further tensors."""

    def make(tmp_path: Path) -> Path:
        from tests.tiny_gguf import add, byte_level, tensors, writer

        vocabulary = byte_level("smollm")
        options.get("edit", lambda value: None)(vocabulary)
        path = tmp_path / "model.gguf"
        with writer(path, options.get("arch", "llama"), vocabulary) as out:
            for name, value in {**tensors("llama", len(vocabulary.tokens)), **options.get("more", {})}.items():
                out.add_tensor(name, value)
            for key, value in options.get("metadata", {}).items():
                add(out, key, value)
        return path

    return make


CASES = [
    BrokenCase("GGUF: a Git LFS pointer", one_file("model.gguf", LFS), PackageError, "a Git LFS pointer"),
    BrokenCase("GGUF: a web page", one_file("model.gguf", PAGE), PackageError, "a web page (HTML)"),
    BrokenCase("GGUF: from before GGUF", one_file("model.gguf", b"tjgg" + bytes(60)), PackageError, "before GGUF"),
    BrokenCase(
        "GGUF: only the vision part", _mmproj, UnsupportedModelError, "only the vision part of a model (mmproj)"
    ),
    BrokenCase(
        "GGUF: big-endian",
        _gguf(lambda c: c.__setitem__(slice(4, 8), b"\0\0\0\3")),
        UnsupportedModelError,
        "is a big-endian GGUF file",
    ),
    BrokenCase(
        "GGUF: YaRN",
        _written(metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}),
        UnsupportedModelError,
        "RoPE scaling 'yarn'",
    ),
    BrokenCase(
        "GGUF: an attention factor",
        _written(metadata={"llama.rope.scaling.attn_factor": 1.5}),
        UnsupportedModelError,
        "sets 'llama.rope.scaling.attn_factor' to 1.5",
    ),
    BrokenCase(
        "GGUF: a RoPE base of 0",
        _written(metadata={"llama.rope.freq_base": 0.0}),
        PackageError,
        "expected a positive number",
    ),
    BrokenCase(
        "GGUF: attention to what comes later",
        _written(metadata={"llama.attention.causal": False}),
        UnsupportedModelError,
        "sets 'llama.attention.causal' to False",
    ),
    BrokenCase(
        "GGUF: layers with different heads",
        _written(metadata={"llama.attention.head_count_kv": [2, 4]}),
        UnsupportedModelError,
        "differs between layers (2, 4)",
    ),
    BrokenCase(
        "GGUF: heads for more layers than there are",
        _written(metadata={"llama.attention.head_count_kv": [2, 2, 2]}),
        PackageError,
        "lists 3 values; expected 2",
    ),
    BrokenCase(
        "GGUF: more layers than there are tensors",
        _written(metadata={"llama.block_count": 3}),
        PackageError,
        "has no tensor 'blk.2.attn_norm.weight'",
    ),
    BrokenCase(
        "GGUF: another number of tokens",
        _written(metadata={"llama.vocab_size": 300}),
        PackageError,
        "states vocab_size 300",
    ),
    BrokenCase(
        "GGUF: a key of a later version",
        _written(metadata={"llama.attention.new_rule": 2}),
        UnsupportedModelError,
        "sets 'llama.attention.new_rule' to 2; what it changes is not known",
    ),
    BrokenCase(
        "GGUF: text that is normalised first",
        _written(metadata={"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]}),
        UnsupportedModelError,
        "sets 'tokenizer.ggml.precompiled_charsmap'",
    ),
    BrokenCase(
        "GGUF: tokens that may not be answered",
        _written(metadata={"tokenizer.ggml.suppress_tokens": [7]}),
        UnsupportedModelError,
        "sets 'tokenizer.ggml.suppress_tokens'",
    ),
    BrokenCase(
        "GGUF in pieces: one is missing", _split(lambda p: p[1].unlink()), PackageError, "beside it is no model-00002"
    ),
    BrokenCase("GGUF in pieces: two exchanged", _split(_exchange), PackageError, "the pieces are mixed up"),
    BrokenCase("GGUF in pieces: one of another cut", _split(_another_piece, 1), PackageError, "the 3 pieces hold 18"),
    BrokenCase(
        "GGUF in pieces: one is a Git LFS pointer",
        _split(lambda p: p[2].write_bytes(LFS)),
        PackageError,
        "model-00003-of-00003.gguf is not a GGUF file, but a Git LFS pointer",
    ),
    BrokenCase(
        "GGUF in pieces: one renamed",
        _split(lambda p: p[0].rename(p.__setitem__(0, p[0].with_name("mine.gguf")) or p[0])),
        PackageError,
        "are found by their names",
    ),
    BrokenCase("GGUF: an empty file", _gguf(bytearray.clear), PackageError, "cannot be read as GGUF"),
    BrokenCase(
        "GGUF: another file type", _gguf(lambda c: c.__setitem__(slice(4), b"PK\3\4")), PackageError, "not a GGUF"
    ),
    BrokenCase("GGUF: version 1", _gguf(lambda c: c.__setitem__(4, 1)), UnsupportedModelError, "version 1"),
    BrokenCase(
        "GGUF: cut off in its data", _gguf(lambda c: c.__delitem__(slice(-4096, None))), PackageError, "is cut off"
    ),
    BrokenCase(
        "GGUF: cut off in its metadata", _gguf(lambda c: c.__delitem__(slice(500, None))), PackageError, "cut off"
    ),
    BrokenCase(
        "GGUF: a text of 2^62 bytes",
        _gguf(lambda c: _after(c, "general.name", struct.pack("<Q", 1 << 62))),
        PackageError,
        "cut off or damaged",
    ),
    BrokenCase(
        "GGUF: a list of 2^60 tokens",
        _gguf(lambda c: _after(c, "tokenizer.ggml.tokens", struct.pack("<IQ", 8, 1 << 60))),
        PackageError,
        "cut off or damaged",
    ),
    BrokenCase(
        "GGUF: a tensor beyond the end",
        _gguf(_table("offset", "blk.1.ffn_down.weight", 1 << 40)),
        PackageError,
        "is cut off",
    ),
    BrokenCase(
        "GGUF: two tensors in the same bytes",
        _gguf(_table("offset", "blk.1.ffn_down.weight", 0)),
        PackageError,
        "overlaps",
    ),
    BrokenCase(
        "GGUF: IQ2_XXS weights",
        _gguf(_table("type", "blk.1.ffn_down.weight", 16)),
        UnsupportedModelError,
        "stored as IQ2_XXS",
    ),
    BrokenCase("GGUF: another architecture", _written(arch="mamba"), UnsupportedModelError, "the architecture 'mamba'"),
    BrokenCase(
        "GGUF: a mixture of experts",
        _written(metadata={"llama.expert_count": 8}),
        UnsupportedModelError,
        "sets 'llama.expert_count' to 8",
    ),
    BrokenCase(
        "GGUF: an unknown tensor",
        _written(more={"blk.0.attn_sinks.weight": np.zeros(8, np.float32)}),
        UnsupportedModelError,
        "holds the tensor 'blk.0.attn_sinks.weight'",
    ),
    BrokenCase(
        "GGUF: an unknown pre-tokenizer",
        _written(edit=lambda vocabulary: setattr(vocabulary, "pre", "tekken")),
        UnsupportedModelError,
        "the pre-tokenizer 'tekken'",
    ),
    BrokenCase(
        "GGUF: an unknown tokenizer",
        _written(edit=lambda vocabulary: setattr(vocabulary, "model", "t5")),
        UnsupportedModelError,
        "the tokenizer 't5'",
    ),
    BrokenCase(
        "GGUF: a merge of absent tokens",
        _written(edit=lambda vocabulary: vocabulary.merges.append("absent pieces")),
        PackageError,
        "its tokenizer cannot be built",
    ),
    BrokenCase(
        "GGUF: an eos id beyond the vocabulary",
        _written(edit=lambda vocabulary: vocabulary.extra.update(eos_token_id=99999)),
        PackageError,
        "'tokenizer.ggml.eos_token_id' is 99999",
    ),
]
