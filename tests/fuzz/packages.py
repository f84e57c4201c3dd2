"""Sound packages and the runtime's other files, to break."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.evaluation.results import FORMAT, Evaluation
from edgevlm.spec import MANIFEST_NAME
from tests import tiny


def write_bluelm_v(path: Path) -> Path:
    """A package with a tower, files for phones, and entries for an NPU that name files of other parts."""
    _export("bluelm_v", path)
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    graph = manifest["graphs"][0]
    files = {"graphs": [{"name": "prefill", "path": graph["path"]}], "weights": graph["data"][0]}
    manifest["npu"] = {
        "context": 128, "chunk_tokens": 32, "tile_batches": [4, 1], **files, "ranges": "config.json",
        "range_method": "minmax", "allow_cpu": ["Cast"], "parity": manifest["parity"][:1],
        "targets": [{"arch": "v75", "soc": "SM8650", "graphs": files["graphs"], "binaries": ["config.json"],
                     "sdk": "2.0", "shared_weights": False, "on_cpu": []}],
    }  # fmt: skip
    manifest["quant"]["overrides"] = [["a", "w8"]]
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))
    (path / "chatml.jinja").write_text(tiny.CHATML_PARTS)
    settle(path)
    return path


def write_smolvlm(path: Path) -> Path:
    """A package of tiles in a grid."""
    return _export("smolvlm", path)


def _export(name: str, path: Path) -> Path:
    from export.pipeline import ExportOptions, export_package

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = tiny.MAKERS[name](Path(scratch) / name)
        return export_package(checkpoint, path, ExportOptions(scheme="w8", verify=False, reference=False))


def settle(path: Path) -> None:
    """Makes sizes and hashes of the manifest those of the files."""
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    for entry in manifest["files"]:
        content = (path / entry["path"]).read_bytes()
        entry.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))


def tokenizer_writer(kind: str) -> Callable[[Path], object]:
    """Returns what writes tokenizer.json of one kind of the zoo."""

    def write(path: Path) -> None:
        from tests.edgevlm.tokenizers_zoo import ZOO

        path.mkdir()
        (path / "tokenizer.json").write_text(ZOO[kind]().to_str(), encoding="utf-8")

    return write


def write_questions(path: Path) -> None:
    from tests.edgevlm.question_sets import questions, write_set

    write_set(path, questions())


def write_results(path: Path) -> None:
    """Results of an evaluation with every optional part."""
    path.mkdir()
    (path / "results.json").write_text(json.dumps({**_sample(Evaluation), "format": FORMAT}))


def _sample(kind: Any) -> Any:
    """A value of a type as JSON: every list with one item, every table with one key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: _sample(hints[field.name]) for field in dataclasses.fields(kind)}
    if origin is tuple:
        return [_sample(item) for item in arguments if item is not ...]
    if origin is dict:
        return {"a": _sample(arguments[1])}
    return _sample(arguments[0]) if arguments else {int: 1, float: 0.5, str: "a", bool: True}[kind]


def write_record(path: Path) -> None:
    """The committed tuning record, cut down to its first variant."""
    from tvm_schedules.tune_record import record_path

    record = json.loads(record_path("x86_64").read_text())
    name = next(iter(record["variants"]))
    path.mkdir()
    (path / "x86_64.json").write_text(json.dumps({**record, "variants": {name: record["variants"][name]}}))
