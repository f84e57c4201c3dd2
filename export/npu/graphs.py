"""build_npu_graphs: a package's model as fixed float graphs, by the builders that made its CPU graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, TILE_BATCHES
from edgevlm.errors import PackageError
from edgevlm.package import Package
from export.archs import arch_spec
from export.archspec import ArchSpec, VisionSpec
from export.checkpoints.paths import parse_object
from export.graphs.builder import GraphBuilder, StoredBytes
from export.graphs.connector import build_connector, tokens_per_tile
from export.graphs.decoder import build_decoder
from export.graphs.ops.npu import DecoderShape, NpuOps
from export.graphs.vision import build_tower
from export.npu.weights import PackageWeights

Float32 = NDArray[np.float32]

PREFILL, DECODE = "prefill", "decode"
DEFAULT_CONTEXT = 1024
"""Every call reads and masks the whole cache, so a long one costs each token."""


@dataclass(frozen=True)
class BuiltGraph:
    """One fixed graph on disk; `data` lies beside it."""

    name: str
    """prefill, decode, vision_4 or vision_1."""
    path: Path
    boundaries: tuple[str, ...]
    """The value that each layer but the last hands to the next; besides it they share only the graph's inputs."""
    hidden_shape: tuple[int, int, int]
    """Of those values."""


def build_npu_graphs(
    package: Package,
    directory: Path,
    *,
    context: int,
    key_centres: list[Float32] | None = None,
    chunk_tokens: int = PREFILL_CHUNK_TOKENS,
    tile_batches: tuple[int, ...] = TILE_BATCHES,
    all_logits: bool = False,
) -> list[BuiltGraph]:
    """Writes <name>.onnx and their data files into `directory`; a tower's graphs come when the package has one.

    `context` is the number of cache rows that each call takes, used or not; `all_logits` makes prefill return the
    logits of every row.
    """
    weights = PackageWeights(package)
    spec = package_spec(package, weights)
    directory.mkdir(parents=True, exist_ok=True)
    stored: dict[str, StoredBytes] = {}
    graphs = []
    if spec.language is not None:
        for name, n_tokens in ((PREFILL, chunk_tokens), (DECODE, 1)):
            with _graph(directory, name) as builder:
                shape = DecoderShape(n_tokens, context, all_logits)
                ops = NpuOps(builder, weights, decoder=shape, key_centres=key_centres, stored=stored)
                build_decoder(ops, spec.language, spec.names.language, None)
            hidden = (1, n_tokens, spec.language.hidden)
            graphs.append(BuiltGraph(name, directory / f"{name}.onnx", tuple(builder.boundaries), hidden))
    if spec.vision is not None:
        tile_tokens = (spec.vision.image_px // spec.vision.patch) ** 2 + spec.vision.cls
        for tiles in tile_batches:
            with _graph(directory, f"vision_{tiles}") as builder:
                _tower(NpuOps(builder, weights, tiles=tiles, stored=stored), spec, spec.vision)
            hidden = (tiles, tile_tokens, spec.vision.width)
            path = directory / f"vision_{tiles}.onnx"
            graphs.append(BuiltGraph(f"vision_{tiles}", path, tuple(builder.boundaries), hidden))
    return graphs


def package_spec(package: Package, weights: PackageWeights) -> ArchSpec:
    """Returns the ArchSpec of a package: the config.json that it carries, and the widths that only weights know."""
    carried = [entry.path for entry in package.manifest.files if "/" not in entry.path]
    files = {path: package.file(path).read_bytes() for path in carried}
    if "config.json" not in files:
        raise PackageError(f"{package.path}: there is no config.json, which the NPU's graphs are built from")
    spec = arch_spec(parse_object(files["config.json"], f"{package.path}: config.json"), files)
    if spec.connector is not None:
        linears = tuple(
            dataclasses.replace(
                linear, out=linear.out or weights.shape(f"{spec.names.connector[f'linear.{i}']}.weight")[0]
            )
            for i, linear in enumerate(spec.connector.linears)
        )
        spec = dataclasses.replace(spec, connector=dataclasses.replace(spec.connector, linears=linears))
    if spec.language is None:
        return spec
    tied = not weights.has(f"{spec.names.language['lm_head']}.weight")
    return dataclasses.replace(spec, language=dataclasses.replace(spec.language, tied=tied))


@contextmanager
def _graph(directory: Path, name: str) -> Iterator[GraphBuilder]:
    """A graph that is written when the block ends without an error."""
    with GraphBuilder(name, directory / f"{name}.onnx_data") as builder:
        yield builder
        builder.finish(directory / f"{name}.onnx")


def _tower(ops: NpuOps, spec: ArchSpec, vision: VisionSpec) -> None:
    grid, side = vision.image_px // vision.patch, vision.image_px
    n_tokens, width = grid * grid, vision.width
    pixels = ops.builder.input("pixel_values", "float32", (ops.tiles, 3, side, side))
    features = build_tower(ops, vision, spec.names.vision, pixels)
    if spec.connector is not None:
        features = build_connector(ops, spec.connector, spec.names.connector, features, grid, width)
        n_tokens = tokens_per_tile(spec.connector, grid)
        width = spec.connector.linears[-1].out
    ops.builder.output("image_features", features, "float32", (ops.tiles, n_tokens, width))
