"""Checkpoint to package, step by step: open, check the rest, plan, allocate, build, describe, verify, commit.

A step that fails leaves nothing behind; a package exists only after every check has passed.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import edgevlm
from edgevlm.errors import PackageError, UnsupportedModelError, UsageError
from edgevlm.manifest_values import wrong_generation, wrong_processor, wrong_prompt
from edgevlm.package import Package
from edgevlm.spec import SCHEMA_VERSION, DecoderSpec, FileEntry, GenerationSpec, Manifest, QuantEntry
from export import card, fidelity, verify
from export.archs import arch_spec
from export.archspec import ArchSpec, LMSpec
from export.checkpoint import Checkpoint, open_checkpoint
from export.checkpoints import chat_files
from export.device.files import device_files
from export.graphs.build import BuildResult, build_model
from export.graphs.head import with_stored_head
from export.graphs.layers import check_layers
from export.graphs.tensors import Tensors
from export.quant import mix, sensitivity
from export.quant.rules import DEFAULT_VISION, QuantPlan, Rule, default_language_scheme
from export.quant.scheme import MixScheme, parse_language_scheme
from export.ready import check_ready
from export.writer import PackageWriter

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); called often, must be cheap."""

LOG = logging.getLogger("edgevlm.export")

N_WORST_TENSORS = 10
CARD_NAME = "README.md"
_FP32_BYTES = 4
_SCALE_BYTES_ONNX = 4
_FIXED_BYTES = 64 << 20
"""Allowance for tokenizer files, norms and alignment."""


@dataclass(frozen=True)
class ExportOptions:
    """Everything that a user may choose about an export."""

    scheme: str | None = None
    """Language model; None takes the default for its size."""
    vision_scheme: str = DEFAULT_VISION
    overrides: tuple[Rule, ...] = ()
    """(regular expression for a whole tensor name, scheme); the first match wins, before a mix's own rules."""
    tie_embeddings: bool = False
    """Read a head and an embedding that are two roundings of one table as one."""
    mix_bits: float | None = None
    """Mean bits per weight of the layers' linears that a mix aims at; None takes the scheme's own."""
    context: int | None = None
    """Default context in tokens; None takes min(model's, 4096)."""
    max_tiles: int | None = None
    """Largest number of tiles per picture; None keeps the model's."""
    name: str | None = None
    chat_template: str | None = None
    """The template's text, in place of the checkpoint's own."""
    no_chat_template: bool = False
    """Leave the checkpoint's chat template out: the package continues plain text."""
    force: bool = False
    verify: bool = True
    reference: bool | None = None
    """Compare with transformers: None does so when it is installed."""


def export_package(
    source: str | Path,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Exports `source` and returns the package directory, `<name>-edgevlm-<scheme>` in the current one by default.

    Raises UsageError for options that do not fit, PackageError and UnsupportedModelError for the checkpoint,
    BackendError when the disk is too small, ParityError when a check fails.
    """
    options = options or ExportOptions()
    checkpoint = open_checkpoint(source, tie_embeddings=options.tie_embeddings)
    spec = _with_options(arch_spec(checkpoint.config, checkpoint.files), options)
    _check_values(spec, checkpoint)
    check_layers(spec, Tensors(checkpoint, spec.names))
    spec, notes = with_stored_head(spec, Tensors(checkpoint, spec.names))
    for note in notes:
        LOG.warning("%s: %s", checkpoint.name, note)
    language = _language(spec, checkpoint)
    check_ready(checkpoint, spec, needs_reference=options.verify and options.reference is True)
    carried = chat_files.carried(
        checkpoint, spec.prompt, language.vocab, template=options.chat_template, without=options.no_chat_template
    )
    plan = QuantPlan(
        options.scheme or default_language_scheme(n_parameters(language)), options.vision_scheme, options.overrides
    )
    name = options.name or _file_name(checkpoint.name)
    target = Path(out) if out is not None else Path(f"{_file_name(name)}-edgevlm-{plan.language}")

    needed = needed_bytes(checkpoint, spec, plan, options)
    with PackageWriter(target, force=options.force, needed_bytes=needed) as writer:
        plan = _allocated(plan, spec, language, checkpoint, writer, options, progress)
        with writer.writing() as directory:
            built = build_model(spec, checkpoint, plan, directory, context=options.context, progress=progress)
        plan.check_used()
        for field in spec.generation.not_applied if spec.generation else ():
            LOG.warning("%s: generation_config.json: %s is not applied when an answer is made", checkpoint.name, field)
        for relative, data in carried.items():
            writer.write(relative, data)
        manifest = _manifest(name, checkpoint, spec, plan, built, writer.files(_bytes_hashed(writer, progress)))
        manifest = replace(manifest, quant=replace(manifest.quant, tied_at_import=options.tie_embeddings))
        manifest = _with_device_files(manifest, writer)
        manifest = _verified(manifest, writer, source, options, progress)
        base_model = checkpoint.source if "/" in checkpoint.source else None
        writer.write(CARD_NAME, card.model_card(manifest, base_model=base_model).encode("utf-8"))
        writer.write_manifest(replace(manifest, files=writer.files()))
        return writer.commit()


def n_parameters(language: LMSpec) -> int:
    """Returns the number of weights in a language model's tables and linears."""
    linears = (
        n_out * n_in
        for layer in range(len(language.layer_kinds))
        for n_out, n_in in mix.linear_shapes(language, layer).values()
    )
    return sum(linears) + language.vocab * language.hidden * (1 if language.tied else 2)


def needed_bytes(checkpoint: Checkpoint, spec: ArchSpec, plan: QuantPlan, options: ExportOptions) -> int:
    """Returns about how much disk an export takes at its peak: the package, fp32 graphs and their logits."""
    n_weights = sum(_size(info.shape) for info in checkpoint.tensors().values())
    scheme = plan.language_scheme
    low = scheme.high if isinstance(scheme, MixScheme) else scheme
    per_weight = low.bits / 8 + (_SCALE_BYTES_ONNX / low.block if low.block else 0)
    needs_fp32 = options.verify or isinstance(scheme, MixScheme)
    n_logits = 0
    if options.verify and spec.language is not None:
        n_logits = fidelity.N_POSITIONS * spec.language.vocab * (1 if spec.vision is None else 2)
    n_bytes = n_weights * (per_weight + (_FP32_BYTES if needs_fp32 else 0)) + n_logits * _FP32_BYTES
    return int(n_bytes) + _FIXED_BYTES


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def _check_values(spec: ArchSpec, checkpoint: Checkpoint) -> None:
    """Raises PackageError for a value that no package may hold, before it costs anything."""
    wrong: list[str] = []
    if spec.processor is not None:
        wrong += wrong_processor(spec.processor)
    if spec.prompt is not None:
        wrong += wrong_prompt(spec.prompt)
    if spec.language is not None and spec.generation is not None:
        wrong += wrong_generation(spec.generation, spec.language.vocab)
    if wrong:
        raise PackageError(
            f"{checkpoint.name}: its files give {wrong[0]}; correct config.json, generation_config.json or the "
            "processor's file"
        )


def _with_options(spec: ArchSpec, options: ExportOptions) -> ArchSpec:
    if options.context is not None and spec.language is not None and options.context > spec.language.context:
        raise UsageError(
            f"context {options.context} is more than the model's own {spec.language.context}; choose a smaller one"
        )
    if options.max_tiles is None:
        return spec
    if spec.processor is None:
        raise UsageError("a tile budget needs a model with a vision tower; this one has none")
    if not 1 <= options.max_tiles <= spec.processor.max_tiles:
        raise UsageError(f"{options.max_tiles} tiles: the model takes 1 to {spec.processor.max_tiles}")
    return replace(spec, processor=replace(spec.processor, max_tiles=options.max_tiles))


def _language(spec: ArchSpec, checkpoint: Checkpoint) -> LMSpec:
    if spec.language is None:
        raise UnsupportedModelError(
            f"{checkpoint.name} is a {spec.model_type} vision tower without a language model; a package needs one: "
            "join them in a composed checkpoint"
        )
    return spec.language


def _allocated(
    plan: QuantPlan,
    spec: ArchSpec,
    language: LMSpec,
    checkpoint: Checkpoint,
    writer: PackageWriter,
    options: ExportOptions,
    progress: Progress | None,
) -> QuantPlan:
    """Returns the plan with the rules of a measured allocation behind the user's, when its scheme is a mix."""
    scheme = parse_language_scheme(plan.language)
    if not isinstance(scheme, MixScheme):
        if options.mix_bits is not None:
            raise UsageError(f"mix bits are given, but {plan.language} is no mix; leave them out or choose w4g32-mix")
        return plan
    names = spec.names.language
    members = mix.groups(language, names, plan)
    with writer.writing() as directory:
        scratch = directory / "measure"
        found = sensitivity.measure(spec, checkpoint, scheme.low, members, scratch, progress)
        shutil.rmtree(scratch)
    promoted = mix.allocate(found, scheme, options.mix_bits)
    return replace(
        plan, overrides=(*plan.overrides, *mix.rules(promoted, language, names, scheme)), stored={}, _matched=set()
    )


def _manifest(
    name: str,
    checkpoint: Checkpoint,
    spec: ArchSpec,
    plan: QuantPlan,
    built: BuildResult,
    files: tuple[FileEntry, ...],
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        arch=spec.model_type,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=checkpoint.source,
        versions=_versions(),
        processor=spec.processor,
        prompt=spec.prompt,
        decoder=_decoder(built),
        generation=spec.generation or GenerationSpec(eos_token_ids=()),
        graphs=built.graphs,
        quant=QuantEntry(
            language_scheme=plan.language,
            vision_scheme=plan.vision,
            overrides=plan.overrides,
            worst_tensors=plan.worst(N_WORST_TENSORS),
            mean_bits_per_weight=round(plan.mean_bits_per_weight(), 4),
        ),
        sizes=built.sizes,
        parity=(),
        files=files,
    )


def _with_device_files(manifest: Manifest, writer: PackageWriter) -> Manifest:
    """Writes what phones read; what they cannot do stands in the manifest and is told."""
    if not any(entry.path == "tokenizer.json" for entry in manifest.files):
        return manifest
    files, entry = device_files(Package(writer.directory, manifest))
    for relative, data in files.items():
        writer.write(relative, data)
    for reason in entry.missing:
        LOG.warning("not for phones: %s", reason)
    return replace(manifest, device=entry, files=writer.files())


def _decoder(built: BuildResult) -> DecoderSpec:
    if built.decoder is None:
        raise UnsupportedModelError("the graphs have no decoder")
    return built.decoder


def _verified(
    manifest: Manifest, writer: PackageWriter, source: str | Path, options: ExportOptions, progress: Progress | None
) -> Manifest:
    """Returns the manifest with the parity numbers. Raises ParityError when one is outside its bound."""
    package = Package(writer.directory, manifest)
    entries = verify.verify_package(
        package, source if options.verify else None, reference=options.reference, progress=progress
    )
    verify.raise_on_failure(entries)
    return replace(manifest, parity=entries)


def _bytes_hashed(writer: PackageWriter, progress: Progress | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    total = sum(path.stat().st_size for path in writer.directory.rglob("*") if path.is_file())
    done = 0

    def report(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress("hash", done, total)

    return report


def _versions() -> dict[str, str]:
    versions = {"edgevlm": edgevlm.__version__}
    for distribution in ("onnxruntime", "onnx", "numpy", "gguf"):
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _file_name(name: str) -> str:
    """Returns `name` with what a file name should not hold turned into dashes."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"
