"""Broken checkpoints: snapshots, GGUF files and composed checkpoints that `open_checkpoint` must refuse at once."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from tests.broken import BrokenCase
from tests.safetensors_bytes import file_of, header_of, pack

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"


def _snapshot(
    weights: bytes | None = None, config: Any = CONFIG, change: Callable[[Path], object] = lambda path: None
) -> Callable[[Path], Path]:
    """Returns a maker of a sound small snapshot, but for the arguments and what `change` does to the directory."""

    def make(tmp_path: Path) -> Path:
        path = tmp_path / "snapshot"
        path.mkdir()
        (path / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
        (path / "model.safetensors").write_bytes(file_of(TENSORS) if weights is None else weights)
        change(path)
        return path

    return make


def _header(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Returns a maker of a snapshot whose safetensors header `edit` changes."""
    header, data = header_of({name: ("F32", values) for name, values in TENSORS.items()})
    edit(header)
    return _snapshot(pack(header, data))


def _index(weight_map: Any, shard: bytes | None = None, change: Callable[[Path], object] = lambda path: None) -> Any:
    """Returns a maker of a sharded snapshot with this `weight_map`."""

    def apply(path: Path) -> None:
        (path / "model.safetensors").unlink()
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (path / SHARD).write_bytes(file_of(TENSORS) if shard is None else shard)
        change(path)

    return _snapshot(change=apply)


def _as_type(dtype: str) -> Callable[[Path], Path]:
    return _snapshot(file_of(TENSORS, dtype))


def _link(path: Path) -> None:
    outside = path.parent / "secret.safetensors"
    outside.write_bytes(file_of(TENSORS))
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(outside)


def _pipe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 134515008\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def _instead(name: str, content: bytes) -> Callable[[Path], Path]:
    """Returns a maker of a sound snapshot in which another file stands under `name`."""
    return _snapshot(change=lambda path: (path / name).write_bytes(content))


def _directory(*files: str, config: bool = True) -> Callable[[Path], Path]:
    """Returns a maker of a directory with these files instead of weights, and perhaps a config.json."""

    def make(tmp_path: Path) -> Path:
        path = tmp_path / "snapshot"
        path.mkdir()
        if config:
            (path / "config.json").write_text(json.dumps(CONFIG))
        for name in files:
            (path / name).write_bytes(b"anything")
        return path

    return make


def _one_file(name: str, content: bytes) -> Callable[[Path], Path]:
    """Returns a maker of a single file that is given as the checkpoint."""

    def make(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


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


def _only_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


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


def _composed(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Returns a maker of a composed checkpoint whose JSON `edit` changes."""

    def make(tmp_path: Path) -> Path:
        from tests.composed import write_composed

        path = write_composed(tmp_path / "composed")
        spec = json.loads((path / "composed.json").read_text())
        edit(spec)
        (path / "composed.json").write_text(json.dumps(spec))
        return path

    return make


def _put(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path


def _set(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec.update(fields)


def _case(name: str, make: Callable[[Path], Any], error: type[EdgeVLMError], fragment: str) -> BrokenCase:
    return BrokenCase(name, make, error, fragment)


SNAPSHOTS = [
    _case("a directory that is not there", lambda path: path / "nothing", PackageError, "does not exist"),
    _case("an empty directory", lambda path: path, PackageError, "has no config.json"),
    _case("config.json cut off", _snapshot(config=b'{"model_type": "lla'), PackageError, "not valid JSON"),
    _case("config.json is a list", _snapshot(config=[1]), PackageError, "must hold a JSON object, found list"),
    _case("config.json nested 100,000 deep", _snapshot(config=b"[" * 100_000), PackageError, "nested too deeply"),
    _case("config.json is not text", _snapshot(config=b"\xff\xfe{}"), PackageError, "is not UTF-8"),
    _case(
        "config.json with half a character",
        _snapshot(config=b'{"model_type": "llama", "name": "\\udc00"}'),
        PackageError,
        "half a character",
    ),
    _case("config.json without model_type", _snapshot(config={}), PackageError, "has no 'model_type'"),
    _case(
        "weights quantised by another tool",
        _snapshot(config={**CONFIG, "quantization_config": {"quant_method": "awq"}}),
        UnsupportedModelError,
        "quantised with 'awq'",
    ),
    _case("an empty safetensors file", _snapshot(b""), PackageError, "it has 0 bytes"),
    _case("a safetensors file cut off in its data", _snapshot(file_of(TENSORS)[:-3]), PackageError, "is cut off"),
    _case(
        "a safetensors file cut off in its header", _snapshot(file_of(TENSORS)[:40]), PackageError, "states a header"
    ),
    _case("a header of 2^63 bytes", _snapshot(struct.pack("<Q", 1 << 63) + b"{}"), PackageError, "states a header"),
    _case("a header that is not JSON", _snapshot(pack(b"{'a': 1}", b"")), PackageError, "not valid JSON"),
    _case(
        "a tensor named twice",
        _snapshot(pack(b'{"a": {}, "a": {}}', b"")),
        PackageError,
        "has the key 'a' twice",
    ),
    _case("a tensor without dtype", _header(lambda h: h["a"].pop("dtype")), PackageError, "must have exactly the keys"),
    _case("a negative size", _header(lambda h: h["a"].update(shape=[-2, -3])), PackageError, "has the shape [-2, -3]"),
    _case("a shape of more data", _header(lambda h: h["a"].update(shape=[2, 4])), PackageError, "takes 32"),
    _case("offsets backwards", _header(lambda h: h["a"].update(data_offsets=[24, 0])), PackageError, "[begin, end]"),
    _case(
        "two tensors in the same bytes",
        _header(lambda h: h["b"].update(data_offsets=[8, 24])),
        PackageError,
        "overlaps",
    ),
    _case(
        "a tensor beyond the end",
        _header(lambda h: h["b"].update(data_offsets=[1000, 1016])),
        PackageError,
        "is cut off",
    ),
    _case("bytes that belong to no tensor", _snapshot(file_of(TENSORS) + b"tail"), PackageError, "the last 4 bytes"),
    _case("fp8 weights", _as_type("F8_E4M3"), UnsupportedModelError, "stored as F8_E4M3"),
    _case("int8 weights", _as_type("I8"), UnsupportedModelError, "stored as I8"),
    _case("float64 weights", _as_type("F64"), UnsupportedModelError, "stored as F64"),
    _case("weights as a pickle", _snapshot(change=_only_pickle), PackageError, "is a pickle, which runs code"),
    _case("weights as a link out of the directory", _snapshot(change=_link), PackageError, "outside the checkpoint"),
    _case("weights as a pipe", _snapshot(change=_pipe), PackageError, "is not a regular file"),
    _case("an index that names a missing shard", _index({"a": "gone.safetensors"}), PackageError, "does not exist"),
    _case(
        "an index that names an absent tensor",
        _index({"a": SHARD, "b": SHARD, "c": SHARD}),
        PackageError,
        "says that tensor 'c' is in",
    ),
    _case("an index that leaves a tensor out", _index({"a": SHARD}), PackageError, "does not place there"),
    _case("an index with ../", _index({"a": "../../etc/passwd"}), PackageError, "only relative paths inside"),
    _case("an index with an absolute path", _index({"a": "/etc/passwd"}), PackageError, "only relative paths inside"),
    _case("an index with half a character", _index({"a": "\ud800"}), PackageError, "half a character"),
    _case("an index without weight_map", _index(None), PackageError, "must have a 'weight_map'"),
    _case(
        "shards without an index",
        _index({}, change=lambda path: (path / INDEX).unlink()),
        PackageError,
        f"no {INDEX}",
    ),
]

OTHER_FILES = [
    _case("weights that are a Git LFS pointer", _snapshot(LFS), PackageError, "a Git LFS pointer"),
    _case("weights that are a web page", _snapshot(PAGE), PackageError, "a web page (HTML)"),
    _case(
        "weights that are a server's error as JSON",
        _snapshot(b'{"error":"Invalid username or password."}'),
        PackageError,
        "JSON text, perhaps a server's answer",
    ),
    _case(
        "weights that are a server's error as XML",
        _snapshot(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        PackageError,
        "an XML answer of a server",
    ),
    _case("weights that are one line of text", _snapshot(b"Entry not found"), PackageError, "plain text ('Entry not"),
    _case("weights that are gzipped", _snapshot(b"\x1f\x8b\x08\0" + bytes(60)), PackageError, "a gzip archive"),
    _case("weights that are a zip archive", _snapshot(b"PK\3\4" + bytes(60)), PackageError, "a zip archive"),
    _case("weights of zeros only", _snapshot(bytes(4096)), PackageError, "zeros from its start on"),
    _case("config.json is a Git LFS pointer", _instead("config.json", LFS), PackageError, "a Git LFS pointer"),
    _case("tokenizer.json is a Git LFS pointer", _instead("tokenizer.json", LFS), PackageError, "a Git LFS pointer"),
    _case("tokenizer.json is a web page", _instead("tokenizer.json", PAGE), PackageError, "a web page (HTML)"),
    _case("config.json is one line of text", _instead("config.json", b"Not Found"), PackageError, "plain text"),
    _case(
        "config.json is a server's error",
        _instead("config.json", b'{"error": "Repository not found"}'),
        PackageError,
        "is a server's answer ('Repository not found')",
    ),
    _case(
        "an index that is a Git LFS pointer",
        _index({}, change=lambda path: (path / INDEX).write_bytes(LFS)),
        PackageError,
        "a Git LFS pointer",
    ),
    _case("a shard that is a Git LFS pointer", _index({"a": SHARD}, LFS), PackageError, "a Git LFS pointer"),
    _case(
        "a GGUF file instead of a snapshot", _directory("m.gguf", config=False), PackageError, "give that file itself"
    ),
    _case("a GGUF file beside config.json", _directory("mmproj.gguf", "m.gguf"), PackageError, "it holds 'm.gguf'"),
    _case("an adapter instead of a model", _directory("adapter_config.json"), PackageError, "an adapter (LoRA)"),
    _case("weights in Meta's own form", _directory("consolidated.00.pth"), PackageError, "Meta's own names"),
    _case("an exported package", _directory("edgevlm.json"), PackageError, "an exported package already"),
    _case("weights for Keras", _directory("tf_model.h5"), PackageError, "is for Keras"),
    _case("config.json itself", _one_file("config.json", b"{}"), PackageError, "give its directory"),
    _case(
        "a safetensors file itself", _one_file("model.safetensors", b""), PackageError, "give the directory that holds"
    ),
    _case("a web page as the checkpoint", _one_file("model.html", PAGE), PackageError, "a web page (HTML)"),
    _case(
        "a piece of a file cut by size",
        _one_file("model.gguf.part2of3", bytes(range(256)) * 8),
        PackageError,
        "join the pieces (cat)",
    ),
]

GGUFS = [
    _case("GGUF: a Git LFS pointer", _one_file("model.gguf", LFS), PackageError, "a Git LFS pointer"),
    _case("GGUF: a web page", _one_file("model.gguf", PAGE), PackageError, "a web page (HTML)"),
    _case("GGUF: from before GGUF", _one_file("model.gguf", b"tjgg" + bytes(60)), PackageError, "before GGUF"),
    _case("GGUF: only the vision part", _mmproj, UnsupportedModelError, "only the vision part of a model (mmproj)"),
    _case(
        "GGUF: big-endian",
        _gguf(lambda c: c.__setitem__(slice(4, 8), b"\0\0\0\3")),
        UnsupportedModelError,
        "is a big-endian GGUF file",
    ),
    _case(
        "GGUF: YaRN",
        _written(metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}),
        UnsupportedModelError,
        "RoPE scaling 'yarn'",
    ),
    _case(
        "GGUF: an attention factor",
        _written(metadata={"llama.rope.scaling.attn_factor": 1.5}),
        UnsupportedModelError,
        "sets 'llama.rope.scaling.attn_factor' to 1.5",
    ),
    _case(
        "GGUF: a RoPE base of 0",
        _written(metadata={"llama.rope.freq_base": 0.0}),
        PackageError,
        "expected a positive number",
    ),
    _case(
        "GGUF: attention to what comes later",
        _written(metadata={"llama.attention.causal": False}),
        UnsupportedModelError,
        "sets 'llama.attention.causal' to False",
    ),
    _case(
        "GGUF: layers with different heads",
        _written(metadata={"llama.attention.head_count_kv": [2, 4]}),
        UnsupportedModelError,
        "differs between layers (2, 4)",
    ),
    _case(
        "GGUF: heads for more layers than there are",
        _written(metadata={"llama.attention.head_count_kv": [2, 2, 2]}),
        PackageError,
        "lists 3 values; expected 2",
    ),
    _case(
        "GGUF: more layers than there are tensors",
        _written(metadata={"llama.block_count": 3}),
        PackageError,
        "has no tensor 'blk.2.attn_norm.weight'",
    ),
    _case(
        "GGUF: another number of tokens",
        _written(metadata={"llama.vocab_size": 300}),
        PackageError,
        "states vocab_size 300",
    ),
    _case(
        "GGUF: a key of a later version",
        _written(metadata={"llama.attention.new_rule": 2}),
        UnsupportedModelError,
        "sets 'llama.attention.new_rule' to 2; what it changes is not known",
    ),
    _case(
        "GGUF: text that is normalised first",
        _written(metadata={"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]}),
        UnsupportedModelError,
        "sets 'tokenizer.ggml.precompiled_charsmap'",
    ),
    _case(
        "GGUF: tokens that may not be answered",
        _written(metadata={"tokenizer.ggml.suppress_tokens": [7]}),
        UnsupportedModelError,
        "sets 'tokenizer.ggml.suppress_tokens'",
    ),
    _case(
        "GGUF in pieces: one is missing", _split(lambda p: p[1].unlink()), PackageError, "beside it is no model-00002"
    ),
    _case("GGUF in pieces: two exchanged", _split(_exchange), PackageError, "the pieces are mixed up"),
    _case("GGUF in pieces: one of another cut", _split(_another_piece, 1), PackageError, "the 3 pieces hold 18"),
    _case(
        "GGUF in pieces: one is a Git LFS pointer",
        _split(lambda p: p[2].write_bytes(LFS)),
        PackageError,
        "model-00003-of-00003.gguf is not a GGUF file, but a Git LFS pointer",
    ),
    _case(
        "GGUF in pieces: one renamed",
        _split(lambda p: p[0].rename(p.__setitem__(0, p[0].with_name("mine.gguf")) or p[0])),
        PackageError,
        "are found by their names",
    ),
    _case("GGUF: an empty file", _gguf(bytearray.clear), PackageError, "cannot be read as GGUF"),
    _case("GGUF: another file type", _gguf(lambda c: c.__setitem__(slice(4), b"PK\3\4")), PackageError, "not a GGUF"),
    _case("GGUF: version 1", _gguf(lambda c: c.__setitem__(4, 1)), UnsupportedModelError, "version 1"),
    _case("GGUF: cut off in its data", _gguf(lambda c: c.__delitem__(slice(-4096, None))), PackageError, "is cut off"),
    _case("GGUF: cut off in its metadata", _gguf(lambda c: c.__delitem__(slice(500, None))), PackageError, "cut off"),
    _case(
        "GGUF: a text of 2^62 bytes",
        _gguf(lambda c: _after(c, "general.name", struct.pack("<Q", 1 << 62))),
        PackageError,
        "cut off or damaged",
    ),
    _case(
        "GGUF: a list of 2^60 tokens",
        _gguf(lambda c: _after(c, "tokenizer.ggml.tokens", struct.pack("<IQ", 8, 1 << 60))),
        PackageError,
        "cut off or damaged",
    ),
    _case(
        "GGUF: a tensor beyond the end",
        _gguf(_table("offset", "blk.1.ffn_down.weight", 1 << 40)),
        PackageError,
        "is cut off",
    ),
    _case(
        "GGUF: two tensors in the same bytes",
        _gguf(_table("offset", "blk.1.ffn_down.weight", 0)),
        PackageError,
        "overlaps",
    ),
    _case(
        "GGUF: IQ2_XXS weights",
        _gguf(_table("type", "blk.1.ffn_down.weight", 16)),
        UnsupportedModelError,
        "stored as IQ2_XXS",
    ),
    _case("GGUF: another architecture", _written(arch="mamba"), UnsupportedModelError, "the architecture 'mamba'"),
    _case(
        "GGUF: a mixture of experts",
        _written(metadata={"llama.expert_count": 8}),
        UnsupportedModelError,
        "sets 'llama.expert_count' to 8",
    ),
    _case(
        "GGUF: an unknown tensor",
        _written(more={"blk.0.attn_sinks.weight": np.zeros(8, np.float32)}),
        UnsupportedModelError,
        "holds the tensor 'blk.0.attn_sinks.weight'",
    ),
    _case(
        "GGUF: an unknown pre-tokenizer",
        _written(edit=lambda vocabulary: setattr(vocabulary, "pre", "tekken")),
        UnsupportedModelError,
        "the pre-tokenizer 'tekken'",
    ),
    _case(
        "GGUF: an unknown tokenizer",
        _written(edit=lambda vocabulary: setattr(vocabulary, "model", "t5")),
        UnsupportedModelError,
        "the tokenizer 't5'",
    ),
    _case(
        "GGUF: a merge of absent tokens",
        _written(edit=lambda vocabulary: vocabulary.merges.append("absent pieces")),
        PackageError,
        "its tokenizer cannot be built",
    ),
    _case(
        "GGUF: an eos id beyond the vocabulary",
        _written(edit=lambda vocabulary: vocabulary.extra.update(eos_token_id=99999)),
        PackageError,
        "'tokenizer.ggml.eos_token_id' is 99999",
    ),
]

COMPOSED = [
    _case("composed: an unknown key", _composed(_set(projektor="x")), PackageError, "unknown key 'projektor'"),
    _case("composed: a missing key", _composed(lambda spec: spec.pop("tile_px")), PackageError, "'tile_px' is missing"),
    _case("composed: another version", _composed(_set(edgevlm_composed=2)), PackageError, "is not one of 1"),
    _case("composed: a path with ..", _composed(_set(vision="../tower")), PackageError, "only relative paths inside"),
    _case("composed: an absolute path", _composed(_set(projector="/p")), PackageError, "only relative paths inside"),
    _case(
        "composed: a projector that is a Git LFS pointer",
        lambda path: _put(_composed(_set())(path), "projector.safetensors", LFS),
        PackageError,
        "a Git LFS pointer",
    ),
    _case(
        "composed: updates that are a Git LFS pointer",
        lambda path: _put(_composed(_set(low_rank="update.safetensors"))(path), "update.safetensors", LFS),
        PackageError,
        "a Git LFS pointer",
    ),
    _case(
        "composed: a tower that is a web page",
        lambda path: _put(_composed(_set())(path), "tower/model.safetensors", PAGE),
        PackageError,
        "a web page (HTML)",
    ),
    _case("composed: a missing file", _composed(_set(language="gone.gguf")), PackageError, "does not exist"),
    _case("composed: an image token in use", _composed(_set(image_token="a")), PackageError, "as an ordinary token"),
    _case("composed: tiles of 0 pixels", _composed(_set(tile_px=0)), PackageError, "'tile_px' has the value 0"),
    _case(
        "composed: a mean of 400 digits",
        _composed(_set(image_mean=[10**400, 0.5, 0.5])),
        PackageError,
        "image_mean[0]: expected a finite number",
    ),
    _case("composed: true for version 1", _composed(_set(edgevlm_composed=True)), PackageError, "True is not one of 1"),
]

CASES = [*SNAPSHOTS, *OTHER_FILES, *GGUFS, *COMPOSED]
