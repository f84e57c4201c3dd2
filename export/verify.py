"""Checks a package's numbers, and turns a wrong one into a failed export.

First against transformers in fp32 with the same weights, when torch and transformers are installed; without them these
entries are 'unverified' and say how to run them. Then the quantised package against the fp32 package of the same
checkpoint, which needs neither. fp32 packages and logits live in a temporary directory beside the package.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.ort import return_free_memory
from edgevlm.errors import BackendError, ParityError
from edgevlm.package import PARTIAL_SUFFIX, Package, open_package
from edgevlm.spec import ParityEntry
from export import fidelity, parity
from export.archs import arch_spec
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint, open_checkpoint
from export.checkpoints import chat_files
from export.graphs.build import build_model
from export.quant.rules import QuantPlan
from export.reference.installed import INSTALL_HINT, is_available
from export.reference_process import ask_reference
from export.stored_weights import check_weights, weight_entries

Progress = Callable[[str, int, int], None]

MAX_CONTEXT = 8192
"""Cache capacity while verifying; its pages take memory only where tokens are."""


def verify_package(
    package: str | Path | Package,
    source: str | Path | None,
    *,
    reference: bool | None = None,
    progress: Progress | None = None,
    n_positions: int = fidelity.N_POSITIONS,
) -> tuple[ParityEntry, ...]:
    """Returns one entry per number, failed ones included; see `raise_on_failure`.

    Args:
        package: its directory, or a package that is not written to its place yet.
        source: the checkpoint that the package was exported from; without it nothing can be compared.
        reference: compare with transformers; None does so when it is installed.
        n_positions: positions scored for KL and top-1 agreement, of text and again behind pictures.

    Raises:
        BackendError: `reference` is True and torch or transformers is missing.
    """
    if not isinstance(package, Package):
        package = open_package(package)
    if reference and not is_available():
        raise BackendError(f"comparing with transformers needs torch and transformers: {INSTALL_HINT}.")
    if source is None:
        hint = "needs the checkpoint: edgevlm verify PACKAGE --source CHECKPOINT"
        return tuple(unverified(package, hint)) + tuple(_unverified_fidelity(package, hint))
    with tempfile.TemporaryDirectory(prefix=".edgevlm-verify-", dir=_scratch_parent(package.path)) as scratch:
        return _verify(package, source, Path(scratch), reference, progress, n_positions)


def raise_on_failure(entries: Iterable[ParityEntry]) -> None:
    """Raises ParityError that names every failed check with its value and bound."""
    failed = [entry for entry in entries if entry.status == "fail"]
    if failed:
        lines = [
            f"{entry.stage} against {entry.against}: {entry.metric} is {entry.value:.4g}, bound {entry.bound:.4g}"
            for entry in failed
            if entry.value is not None and entry.bound is not None
        ]
        raise ParityError(
            f"{len(lines)} parity check{'s' if len(lines) > 1 else ''} failed: {'; '.join(lines)}. "
            "The package was not written; a larger scheme may pass, a wrong graph never will."
        )


def unverified(package: Package, hint: str) -> list[ParityEntry]:
    """Returns the entries of the comparison with transformers, not run."""
    has_vision = package.manifest.processor is not None
    vision_only = {"pixels", "pixel values", "tile grid", "vision features"}
    stages = [stage for stage in parity.STAGES if has_vision or stage not in vision_only]
    return [ParityEntry(stage, "transformers (fp32)", "not run", "unverified", detail=hint) for stage in stages]


def fp32_twin(package: Package, checkpoint: Checkpoint, spec: ArchSpec, directory: Path) -> Package:
    """Writes the graphs of `checkpoint` unquantised into `directory`; the rest of the manifest is the package's.

    Raises ParityError when the checkpoint has another architecture or other shapes than the package.
    """
    manifest = package.manifest
    if spec.model_type != manifest.arch:
        raise ParityError(f"the package is a '{manifest.arch}', {checkpoint.name} is a '{spec.model_type}'.")
    built = build_model(spec, checkpoint, QuantPlan("fp32", "fp32"), directory)
    if built.decoder is None or built.decoder.cache != manifest.decoder.cache:
        raise ParityError(f"{checkpoint.name} has other layers than the package; give the checkpoint it was made from.")
    quant = replace(manifest.quant, language_scheme="fp32", vision_scheme="fp32", overrides=())
    return Package(directory, replace(manifest, graphs=built.graphs, quant=quant))


def _verify(
    package: Package,
    source: str | Path,
    scratch: Path,
    reference: bool | None,
    progress: Progress | None,
    n_positions: int,
) -> tuple[ParityEntry, ...]:
    checkpoint = open_checkpoint(source, tie_embeddings=package.manifest.quant.tied_at_import)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    entries: list[ParityEntry] = []
    expected: parity.Expected | None = None
    if reference or (reference is None and is_available()):
        _report(progress, "transformers", 0, 1)
        _free_memory()  # of the export before
        template = _other_template(package, checkpoint)
        found, expected = ask_reference(_with_own_budget(package, spec), source, template, scratch)
        entries += found
    else:
        entries += unverified(package, INSTALL_HINT)

    _report(progress, "fp32 graphs", 0, 1)
    fp32 = fp32_twin(package, checkpoint, spec, scratch)
    entries += weight_entries(check_weights(package, fp32), fidelity.AGAINST)
    if expected is not None:
        session = OnnxSession(fp32, context=_context(fp32))
        entries += parity.compare(session, expected, _image_token_id(package))
        del session, expected  # with its arenas, to which the next encoding of pictures would add
        _free_memory()
    session = OnnxSession(fp32, context=_context(fp32))
    teacher = fidelity.run_teacher(session, package, scratch, n_positions, progress)
    del session
    _free_memory()
    session = OnnxSession(package, context=_context(package))
    entries += fidelity.compare_student(session, package, teacher, progress)
    return tuple(entries)


def _other_template(package: Package, checkpoint: Checkpoint) -> str | None:
    """The package's chat template where the user gave one at export; None where it is the checkpoint's own."""
    name = chat_files.JINJA
    if not package.has_file(name):
        return None
    content = package.file(name).read_bytes().decode("utf-8")
    return (
        None if chat_files.own_template(checkpoint.files, chat_files.has_processor(checkpoint)) == content else content
    )


def _with_own_budget(package: Package, spec: ArchSpec) -> Package:
    """The package with the model's own tile budget, where the user lowered it: transformers knows no other."""
    processor = package.manifest.processor
    if processor is None or spec.processor is None:
        return package
    processor = replace(processor, max_tiles=spec.processor.max_tiles)
    return Package(package.path, replace(package.manifest, processor=processor))


def _unverified_fidelity(package: Package, hint: str) -> list[ParityEntry]:
    pairs = [("stored weights", "largest relative error"), ("text", "mean KL"), ("text", "top-1 agreement")]
    if package.manifest.processor is not None:
        pairs += [("vision features", "mean cosine"), ("picture prompts", "mean KL")]
        pairs += [("picture prompts", "top-1 agreement")]
    return [ParityEntry(stage, fidelity.AGAINST, metric, "unverified", detail=hint) for stage, metric in pairs]


def _context(package: Package) -> int:
    return min(MAX_CONTEXT, package.manifest.decoder.max_position_embeddings)


def _image_token_id(package: Package) -> int:
    prompt = package.manifest.prompt
    return -1 if prompt is None else prompt.image_token_id


def _scratch_parent(package_dir: Path) -> Path | None:
    """Where temporary files go: beside the package (/tmp is often memory), or where the system says.

    Inside a package that is being written, so that what a killed export leaves is removed in one piece.
    """
    path = package_dir.resolve()
    parent = path if path.name.endswith(PARTIAL_SUFFIX) else path.parent
    return parent if os.access(parent, os.W_OK) else None


def _free_memory() -> None:
    """Between two models: what the first one held goes back to the system, so that the peak is that of one."""
    gc.collect()
    return_free_memory()


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(f"verify: {stage}", done, total)
