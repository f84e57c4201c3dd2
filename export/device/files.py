"""What a package holds for phones: device/tokenizer.bin and device/chat.json, made and checked at export."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.package import Package, open_package
from edgevlm.package_lock import changing
from edgevlm.spec import MANIFEST_NAME, DeviceEntry, FileEntry, Manifest
from edgevlm.strict_json import to_json
from edgevlm.tokenizer import Tokenizer
from export.device.chat_check import TEXTS, check_program
from export.device.chat_program import compile_chat_template
from export.device.tokenizer_tables import check_splits, tokenizer_tables

TOKENIZER_PATH = "device/tokenizer.bin"
CHAT_PATH = "device/chat.json"
CHAT_VERSION = 1


def device_files(package: Package) -> tuple[dict[str, bytes], DeviceEntry]:
    """Returns the files for phones and the manifest's entry; what a phone cannot do is left out, with the reason.

    Raises ParityError when a file that was made does not do what the original does.
    """
    files: dict[str, bytes] = {}
    missing: list[str] = []
    try:
        tokenizer = Tokenizer.open(package)
        files[TOKENIZER_PATH] = tokenizer_tables(tokenizer)
        check_splits(tokenizer, TEXTS)
    except UnsupportedModelError as error:
        missing.append(str(error))
    try:
        files[CHAT_PATH] = _chat(package)
    except UnsupportedModelError as error:
        missing.append(str(error))
    entry = DeviceEntry(
        tokenizer=TOKENIZER_PATH if TOKENIZER_PATH in files else None,
        chat=CHAT_PATH if CHAT_PATH in files else None,
        missing=tuple(missing),
    )
    return files, entry


def _chat(package: Package) -> bytes:
    template = ChatTemplate.open(package)
    program = None
    if template.source is not None:
        program = compile_chat_template(template.source, template.special_tokens)
        prompt = package.manifest.prompt
        check_program(program, template, prompt is not None and prompt.content_format == "list")
    text = json.dumps({"version": CHAT_VERSION, "program": program}, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8")


def add_device_files(path: Path) -> DeviceEntry:
    """Writes the files for phones into the package at `path` and names them in its manifest; returns the entry."""
    with changing(path):
        return _add_device_files(path)


def _add_device_files(path: Path) -> DeviceEntry:
    package = open_package(path)
    files, entry = device_files(package)
    kept = [known for known in package.manifest.files if not known.path.startswith("device/")]
    # The manifest stops naming the old files before they change, and names the new ones once they are there.
    _write_manifest(package, replace(package.manifest, device=None, files=tuple(kept)))
    added = []
    for relative, data in files.items():
        _write(package.path, relative, data)
        added.append(FileEntry(relative, len(data), hashlib.sha256(data).hexdigest()))
    _write_manifest(package, replace(package.manifest, device=entry, files=(*kept, *added)))
    return entry


def _write_manifest(package: Package, manifest: Manifest) -> None:
    text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(package.path, MANIFEST_NAME, text.encode("utf-8"))


def _write(root: Path, relative: str, data: bytes) -> None:
    """Writes a file beside its place and renames it. Raises PackageError when that is not possible."""
    target = root.joinpath(*relative.split("/"))
    scratch = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(exist_ok=True)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written ({error.strerror})") from error
