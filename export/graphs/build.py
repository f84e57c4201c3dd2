"""build_model: writes the ONNX graphs of an ArchSpec into a package directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgevlm.errors import UnsupportedModelError
from edgevlm.spec import CacheEntry, ComponentSize, DecoderSpec, GraphEntry, GraphName, TensorError
from export.archspec import ArchSpec, LMSpec, VisionSpec
from export.graphs.builder import GraphBuilder
from export.graphs.connector import build_connector, tokens_per_tile
from export.graphs.decoder import build_decoder
from export.graphs.embed import build_embed
from export.graphs.head import with_stored_head
from export.graphs.layers import check_layers
from export.graphs.ops.cpu import CpuOps
from export.graphs.ops.storage import Progress, Storage
from export.graphs.supported import check_all
from export.graphs.tensors import TensorReader, Tensors
from export.graphs.vision import build_tower
from export.quant.rules import QuantPlan

GRAPH_DIR = "onnx"
DEFAULT_CONTEXT = 4096
KV_BITS_FLOAT = 16


@dataclass(frozen=True)
class BuildResult:
    """What was written."""

    graphs: tuple[GraphEntry, ...]
    decoder: DecoderSpec | None
    """None for a bare tower."""
    errors: tuple[TensorError, ...]
    """Of every quantised tensor, largest first."""
    sizes: tuple[ComponentSize, ...]
    notes: tuple[str, ...]
    """Decisions that differ from what config.json says, one sentence each."""


@dataclass
class _Build:
    spec: ArchSpec
    storage: Storage
    plan: QuantPlan
    directory: Path
    overridable: Callable[[str], bool] | None
    graphs: list[GraphEntry] = field(default_factory=list)

    @contextmanager
    def graph(self, name: GraphName, suffix: str) -> Iterator[CpuOps]:
        """A graph that is written when the block ends without an error."""
        file_name = f"{name}{suffix}.onnx"
        self.storage.graph = name
        with GraphBuilder(name, self.directory / f"{file_name}_data", overridable=self.overridable) as builder:
            yield CpuOps(builder, self.storage)
            data = builder.finish(self.directory / file_name)
        paths = tuple(f"{GRAPH_DIR}/{item}" for item in data)
        self.graphs.append(GraphEntry(name, f"{GRAPH_DIR}/{file_name}", paths))


def build_model(
    spec: ArchSpec,
    checkpoint: TensorReader,
    plan: QuantPlan,
    out_dir: Path,
    *,
    context: int | None = None,
    overridable: Callable[[str], bool] | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Writes `out_dir`/onnx/*.onnx and their data files, under the plan's schemes.

    context: default context length in tokens; None takes the model's, at most 4096.
    overridable: names of float weights (linears are stored transposed, (K, N)) that also become graph inputs.
    Raises UnsupportedModelError naming the field or tensor that is not understood, also when a tensor is left over.
    """
    check_all(spec)
    check_layers(spec, Tensors(checkpoint, spec.names))
    spec, notes = with_stored_head(spec, Tensors(checkpoint, spec.names))
    tensors = Tensors(checkpoint, spec.names)
    directory = Path(out_dir) / GRAPH_DIR
    directory.mkdir(parents=True, exist_ok=True)
    build = _Build(spec, Storage(tensors, plan, progress), plan, directory, overridable)
    if spec.vision is not None:
        _build_vision(build, spec.vision)
    decoder = _build_language(build, spec.language, context) if spec.language is not None else None
    tensors.account(_unused_head(spec, tensors))
    return BuildResult(
        graphs=tuple(build.graphs),
        decoder=decoder,
        errors=plan.worst(len(plan.stored)),
        sizes=tuple(
            ComponentSize(part, size.parameters, size.size_bytes) for part, size in build.storage.sizes.items()
        ),
        notes=notes,
    )


def _unused_head(spec: ArchSpec, tensors: Tensors) -> tuple[str, ...]:
    """A tied model may still store its head: a copy of the embedding."""
    if spec.language is None or not spec.language.tied:
        return ()
    return (re.escape(tensors.resolve(f"{spec.names.language['lm_head']}.weight")),)


def _build_vision(build: _Build, vision: VisionSpec) -> None:
    grid, spec = vision.image_px // vision.patch, build.spec
    n_tokens, width = grid * grid, vision.width
    with build.graph("vision_encoder", build.plan.vision_scheme.suffix) as ops:
        side = vision.image_px
        pixels = ops.builder.input("pixel_values", "float32", ("tiles", 3, side, side))
        features = build_tower(ops, vision, spec.names.vision, pixels)
        if spec.connector is not None:
            features = build_connector(ops, spec.connector, spec.names.connector, features, grid, vision.width)
            n_tokens = tokens_per_tile(spec.connector, grid)
            width = spec.connector.linears[-1].out or width
        if spec.prompt is not None and spec.prompt.tokens_per_tile != n_tokens:
            raise UnsupportedModelError(
                f"the prompt has {spec.prompt.tokens_per_tile} image tokens a tile, the vision graph makes {n_tokens}"
            )
        ops.builder.output("image_features", features, "float32", ("tiles", n_tokens, width))


def _build_language(build: _Build, language: LMSpec, context: int | None) -> DecoderSpec:
    names, suffix = build.spec.names.language, build.plan.language_scheme.suffix
    with build.graph("embed_tokens", suffix) as ops:
        table = build_embed(ops, language, names)
    with build.graph("decoder_model_merged", suffix) as ops:
        cache = build_decoder(ops, language, names, table if language.tied else None)
    return decoder_spec(language, cache, context)


def decoder_spec(language: LMSpec, cache: tuple[CacheEntry, ...], context: int | None) -> DecoderSpec:
    """The runtime's description of the decoder."""
    n_layers = len(language.layer_kinds)
    return DecoderSpec(
        hidden_size=language.hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads[0],
        head_dim=language.head_dim[0],
        vocab_size=language.vocab,
        max_position_embeddings=language.context,
        default_context=min(language.context, context or DEFAULT_CONTEXT),
        cache=cache,
        kv_bits=((KV_BITS_FLOAT, KV_BITS_FLOAT),) * n_layers,
    )
