"""vision_encoder, second half: the tower's features (C, V_in, width) → image features (C, V, D)."""

from __future__ import annotations

from edgevlm.errors import UnsupportedModelError
from export.archspec import ConnectorSpec, LinearSpec
from export.graphs.ops.forms import Ops
from export.graphs.supported import check_supported


def tokens_per_tile(spec: ConnectorSpec, grid: int) -> int:
    """Image tokens of one tile of grid x grid patches."""
    return (_padded(spec, grid) // spec.factor) ** 2 if spec.reduce == "s2d" else grid * grid


def build_connector(ops: Ops, spec: ConnectorSpec, names: dict[str, str], x: str, grid: int, width: int) -> str:
    """Builds the connector's nodes on features of grid x grid patches and returns the value of the image features."""
    check_supported(spec)
    builder = ops.builder
    ops.storage.part = "connector"
    with builder.scope("connector"):
        if spec.reduce == "s2d":
            with builder.scope("space_to_depth"):
                x = ops.space_to_depth(x, grid, width, spec.factor, _padded(spec, grid))
            width *= spec.factor**2
        for i, linear in enumerate(spec.linears):
            stem = names[f"linear.{i}"]
            n_out = _out_features(ops, linear, stem)
            with builder.scope(f"linear.{i}"):
                x = ops.linear(x, stem, width, n_out, linear.bias)
            width = n_out
            if i in spec.act_after:
                x = ops.activation(x, spec.act)
    return x


def _padded(spec: ConnectorSpec, grid: int) -> int:
    if grid % spec.factor == 0:
        return grid
    if spec.pad == "none":
        raise UnsupportedModelError(
            f"ConnectorSpec.factor = {spec.factor} does not divide the tower's {grid}x{grid} patches, and "
            "ConnectorSpec.pad is 'none'"
        )
    return grid + (-grid) % spec.factor


def _out_features(ops: Ops, linear: LinearSpec, stem: str) -> int:
    return linear.out or ops.storage.shape(f"{stem}.weight")[0]
