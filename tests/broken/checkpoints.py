"""Broken checkpoints: snapshots and composed checkpoints that `open_checkpoint` must refuse at once."""

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


def one_file(name: str, content: bytes) -> Callable[[Path], Path]:
    """Returns a maker of a single file that is given as the checkpoint."""

    def make(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


def _only_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


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
    _case("config.json itself", one_file("config.json", b"{}"), PackageError, "give its directory"),
    _case(
        "a safetensors file itself", one_file("model.safetensors", b""), PackageError, "give the directory that holds"
    ),
    _case("a web page as the checkpoint", one_file("model.html", PAGE), PackageError, "a web page (HTML)"),
    _case(
        "a piece of a file cut by size",
        one_file("model.gguf.part2of3", bytes(range(256)) * 8),
        PackageError,
        "join the pieces (cat)",
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

CASES = [*SNAPSHOTS, *OTHER_FILES, *COMPOSED]
