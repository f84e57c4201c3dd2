"""Broken packages: `make(tmp_path)` returns the directory that `open_package` must refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import PackageError
from tests.broken import BrokenCase

Change = Callable[[Path], None]


def _package(change: Change) -> Callable[[Path], Path]:
    """Returns a maker of a sound tiny package that `change` then breaks."""

    def make(tmp_path: Path) -> Path:
        from tests.edgevlm.tiny_package import write_package

        path = write_package(tmp_path / "package")
        change(path)
        return path

    return make


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    """Returns a maker of a package whose edgevlm.json `change` edits."""

    def apply(path: Path) -> None:
        manifest = json.loads((path / "edgevlm.json").read_text())
        change(manifest)
        (path / "edgevlm.json").write_text(json.dumps(manifest))

    return _package(apply)


def _text(edit: Callable[[str], str]) -> Callable[[Path], Path]:
    """Returns a maker of a package whose edgevlm.json text `edit` changes."""

    def apply(path: Path) -> None:
        file = path / "edgevlm.json"
        file.write_text(edit(file.read_text()))

    return _package(apply)


def _set(*keys: Any, value: Any) -> Callable[[Path], Path]:
    """Returns a maker of a package with one manifest field changed."""

    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return _manifest(change)


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "package.zip"
    path.write_bytes(b"PK\x03\x04")
    return path


def _unfinished(tmp_path: Path) -> Path:
    return _package(lambda path: None)(tmp_path).rename(tmp_path / ".tiny-edgevlm-w4g32.partial")


def _without_manifest(path: Path) -> None:
    (path / "edgevlm.json").unlink()


def _cut_data(path: Path) -> None:
    file = path / "onnx/decoder_model_merged.onnx_data"
    file.write_bytes(file.read_bytes()[:-100])


def _cut_graph(path: Path) -> None:
    """Cuts the .onnx and makes the manifest agree, as a copy made before hashing would."""
    file = path / "onnx/vision_encoder.onnx"
    file.write_bytes(file.read_bytes()[:200])
    _agree(path)


def _agree(path: Path) -> None:
    """Makes the sizes in the manifest those on disk."""
    manifest = json.loads((path / "edgevlm.json").read_text())
    for entry in manifest["files"]:
        entry["size_bytes"] = (path / entry["path"]).stat().st_size
    (path / "edgevlm.json").write_text(json.dumps(manifest))


def _missing(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def _link(path: Path) -> None:
    file = path / "tokenizer.json"
    outside = path.parent / "outside.json"
    file.rename(outside)
    file.symlink_to(outside)


def _linked_folder(path: Path) -> None:
    outside = path.parent / "outside"
    (path / "onnx").rename(outside)
    (path / "onnx").symlink_to(outside)


def _linked_manifest(path: Path) -> None:
    file = path / "edgevlm.json"
    outside = path.parent / "outside.json"
    file.rename(outside)
    file.symlink_to(outside)


def _folder_as_file(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").mkdir()


def _points_to(location: str) -> Change:
    """Returns a change that makes one tensor of a graph read another file."""

    def change(path: Path) -> None:
        import onnx

        file = path / "onnx/embed_tokens.onnx"
        model = onnx.load(str(file), load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        file.write_bytes(model.SerializeToString())
        _agree(path)

    return change


def _beyond_the_end(path: Path) -> None:
    import onnx

    file = path / "onnx/embed_tokens.onnx"
    model = onnx.load(str(file), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "offset":
            entry.value = str(1 << 40)
    file.write_bytes(model.SerializeToString())
    _agree(path)


def _not_onnx(path: Path) -> None:
    (path / "onnx/embed_tokens.onnx").write_bytes(b"#!/bin/sh\necho hello\n" * 20)
    _agree(path)


def _empty_graph(path: Path) -> None:
    (path / "onnx/embed_tokens.onnx").write_bytes(b"")
    _agree(path)


def _duplicate_file(manifest: dict[str, Any]) -> None:
    manifest["files"].append(dict(manifest["files"][0]))


def _forget_data(manifest: dict[str, Any]) -> None:
    for graph in manifest["graphs"]:
        graph["data"] = []


def _unlisted_graph(manifest: dict[str, Any]) -> None:
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].endswith("embed_tokens.onnx")]


def _add_path(path: str) -> Callable[[Path], Path]:
    return _manifest(lambda manifest: manifest["files"].append({"path": path, "size_bytes": 1, "sha256": "0" * 64}))


_CACHE = ("decoder", "cache", 0)

_ROWS: tuple[tuple[str, Callable[[Path], Any], str], ...] = (
    ("no such directory", lambda tmp_path: tmp_path / "nothing", "no such package directory"),
    ("a file", _file, "a package is a directory"),
    ("an unfinished export", _unfinished, "unfinished output"),
    ("no manifest", _package(_without_manifest), "not a package"),
    ("manifest cut in the middle", _text(lambda text: text[: len(text) // 2]), "not valid JSON"),
    ("manifest of a million brackets", _text(lambda _: "[" * 1_000_000), "nested too deeply"),
    ("manifest is a list", _text(lambda text: f"[{text}]"), "no integer 'schema_version'"),
    ("manifest with a key twice", _text(lambda text: '{"name": "x",' + text[1:]), "'name' stands twice"),
    ("manifest with NaN", _text(lambda text: text.replace("32.0", "NaN")), "NaN is not a number"),
    ("newer schema", _set("schema_version", value=2), "upgrade edgevlm"),
    ("older schema", _set("schema_version", value=0), "export it again"),
    ("schema version is text", _set("schema_version", value="1"), "no integer 'schema_version'"),
    ("unknown key", _set("run_on_load", value="rm"), "unknown key 'run_on_load'"),
    ("wrong type", _set("decoder", "hidden_size", value="32"), "expected int, found str"),
    ("missing key", _manifest(lambda m: m["decoder"].pop("head_dim")), "'head_dim' is missing"),
    ("a billion layers", _set("decoder", "num_hidden_layers", value=10**9), "num_hidden_layers is 1000000000"),
    ("negative context", _set("decoder", "default_context", value=-1), "default_context -1"),
    ("cache of zero heads", _set(*_CACHE, "shape", value=[0, "P", 16]), "decoder.cache shape"),
    ("cache names twice", _set(*_CACHE, "past_name", value="past_key_values.1.key"), "not unique"),
    ("end token outside the vocabulary", _set("generation", "eos_token_ids", value=[10**6]), "no token ids"),
    ("prompt without processor", _set("processor", value=None), "'processor' and 'prompt'"),
    ("zero standard deviation", _set("processor", "image_std", value=[0, 1, 1]), "image_std"),
    ("tile of a million pixels", _set("processor", "tile_px", value=10**6), "tile_px is 1000000"),
    ("a missing file", _package(_missing), "tokenizer.json: the file is missing"),
    ("a short data file", _package(_cut_data), "the copy is not whole"),
    ("a file listed twice", _manifest(_duplicate_file), "is listed twice"),
    ("a folder instead of a file", _package(_folder_as_file), "expected a regular file"),
    ("a linked file", _package(_link), "links are refused"),
    ("a linked folder", _package(_linked_folder), "links are refused"),
    ("a linked manifest", _package(_linked_manifest), "links are refused"),
    ("path upwards", _add_path("../outside"), "unsafe path '../outside'"),
    ("absolute path", _add_path("/etc/passwd"), "unsafe path '/etc/passwd'"),
    ("path upwards inside", _add_path("onnx/../../outside"), "unsafe path"),
    ("path with a drive", _add_path("C:\\windows"), "unsafe path"),
    ("graph is no ONNX", _package(_not_onnx), "not a readable ONNX file"),
    ("graph is empty", _package(_empty_graph), "the file is empty"),
    ("graph is cut", _package(_cut_graph), "not a readable ONNX file"),
    ("graph not among the files", _manifest(_unlisted_graph), "which 'files' lacks"),
    ("graph reads an unlisted file", _manifest(_forget_data), "not among the graph's data files"),
    ("graph reads upwards", _package(_points_to("../../secret")), "unsafe path '../../secret'"),
    ("graph reads an absolute path", _package(_points_to("/etc/passwd")), "unsafe path '/etc/passwd'"),
    ("graph reads beyond the end", _package(_beyond_the_end), "ends at byte"),
)

CASES = [BrokenCase(name, make, PackageError, fragment) for name, make, fragment in _ROWS]
