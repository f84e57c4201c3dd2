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
from tests.broken.processors import PROCESSORS
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
        from tests.tiny_gguf import byte_level, tensors, writer

        vocabulary = byte_level("smollm")
        options.get("edit", lambda value: None)(vocabulary)
        path = tmp_path / "model.gguf"
        with writer(path, options.get("arch", "llama"), vocabulary) as out:
            for name, value in {**tensors("llama", len(vocabulary.tokens)), **options.get("more", {})}.items():
                out.add_tensor(name, value)
            for key, value in options.get("metadata", {}).items():
                (out.add_string if isinstance(value, str) else out.add_uint32)(key, value)
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
    _case("an index with half a character", _index({"a": "\ud800"}), PackageError, "only relative paths inside"),
    _case("an index without weight_map", _index(None), PackageError, "must have a 'weight_map'"),
    _case(
        "shards without an index",
        _index({}, change=lambda path: (path / INDEX).unlink()),
        PackageError,
        f"no {INDEX}",
    ),
]

GGUFS = [
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
    _case("composed: a missing file", _composed(_set(language="gone.gguf")), PackageError, "does not exist"),
    _case("composed: an image token in use", _composed(_set(image_token="a")), PackageError, "as an ordinary token"),
    _case("composed: tiles of 0 pixels", _composed(_set(tile_px=0)), PackageError, "'tile_px' has the value 0"),
]



def _tiny(
    name: str, config: dict[str, Any] | None = None, part: str | None = None, **files: Any
) -> Callable[[Path], Path]:
    """Returns a maker of a whole tiny checkpoint with fields of config.json and of other files (a__json) replaced."""

    def make(tmp_path: Path) -> Path:
        from tests.tiny import MAKERS

        path = MAKERS[name](tmp_path / name)
        for file, fields in {"config.json": config or {}, **{f"{k}.json": v for k, v in files.items()}}.items():
            data = json.loads((path / file).read_text())
            (data[part] if part and file == "config.json" else data).update(fields)
            (path / file).write_text(json.dumps(data))
        return path

    return make


def _tokenizer(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Returns a maker of a composed checkpoint of snapshots whose tokenizer.json `edit` changes."""

    def make(tmp_path: Path) -> Path:
        from tests.fuzz.snapshots import composed

        path = composed(tmp_path / "composed")
        tokenizer = json.loads((path / "language/tokenizer.json").read_text())
        edit(tokenizer)
        (path / "language/tokenizer.json").write_text(json.dumps(tokenizer))
        return path

    return make


VALUES = [
    _case(
        "a layer more than is stored",
        _tiny("llama", {"num_hidden_layers": 3}),
        UnsupportedModelError,
        "num_hidden_layers of the language model is 3 (config.json), but llama stores 2 layers",
    ),
    _case(
        "a layer less than is stored",
        _tiny("bluelm_v", {"num_hidden_layers": 1}, "vision_config"),
        UnsupportedModelError,
        "num_hidden_layers of the vision tower is 1",
    ),
    _case(
        "a BOS id of 400 digits",
        _tiny("llama", generation_config={"bos_token_id": 10**400}),
        PackageError,
        "bos_token_id",
    ),
    _case(
        "an image token beyond the vocabulary",
        _tiny("bluelm_v", {"image_token_id": 5000, "image_token": "<absent>"}),
        PackageError,
        "prompt.image_token_id is 5000",
    ),
    _case(
        "an epsilon that vanishes in float32",
        _tiny("llama", {"rms_norm_eps": 1e-320}),
        PackageError,
        "rms_norm_eps must be at least 1e-30",
    ),
    _case(
        "a factor that float32 cannot hold",
        _tiny("llama", {"rope_scaling": {"rope_type": "linear", "factor": 1e300}}),
        PackageError,
        "rope_scaling.factor is 1e+300",
    ),
    _case(
        "composed: an added token without an id",
        _tokenizer(lambda tokenizer: tokenizer["added_tokens"][0].pop("id")),
        PackageError,
        "an entry of 'added_tokens' without a token id",
    ),
    _case(
        "composed: a vocabulary of texts",
        _tokenizer(lambda tokenizer: tokenizer["model"]["vocab"].update(a="b")),
        PackageError,
        "an entry of 'model.vocab' without a token id",
    ),
    _case(
        "composed: a mean of 400 digits",
        _composed(_set(image_mean=[10**400, 0.5, 0.5])),
        PackageError,
        "image_mean[0]: expected a finite number",
    ),
    _case("composed: true for version 1", _composed(_set(edgevlm_composed=True)), PackageError, "True is not one of 1"),
]

CASES = [*SNAPSHOTS, *GGUFS, *COMPOSED, *PROCESSORS, *VALUES]
