"""compile_npu: a package → fixed quantised graphs (lib/qnn-htp) and context binaries (lib/qnn-htp-v75, …).

Key centres, ranges, quantised graphs and their simulation come first and need no NPU; the binaries are made of the same
files. A killed run leaves the package as it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgevlm.backends.npu import simulated_session
from edgevlm.backends.qnn import SOCS, provider_device, provider_version
from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, TILE_BATCHES
from edgevlm.errors import UnsupportedModelError, UsageError
from edgevlm.package import Package, open_package
from edgevlm.package_lock import changing
from edgevlm.spec import MANIFEST_NAME, FileEntry, Manifest, NpuEntry, NpuGraph, NpuTarget, ParityEntry
from edgevlm.strict_json import to_json
from export.divergence import token_cosines
from export.fidelity import picture_probes
from export.npu.calibrate import Calibration, calibrate
from export.npu.distance import cpu_logits, float_features, float_logits, mean_kl, measured_ids, session_logits
from export.npu.graphs import DECODE, DEFAULT_CONTEXT, PREFILL, BuiltGraph, build_npu_graphs
from export.npu.htp import Placement, compile_graphs, sdk_version
from export.npu.parts import MAX_BINARY_BYTES, split_graph
from export.npu.qdq import Codes, WeightPool, quantise_graph
from export.npu.ranges import METHODS, Method

KIND = "qnn-htp"
WEIGHTS_NAME, RANGES_NAME, REPORT_NAME = "weights.bin", "ranges.json", "partition.json"
N_MEASURED_TOKENS = 48
MAX_KL_SHARE = 0.5
"""Of the package's own divergence from fp32: independent errors add, so the sum stays within 1.5 times the CPU's."""
MAX_KL_UNVERIFIED = 0.05
"""For a package that was exported without checks, and for one that is exact."""
SMALL_MODEL_PARAMETERS = 600_000_000
"""Below, published recipes for HTP take 8 bits (SmolLM2-135M, SmolVLM). Source: ExecuTorch's list of recipes."""
KL_FLOOR = 1e-3
"""A bound that 16-bit activations and an 8-bit cache can meet even where the weights are exact."""
MIN_COSINE = 0.9995

Status = Literal["pass", "fail", "unverified"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NpuOptions:
    """What a user may choose."""

    socs: tuple[str, ...] = ("SM8650",)
    """Empty writes the graphs and their simulation only."""
    context: int | None = None
    chunk_tokens: int = PREFILL_CHUNK_TOKENS
    tile_batches: tuple[int, ...] = TILE_BATCHES
    ranges: Method | None = None
    """None compares all methods and takes the one of least divergence."""
    allow_cpu: tuple[str, ...] = ()
    share_weights: bool = False
    """Prefill and decode in one binary: half the size, and the x86-64 emulator cannot load it."""
    part_bytes: int = MAX_BINARY_BYTES
    """A graph with as many bytes of weights is split into parts by layers."""


def compile_npu(path: Path, options: NpuOptions, progress: Progress | None = None) -> NpuEntry:
    """Adds the NPU's form to the package at `path` and returns its manifest entry.

    Raises UsageError for an unknown chip, BackendError without the provider, UnsupportedModelError naming a node that
    the NPU cannot run.
    """
    for soc in options.socs:
        if soc not in SOCS:
            raise UsageError(f"unknown chip {soc!r}; known: {', '.join(SOCS)}")
    if options.socs:
        provider_device()
    with changing(path):
        return _compile_npu(path, options, progress)


def _compile_npu(path: Path, options: NpuOptions, progress: Progress | None) -> NpuEntry:
    package = open_package(path)
    context = _context(package, options)
    report = progress or (lambda stage, done, total: None)
    scratch = package.path / "lib" / f".{KIND}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        report("calibrate", 0, 1)
        found = calibrate(package, scratch / "float", options.chunk_tokens)
        report("build graphs", 0, 1)
        built = build_npu_graphs(
            package,
            scratch / "graphs",
            context=context,
            key_centres=found.key_centres,
            chunk_tokens=options.chunk_tokens,
            tile_batches=options.tile_batches,
        )
        entry = _quantised(package, built, found, context, options, scratch / KIND, report)
        shutil.rmtree(scratch / "float")
        shutil.rmtree(scratch / "graphs")
        for number, soc in enumerate(options.socs):
            report("compile for the NPU", number, len(options.socs))
            entry = replace(entry, targets=(*entry.targets, _target(entry, scratch, soc, options)))
        _install(package, scratch, entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report("compile for the NPU", 1, 1)
    return entry


def bits_advice(package: Package) -> str | None:
    """Returns what to export instead where all of a small language model has 4 bits, or None."""
    manifest = package.manifest
    n_parameters = sum(size.parameters for size in manifest.sizes if size.component in ("embedding", "layers"))
    scheme = manifest.quant.language_scheme
    if not scheme.startswith("w4") or scheme.endswith("-mix") or n_parameters >= SMALL_MODEL_PARAMETERS:
        return None
    return (
        f"a language model of {n_parameters / 1e6:.0f} M parameters in {scheme}: below "
        f"{SMALL_MODEL_PARAMETERS / 1e6:.0f} M, export with --scheme w8, or w4g32-mix, which gives 8 bits to the "
        "layers that a measurement names"
    )


def _context(package: Package, options: NpuOptions) -> int:
    largest = package.manifest.decoder.max_position_embeddings
    context = options.context or min(DEFAULT_CONTEXT, largest)
    if not options.chunk_tokens <= context <= largest:
        raise UsageError(f"context is {context}, expected {options.chunk_tokens} (a chunk) to {largest} (the model's)")
    return context


# ---- graphs and their simulation


def _quantised(
    package: Package,
    built: list[BuiltGraph],
    found: Calibration,
    context: int,
    options: NpuOptions,
    directory: Path,
    report: Progress,
) -> NpuEntry:
    """Writes the graphs by the best method; the directory is what lib/qnn-htp will be."""
    ids = measured_ids(package, min(N_MEASURED_TOKENS, context))
    teacher = float_logits(package, ids)
    cpu_kl = mean_kl(teacher, cpu_logits(package, ids))
    methods = METHODS if options.ranges is None else (options.ranges,)
    divergence: dict[Method, float] = {}
    entries: dict[Method, NpuEntry] = {}
    for number, method in enumerate(methods):
        report("simulate", number, len(methods))
        place = directory.with_name(f"{directory.name}.{method}")
        entries[method] = _write(built, found, context, options, method, place)
        trial = _trial_package(package, entries[method], place)
        divergence[method] = mean_kl(teacher, session_logits(simulated_session(trial), ids))
    best = min(methods, key=lambda method: divergence[method])
    for method in methods:
        place = directory.with_name(f"{directory.name}.{method}")
        if method == best:
            trial = _trial_package(package, entries[method], place)
            parity = (*_kl_entries(divergence, best, cpu_kl, _kl_bound(package), len(ids)), *_cosine_entries(trial))
            place.rename(directory)
        else:
            shutil.rmtree(place)
    return replace(entries[best], parity=parity)


def _write(
    built: list[BuiltGraph], found: Calibration, context: int, options: NpuOptions, method: Method, place: Path
) -> NpuEntry:
    place.mkdir()
    ranges = {
        name: observed.range(method, is_cached=name.startswith("present.")) for name, observed in found.observed.items()
    }
    # divergence of text cannot choose for the tower, and its outliers carry its result
    ranges |= {name: observed.range("minmax") for name, observed in found.in_tower.items()}
    pool = WeightPool(place / WEIGHTS_NAME)
    codes: dict[str, Codes] = {}
    graphs = []
    for graph in built:
        codes |= quantise_graph(graph.path, place / f"{graph.name}.onnx", ranges, pool)
        parts = split_graph(graph, place / f"{graph.name}.onnx", options.part_bytes)
        graphs += [NpuGraph(graph.name, f"lib/{KIND}/{part.name}") for part in parts]
    pool.close()
    table = {
        name: {"scale": c.scale, "zero_point": c.zero_point, "dtype": c.dtype} for name, c in sorted(codes.items())
    }
    (place / RANGES_NAME).write_text(json.dumps(table, indent=1) + "\n")
    has_tower = any(graph.name.startswith("vision") for graph in built)
    return NpuEntry(
        context=context,
        chunk_tokens=options.chunk_tokens,
        tile_batches=options.tile_batches if has_tower else (),
        graphs=tuple(graphs),
        weights=f"lib/{KIND}/{WEIGHTS_NAME}",
        ranges=f"lib/{KIND}/{RANGES_NAME}",
        range_method=method,
        allow_cpu=options.allow_cpu,
    )


def _trial_package(package: Package, entry: NpuEntry, place: Path) -> Package:
    """The package as it will be, with the graphs still where they were written."""
    here = f"lib/.{KIND}.partial/{place.name}"
    graphs = tuple(replace(graph, path=f"{here}/{Path(graph.path).name}") for graph in entry.graphs)
    return Package(package.path, replace(package.manifest, npu=replace(entry, graphs=graphs)))


def _kl_entries(
    divergence: dict[Method, float], best: Method, cpu_kl: float, bound: float, n_tokens: int
) -> list[ParityEntry]:
    detail = f"{n_tokens} tokens; the CPU's int8 activations: {cpu_kl:.3g}"
    entries = []
    for method, value in divergence.items():
        metric = f"mean KL, {method} ranges"
        if method == best:
            status: Status = "pass" if value <= bound else "fail"
            entries.append(ParityEntry("npu", "float activations", metric, status, value, bound, detail))
        else:
            entries.append(ParityEntry("npu", "float activations", metric, "pass", value, None, "not chosen"))
    return entries


def _kl_bound(package: Package) -> float:
    for entry in package.manifest.parity:
        if entry.stage == "text" and entry.metric == "mean KL" and entry.value:
            return max(MAX_KL_SHARE * entry.value, KL_FLOOR)
    return MAX_KL_UNVERIFIED


def _cosine_entries(trial: Package) -> list[ParityEntry]:
    """Picture tokens of the simulation against the CPU's tower with float activations."""
    probes = picture_probes(trial)
    if not probes:
        return []
    pixels = probes[0].pixel_values
    cosines = token_cosines(simulated_session(trial).encode(pixels), float_features(trial, pixels))
    value = float(np.mean(cosines))
    status: Status = "pass" if value >= MIN_COSINE else "fail"
    detail = f"{len(pixels)} tiles; smallest {float(np.min(cosines)):.5f}"
    return [ParityEntry("npu", "float activations", "mean cosine of picture tokens", status, value, MIN_COSINE, detail)]


# ---- context binaries


def _target(entry: NpuEntry, scratch: Path, soc: str, options: NpuOptions) -> NpuTarget:
    arch = SOCS[soc][2]
    directory = scratch / f"{KIND}-{arch}"
    directory.mkdir()
    files: dict[str, list[str]] = {}
    for graph in entry.graphs:
        files.setdefault(graph.name, []).append(Path(graph.path).name)
    decoder = zip(files.pop(PREFILL), files.pop(DECODE), strict=True)
    groups = [*decoder, *((name,) for names in files.values() for name in names)]
    placements: list[Placement] = []
    for group in groups:
        graphs = [(Path(name).stem, scratch / KIND / name) for name in group]
        placements += compile_graphs(graphs, directory, soc, options.allow_cpu, share=options.share_weights)
    text = json.dumps([placement.__dict__ for placement in placements], indent=1)
    (directory / REPORT_NAME).write_text(text + "\n")
    here = f"lib/{KIND}-{arch}"
    return NpuTarget(
        arch=arch,
        soc=soc,
        graphs=tuple(replace(graph, path=f"{here}/{Path(graph.path).name}") for graph in entry.graphs),
        binaries=tuple(f"{here}/{file.name}" for file in sorted(directory.glob("*.bin"))),
        sdk=f"{provider_version()}, QNN SDK {sdk_version(directory / Path(entry.graphs[0].path).name)}",
        shared_weights=options.share_weights,
        on_cpu=tuple(node for placement in placements for node in placement.on_cpu),
    )


# ---- the package


def _install(package: Package, scratch: Path, entry: NpuEntry) -> None:
    """The manifest stops naming the old files before they go, and names the new ones once they are there."""
    if any(item.status == "fail" for item in entry.parity):
        worst = next(item for item in entry.parity if item.status == "fail")
        raise UnsupportedModelError(
            f"the NPU's form is too far from the model: {worst.metric} is {worst.value:.3g}, "
            f"the bound {worst.bound:.3g} ({worst.detail})"
        )
    library = package.path / "lib"
    old = [path for path in library.glob(f"{KIND}*") if path.is_dir()]
    kept = tuple(item for item in package.manifest.files if not item.path.startswith(f"lib/{KIND}"))
    _write_manifest(package, replace(package.manifest, npu=None, files=kept))
    for path in old:
        shutil.rmtree(path)
    files = []
    for directory in sorted(path for path in scratch.iterdir() if path.is_dir()):
        target = library / directory.name
        directory.rename(target)
        files += [_file_entry(path, package.path) for path in sorted(target.iterdir())]
    _write_manifest(package, replace(package.manifest, npu=entry, files=(*kept, *files)))


def _file_entry(path: Path, root: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, digest)


def _write_manifest(package: Package, manifest: Manifest) -> None:
    text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    scratch = package.path / f".{MANIFEST_NAME}.partial"
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(package.path / MANIFEST_NAME)
