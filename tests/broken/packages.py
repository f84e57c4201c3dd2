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

_HUGE = 10**400
_LONG = "x" * 5000
_NPU = {
    "context": 64, "chunk_tokens": 16, "tile_batches": [4, 1], "graphs": [], "weights": "tokenizer.json",
    "ranges": "tokenizer.json", "range_method": "minmax",
}  # fmt: skip


def _generation(name: str, value: Any) -> Callable[[Path], Path]:
    return _set("generation", name, value=value)


def _processor(name: str, value: Any) -> Callable[[Path], Path]:
    return _set("processor", name, value=value)


def _prompt(name: str, value: Any) -> Callable[[Path], Path]:
    return _set("prompt", name, value=value)


def _same_place(manifest: dict[str, Any]) -> None:
    manifest["decoder"]["cache"][1]["kind"] = "key"


def _long_pictures(manifest: dict[str, Any]) -> None:
    manifest["processor"]["max_tiles"] = 4096
    manifest["prompt"]["tokens_per_tile"] = 1 << 16


def _graph_twice(manifest: dict[str, Any]) -> None:
    manifest["graphs"].append(dict(manifest["graphs"][0]))


def _compiled_twice(manifest: dict[str, Any]) -> None:
    entry = {"arch": "arm64", "plan": "a/plan.bin", "weights": "a/weights.bin", "plan_version": 1}
    manifest["compiled"] = [entry, dict(entry)]


def _not_utf8(path: Path) -> None:
    file = path / "edgevlm.json"
    file.write_bytes(file.read_bytes().replace(b'"tiny"', b'"t\xefny"'))


_VALUES: tuple[tuple[str, Callable[[Path], Any], str], ...] = (
    ("a number beyond float64", _text(lambda text: text.replace("32.0", "1e999")), "1e999 is too large for a number"),
    ("an integer of 5,000 digits", _text(lambda text: text.replace("32.0", "1" + "0" * 5000)), "is not valid JSON"),
    ("a size of 400 digits", _set("decoder", "hidden_size", value=_HUGE), "an integer of at most 64 bits"),
    ("a float of 400 digits", _set("quant", "mean_bits_per_weight", value=_HUGE), "expected a finite number"),
    ("a name that is half a character", _set("name", value="\ud800"), "the text has a lone surrogate"),
    ("manifest that is not UTF-8", _package(_not_utf8), "no UTF-8 text at byte"),
    ("true for the number 1", _set("decoder", "position_rank", value=True), "True is not one of 1, 3"),
    ("5 heads in groups of 2", _set("decoder", "num_attention_heads", value=5), "is no multiple of num_key"),
    ("cache bits of one layer", _set("decoder", "kv_bits", value=[[8, 8]]), "kv_bits has 1 layers"),
    ("cache of 3 bits", _set("decoder", "kv_bits", value=[[3, 8], [8, 8]]), "kv_bits has 3, expected 4 or 8 or 16"),
    ("cache that never grows", _set(*_CACHE, "shape", value=[2, 16]), "expected heads, 'P' and width"),
    ("cache that grows twice", _set(*_CACHE, "shape", value=["P", "P", 16]), "expected heads, 'P' and width"),
    ("cache of layer 2 of 2", _set(*_CACHE, "layer", value=2), "decoder.cache layer 2 does not exist"),
    ("keys of one layer twice", _manifest(_same_place), "a tensor of one kind and layer twice"),
    ("a vocabulary of a billion", _set("decoder", "vocab_size", value=10**9), "vocab_size is 1000000000"),
    ("an endless context", _set("decoder", "max_position_embeddings", value=1 << 60), "do not fit together"),
    ("a negative temperature", _generation("temperature", -1), "generation.temperature is -1"),
    ("a negative top_p", _generation("top_p", -0.5), "generation.top_p is -0.5"),
    ("min_p of 2", _generation("min_p", 2), "generation.min_p is 2"),
    ("a repetition penalty of 0", _generation("repetition_penalty", 0), "generation.repetition_penalty is 0"),
    ("a deviation that vanishes in float32", _processor("image_std", [1e-320, 1, 1]), "processor.image_std is 1e-320"),
    ("pixels times 0", _processor("rescale_factor", 0), "processor.rescale_factor is 0.0"),
    ("padding brighter than white", _processor("image_mean", [5, 0.5, 0.5]), "no colour to pad with"),
    ("alpha above 1", _processor("relaxed_alpha", 1.5), "processor.relaxed_alpha is 1.5"),
    ("a billion tiles", _processor("max_tiles", 10**9), "processor.max_tiles is 1000000000"),
    ("a grid of no rows", _processor("max_rows", 0), "processor.max_rows is 0"),
    ("a longest edge of a billion pixels", _processor("longest_edge_px", 10**9), "longest_edge_px is 1000000000"),
    ("no pixels at least", _processor("min_pixels", 0), "processor.min_pixels is 0"),
    ("a canvas that is no grid", _processor("grid_pinpoints", [[28, 30]]), "no multiple of the tile's 28"),
    ("tiles without tokens", _prompt("tokens_per_tile", 0), "prompt.tokens_per_tile is 0"),
    ("image token beyond any vocabulary", _prompt("image_token_id", 10**9), "image_token_id is 1000000000"),
    ("a negative image token", _prompt("image_token_id", -200), "prompt.image_token_id is -200"),
    ("image token without a text", _prompt("image_token", ""), "prompt.image_token is empty"),
    ("5,000 characters for each picture", _prompt("image_prefix", _LONG), "prompt.image_prefix has 5,000 characters"),
    ("a picture of 2 GB of text", _manifest(_long_pictures), "a picture of 4096 tiles takes 1879506944 characters"),
    ("a graph listed twice", _manifest(_graph_twice), "lists a graph twice"),
    ("compiled twice for one architecture", _manifest(_compiled_twice), "lists an architecture twice"),
    ("NPU: batches that leave a tile over", _set("npu", value={**_NPU, "tile_batches": [4, 2]}), "down to 1"),
    ("NPU: no context", _set("npu", value={**_NPU, "context": 0}), "npu.context is 0"),
)

CASES = [BrokenCase(name, make, PackageError, fragment) for name, make, fragment in (*_ROWS, *_VALUES)]
