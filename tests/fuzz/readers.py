"""What reads a fuzzed file: as far into the program as a user's command would take it.

Each reader gets a sound directory, reads it once, and returns what is called for every case. Work that a case does
not change is done once: a config whose spec is known has been exported before.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import BackendError, ContextFullError, EdgeVLMError
from edgevlm.package import open_package
from edgevlm.spec import Manifest
from edgevlm.tokenizer import StreamDecoder, Tokenizer
from tests.fuzz import packages, snapshots

Read = Callable[[], object]
TEXT = "The red circle is 12 px.\n  <image> Größe, \U0001f642</s>"
MESSAGES = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is in this picture?"},
    {"role": "assistant", "content": "A circle."},
    {"role": "user", "content": TEXT},
]
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


# ---- checkpoints


def read_checkpoint(path: Path) -> Read:
    """Opens and exports; what was exported must answer."""
    from export.archs import arch_spec
    from export.checkpoint import open_checkpoint

    known: set[object] = set()

    def read() -> None:
        checkpoint = open_checkpoint(path)
        spec = arch_spec(checkpoint.config, checkpoint.files)
        key = repr((spec, checkpoint.name, sorted(checkpoint.tensors().items())))
        if key in known:
            return
        known.add(key)
        out = path.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        if spec.language is None:
            _build(spec, checkpoint, out)
        else:
            _export(path, out)

    read()
    return read


def _build(spec: Any, checkpoint: Any, out: Path) -> None:
    from export.graphs.build import build_model
    from export.quant.rules import QuantPlan

    build_model(spec, checkpoint, QuantPlan(language="w8", vision="w8"), out)


def _export(path: Path, out: Path) -> None:
    from export.pipeline import ExportOptions, export_package

    export_package(path, out, ExportOptions(scheme="w8", verify=False, reference=False))
    try:
        _answer(out)
    except (ContextFullError, BackendError):
        pass  # a model of one position, or one that is too large for this machine
    except EdgeVLMError as error:
        raise AssertionError(f"the export was accepted, but what it wrote is refused: {error}") from error


# ---- packages


def read_package(path: Path) -> Read:
    """Opens, inspects and asks."""
    known: set[Manifest] = set()

    def read() -> None:
        package = open_package(path)
        _inspect(path)
        neutral = _essential(package.manifest)
        if neutral not in known:
            known.add(neutral)
            _answer(path)

    read()
    return read


def _essential(manifest: Manifest) -> Any:
    """The manifest without what a run never reads."""
    told = replace(manifest, name="", arch="", created="", source="", versions={}, sizes=(), parity=(), npu=None)
    files = tuple(replace(entry, sha256="") for entry in manifest.files)
    return repr(replace(told, files=files, quant=replace(manifest.quant, worst_tensors=(), overrides=())))


def read_package_texts(path: Path) -> Read:
    """As `read_package`, of a package whose manifest tells the file's new size; and its files for phones."""
    from export.device.files import device_files

    read_base = read_package(path)
    manifest = (path / "edgevlm.json").read_bytes()
    known: set[object] = set()

    def read() -> None:
        if (path / "edgevlm.json").read_bytes() != manifest:
            read_base()
            return
        packages.settle(path)
        try:
            package = open_package(path)
            template = ChatTemplate.open(package)
            key = (Tokenizer.open(package).backend.to_str(), template.source, *sorted(template.special_tokens.items()))
            if key not in known:
                known.add(key)
                _answer(path)
                device_files(package)
        finally:
            (path / "edgevlm.json").write_bytes(manifest)

    return read


def read_package_config(path: Path) -> Read:
    """What compiling for an NPU reads of the config.json that the package carries."""
    from export.npu.graphs import package_spec
    from export.npu.weights import PackageWeights

    def read() -> None:
        packages.settle(path)
        package = open_package(path)
        package_spec(package, PackageWeights(package))

    return read


def _answer(path: Path) -> None:
    """One token about a picture, where the package takes one."""
    from edgevlm.model import load

    with load(path, backend="onnx", threads=1) as model:
        pictures = [PICTURE] if model.package.has_vision else []
        model.generate("What is this?", pictures, max_new_tokens=1)


def _inspect(path: Path) -> None:
    from edgevlm.cli.parser import build_parser

    for words in (["inspect", str(path)], ["inspect", str(path), "--json"]):
        args: argparse.Namespace = build_parser().parse_args(words)
        with contextlib.redirect_stdout(io.StringIO()):
            args.run(args)


# ---- texts


def read_tokenizer(path: Path) -> Read:
    """Ids there and back, the tables of a phone, and a new special token."""
    from export.checkpoints.composed import add_special_token
    from export.device.tokenizer_tables import tokenizer_tables

    def read() -> None:
        file = path / "tokenizer.json"
        tokenizer = Tokenizer.from_file(file)
        ids = tokenizer.encode(TEXT)
        tokenizer.encode(TEXT, allow_special=True)
        tokenizer.encode_document(TEXT)
        decoder = StreamDecoder(tokenizer)
        for token_id in [*ids, 0, 10**6]:
            decoder.push(token_id)
        decoder.finish()
        tokenizer_tables(tokenizer)
        add_special_token(file.read_bytes(), "<image>", "tokenizer.json")

    return read


def read_template(path: Path) -> Read:
    """Renders, as a model does and as a phone does."""
    from export.device.chat_check import check_program
    from export.device.chat_program import compile_chat_template

    names = ("chatml.jinja", snapshots.TEMPLATE)
    sound = {name: (path / name).read_bytes() for name in names}

    def read() -> None:
        for name in names:
            content = (path / name).read_bytes()
            if content != sound[name]:
                break
        template = ChatTemplate(content.decode("utf-8", "replace"), {"bos_token": "<s>", "eos_token": "</s>"})
        parts = name == "chatml.jinja"
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m for m in MESSAGES]
        template.render(messages)
        program = compile_chat_template(template.source or "", template.special_tokens)
        check_program(program, template, parts)

    return read


# ---- the rest


def read_questions(path: Path) -> Read:
    """Opens the set and chooses from it."""
    from edgevlm.evaluation.question_set import choose, open_set

    return lambda: choose(open_set(str(path)).questions, 3, 0)


def read_results(path: Path) -> Read:
    """Reads the results and compares them with the sound ones, as `eval --against` does."""
    from edgevlm.evaluation import results

    sound = results.read_results(path / "results.json")

    def read() -> None:
        found = results.read_results(path / "results.json")
        results.compare(sound, found)
        results.write_results(found, path.parent / "out.json")

    return read


def read_record(path: Path) -> Read:
    """Reads the record and moves every variant to its points."""
    from tvm_schedules.targets import BY_NAME
    from tvm_schedules.tune_record import read_record as open_record
    from tvm_schedules.tune_record import tuned

    def read() -> None:
        record = open_record(path / "x86_64.json", "x86_64")
        for variant in BY_NAME.values():
            tuned(variant, record)

    return read
