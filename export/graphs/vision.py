"""vision_encoder, first half: pixel_values (C, 3, S, S) → the tower's features (C, V_in, width)."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from export.archspec import VisionSpec
from export.graphs.ops.forms import Ops
from export.graphs.positions import bicubic_table, bucket_positions
from export.graphs.supported import check_supported

Float32 = NDArray[np.float32]

POSITIONS, CLS = "vision.positions", "vision.cls"
"""Names of what is computed from the position table, as the graph stores it."""


def build_tower(ops: Ops, spec: VisionSpec, names: dict[str, str], pixels: str) -> str:
    """Builds the tower's nodes and returns the value of its features, after the final norm and without CLS."""
    _check(spec)
    builder = ops.builder
    ops.storage.part = "vision"
    grid = spec.image_px // spec.patch
    with builder.scope("vision", "embeddings"):
        x = _embed(ops, spec, names, pixels, grid)
    for i in range(spec.run_layers):
        layer = {role: name.format(i=i) for role, name in names.items()}
        with builder.scope("vision", f"layers.{i}"):
            x = _block(ops, spec, layer, x)
        if i < spec.run_layers - 1:
            builder.boundaries.append(x)
    with builder.scope("vision", "norm"):
        if spec.cls:
            x = ops.drop_first_row(x, grid * grid)
        return ops.layer_norm(x, names["final_norm"], spec.width, spec.norm_eps)


def _check(spec: VisionSpec) -> None:
    check_supported(spec)
    if spec.run_layers != spec.layers:
        raise UnsupportedModelError(
            f"VisionSpec.run_layers = {spec.run_layers} of {spec.layers} is not implemented; implemented: all layers"
        )
    if spec.heads * spec.head_dim != spec.width:
        raise PackageError(
            f"the tower's hidden_size {spec.width} is not num_attention_heads {spec.heads} x {spec.head_dim}"
        )
    if spec.image_px < spec.patch:
        raise PackageError(
            f"the tile's side {spec.image_px} px is smaller than the patch size {spec.patch} (config.json)"
        )


def _embed(ops: Ops, spec: VisionSpec, names: dict[str, str], pixels: str, grid: int) -> str:
    builder = ops.builder
    x = ops.patch_embedding(pixels, names["patch"], spec.width, spec.patch, grid, spec.patch_bias)

    @functools.cache
    def table() -> Float32:
        return _positions(ops, spec, names)

    def patches() -> Float32:
        return _resampled(spec, table()[1:] if spec.cls else table(), grid)[None]

    def cls_row() -> Float32:
        cls = ops.storage.read(names["cls"].removeprefix("="), (1, 1, spec.width))
        return np.asarray(cls + table()[None, :1], np.float32)

    positions = ops.storage.derived(POSITIONS, (1, grid * grid, spec.width), patches)
    x = builder.node("Add", [x, builder.weight(POSITIONS, positions)], name="AddPositions")
    if not spec.cls:
        return x
    return ops.prepend_row(x, CLS, ops.storage.derived(CLS, (1, 1, spec.width), cls_row))


def _positions(ops: Ops, spec: VisionSpec, names: dict[str, str]) -> Float32:
    """The stored table (positions, width), CLS first when there is one."""
    n_positions = spec.pos_grid**2 + int(spec.cls)
    name = names["pos"]
    if name.startswith("="):
        return ops.storage.read(name[1:], (1, n_positions, spec.width)).reshape(n_positions, spec.width)
    return ops.storage.read(f"{name}.weight", (n_positions, spec.width))


def _resampled(spec: VisionSpec, table: Float32, grid: int) -> Float32:
    """The patches' positions (grid * grid, width), computed once here instead of in each call."""
    if spec.pos == "table":
        if grid != spec.pos_grid:
            raise UnsupportedModelError(
                f"tiles of {grid}x{grid} patches need the position table of {spec.pos_grid}x{spec.pos_grid} resampled, "
                "which VisionSpec.pos 'table' does not do"
            )
        return table
    stored = table.reshape(spec.pos_grid, spec.pos_grid, spec.width)
    if spec.pos == "bicubic":
        return (stored if grid == spec.pos_grid else bicubic_table(stored, grid)).reshape(-1, spec.width)
    index = bucket_positions(grid, spec.pos_grid)
    return np.ascontiguousarray(stored[index][:, index].reshape(-1, spec.width))


def _block(ops: Ops, spec: VisionSpec, layer: dict[str, str], x: str) -> str:
    builder, width = ops.builder, spec.width
    with builder.scope("norm1"):
        normed = ops.layer_norm(x, layer["norm1"], width, spec.norm_eps)
    with builder.scope("attn"):
        projected = []
        for role in ("q", "k", "v"):
            with builder.scope(f"{role}_proj"):
                projected.append(ops.linear(normed, layer[role], width, width, spec.bias_qkv))
        query, key, value = projected
        attended = ops.full_attention((query, key, value), spec.heads, spec.head_dim, spec.attn_scale)
        with builder.scope("o_proj"):
            attended = ops.linear(attended, layer["o"], width, width, spec.bias_out, _scale(ops, spec, layer, "scale1"))
        x = builder.node("Add", [x, attended], name="Add")
    with builder.scope("norm2"):
        normed = ops.layer_norm(x, layer["norm2"], width, spec.norm_eps)
    with builder.scope("mlp"):
        with builder.scope("fc1"):
            hidden = ops.linear(normed, layer["fc1"], width, spec.mlp, spec.mlp_bias)
        hidden = ops.activation(hidden, spec.act)
        with builder.scope("fc2"):
            hidden = ops.linear(
                hidden, layer["fc2"], spec.mlp, width, spec.mlp_bias, _scale(ops, spec, layer, "scale2")
            )
        return builder.node("Add", [x, hidden], name="Add")


def _scale(ops: Ops, spec: VisionSpec, layer: dict[str, str], role: str) -> Float32 | None:
    """Layer scale is folded into the linear before it: rows of the weight, and the bias."""
    return ops.storage.row_scale(layer[role].removeprefix("="), (spec.width,)) if spec.layer_scale else None
