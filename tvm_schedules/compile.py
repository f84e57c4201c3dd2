"""`edgevlm compile`: a package's graphs lowered for one architecture, added to the package as data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevlm.errors import PackageError, UnsupportedModelError, UsageError
from edgevlm.package import Package, open_package
from edgevlm.package_lock import changing, scratch_directory
from edgevlm.spec import MANIFEST_NAME, CompiledEntry, FileEntry, Manifest
from edgevlm.strict_json import to_json
from tvm_schedules.key_ranges import KeyRange, measure_keys
from tvm_schedules.lower import CHUNK_TOKENS, lower_decoder
from tvm_schedules.lower_vision import LoweredTower, lower_vision
from tvm_schedules.onnx_graph import OnnxGraph
from tvm_schedules.plan import NO_FILE, VERSION, Graph, PlanInfo, WeightsFile, write_plan
from tvm_schedules.tower_kernels import TOWER_ARCHS

PACKED_ARCHS = ("x86_64", "arm64")
KV_BITS = (8, 8)
"""Bits of keys and values in the cache of every layer."""
"""Architectures whose weight layout `layouts` packs."""
PLAN, WEIGHTS, VISION = "plan.bin", "weights.bin", "vision.bin"

Progress = Callable[[str, int, int], None]


def check_arch(arch: str) -> None:
    """Raises UsageError for an architecture without a weight layout."""
    if arch not in PACKED_ARCHS:
        raise UsageError(f"there is no weight layout for {arch!r} yet; known: {', '.join(PACKED_ARCHS)}")


def compile_package(
    path: Path, arch: str, text: str, progress: Progress | None = None, *, language_only: bool = False
) -> CompiledEntry:
    """Writes lib/<arch>/plan.bin, weights.bin and vision.bin into the package at `path` and names them in its manifest.

    `language_only` leaves the vision tower to onnxruntime, as does an architecture without kernels for it.

    `text` is run once to find the range of each channel of the keys (`key_ranges`): what the cache quantises is then
    centred and level, and the model's floats are the same. A killed run leaves the package as it was.
    Raises UnsupportedModelError naming the node that the engine cannot run, UsageError while another process changes
    the package.
    """
    check_arch(arch)
    with changing(path):
        return _compile_package(path, arch, text, progress, language_only)


def _compile_package(
    path: Path, arch: str, text: str, progress: Progress | None, language_only: bool
) -> CompiledEntry:
    package = open_package(path)
    if package.manifest.decoder.position_rank != 1:
        raise UnsupportedModelError(f"{package.path}: the engine takes positions of rank 1; use onnxruntime")
    vision = _has_tower(package) and not language_only and arch in TOWER_ARCHS
    report = progress or (lambda stage, done, total: None)
    report("measure keys", 0, 1)
    ranges = measure_keys(package, text)
    report("lower", 0, 1)
    directory = package.path / "lib" / arch
    scratch = package.path / "lib" / f".{arch}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        names = [PLAN, WEIGHTS, VISION] if vision else [PLAN, WEIGHTS]
        paths = [f"lib/{arch}/{name}" for name in names]
        kv_bits = (KV_BITS,) * package.manifest.decoder.num_hidden_layers
        _write(package, arch, ranges, scratch, vision, kv_bits)
        entry = CompiledEntry(arch, paths[0], paths[1], VERSION, paths[2] if vision else None, kv_bits)
        files = [_file_entry(scratch / name, path) for name, path in zip(names, paths, strict=True)]
        # The manifest stops naming the old files before they go, and names the new ones once they are there.
        _rewrite_manifest(package, arch, None, [])
        shutil.rmtree(directory, ignore_errors=True)
        scratch.rename(directory)
        _rewrite_manifest(package, arch, entry, files)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report("lower", 1, 1)
    return entry


def compile_for_device(
    path: Path, output: Path, arch: str, text: str, progress: Progress | None = None
) -> CompiledEntry:
    """Writes a copy of the package at `path` to `output`, compiled for `arch` and without the ONNX graphs.

    No weight is stored twice on the device; only the native engine of `arch` can load the copy. It appears whole or not
    at all. Raises UsageError when `output` exists, UnsupportedModelError when a graph cannot be lowered.
    """
    if output.exists():
        raise UsageError(f"{output} exists; give the device's package another directory")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: the folder {output.parent} does not exist")
    scratch = output.with_name(f".{output.name}.compiling")
    with changing(path), scratch_directory(scratch):
        package = open_package(path)
        shutil.copytree(
            package.path, scratch, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("lib"), dirs_exist_ok=True
        )
        copied = replace(package.manifest, compiled=(), npu=None, files=_files_outside(package, ("lib",)))
        _write_manifest(scratch, copied)
        entry = compile_package(scratch, arch, text, progress)
        if entry.vision is None and _has_tower(package):
            raise UnsupportedModelError(f"{path}: there is no vision tower for {arch}; a device needs it compiled")
        compiled = open_package(scratch)
        _write_manifest(scratch, replace(compiled.manifest, graphs=(), files=_files_outside(compiled, ("onnx",))))
        shutil.rmtree(scratch / "onnx")
        open_package(scratch)
        scratch.rename(output)
    return entry


def _link_or_copy(source: str, target: str) -> None:
    """Weights are linked where the file system can; the manifest is rewritten, so it is always a copy."""
    if Path(source).name != MANIFEST_NAME:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def _files_outside(package: Package, folders: tuple[str, ...]) -> tuple[FileEntry, ...]:
    return tuple(file for file in package.manifest.files if file.path.split("/")[0] not in folders)


def _has_tower(package: Package) -> bool:
    return any(entry.name == "vision_encoder" for entry in package.manifest.graphs)


def _write(
    package: Package,
    arch: str,
    ranges: list[KeyRange],
    directory: Path,
    vision: bool,
    kv_bits: tuple[tuple[int, int], ...],
) -> None:
    decoder = package.manifest.decoder
    sources = [OnnxGraph(package.graph(name)) for name in ("decoder_model_merged", "embed_tokens")]
    with WeightsFile(directory / WEIGHTS, arch) as weights:
        lowered = lower_decoder(sources[0], sources[1], weights, ranges)
    graphs = [Graph(0, lowered.ops, lowered.buffers, lowered.graph_input, lowered.graph_output, CHUNK_TOKENS)]
    vision_hash = NO_FILE
    if vision:
        with WeightsFile(directory / VISION, arch) as vision_weights:
            tower = lower_vision(OnnxGraph(package.graph("vision_encoder")), vision_weights)
        _check_tower(package, tower)
        graphs.append(tower.graph)
        vision_hash = vision_weights.file_hash()
    info = PlanInfo(
        arch=arch,
        hidden_size=lowered.hidden_size,
        vocab_size=decoder.vocab_size,
        max_positions=lowered.max_positions or decoder.max_position_embeddings,
        chunk_tokens=CHUNK_TOKENS,
        kv_bits=kv_bits,
    )
    write_plan(directory / PLAN, info, graphs, weights.file_hash(), vision_hash)


def _check_tower(package: Package, tower: LoweredTower) -> None:
    """The tower must make what the manifest promises."""
    prompt, processor = package.manifest.prompt, package.manifest.processor
    if prompt is None or processor is None:
        raise PackageError(f"{package.path}: there is a vision tower but no prompt or processor in {MANIFEST_NAME}")
    found = (tower.tile_px, tower.tokens_per_tile, tower.width)
    expected = (processor.tile_px, prompt.tokens_per_tile, package.manifest.decoder.hidden_size)
    if found != expected:
        raise PackageError(
            f"{package.path}: the vision tower has tile pixels, tokens and width {found}, "
            f"{MANIFEST_NAME} says {expected}"
        )


def _file_entry(path: Path, relative: str) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return FileEntry(relative, path.stat().st_size, digest)


def _rewrite_manifest(package: Package, arch: str, entry: CompiledEntry | None, files: list[FileEntry]) -> None:
    manifest = package.manifest
    compiled = tuple(other for other in manifest.compiled if other.arch != arch)
    kept = tuple(other for other in manifest.files if not other.path.startswith(f"lib/{arch}/"))
    changed = replace(manifest, compiled=compiled + ((entry,) if entry else ()), files=(*kept, *files))
    _write_manifest(package.path, changed)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    scratch = directory / f".{MANIFEST_NAME}.partial"
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(directory / MANIFEST_NAME)


def compile_tower(graph: Path, arch: str, directory: Path) -> LoweredTower:
    """Writes plan.bin, weights.bin and vision.bin of a vision encoder alone into `directory`, for measurements.

    Raises UnsupportedModelError naming the node that the engine cannot run.
    """
    with WeightsFile(directory / VISION, arch) as vision:
        tower = lower_vision(OnnxGraph(graph), vision)
    with WeightsFile(directory / WEIGHTS, arch) as weights:
        weights.add(np.zeros(64, np.uint8))
    info = PlanInfo(arch, tower.width, vocab_size=1, max_positions=1, chunk_tokens=1, kv_bits=(KV_BITS,))
    write_plan(directory / PLAN, info, [tower.graph], weights.file_hash(), vision.file_hash())
    return tower
