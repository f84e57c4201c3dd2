"""Whether the checkpoint stores as many layers as its config says, before the first weight is read."""

from __future__ import annotations

import re

from edgevlm.errors import UnsupportedModelError
from export.archspec import ArchSpec
from export.graphs.tensors import Tensors


def check_layers(spec: ArchSpec, tensors: Tensors) -> None:
    """Raises UnsupportedModelError when language model or tower have another number of layers than are stored."""
    parts: list[tuple[str, int, str]] = []
    if spec.language is not None:
        parts.append(("language model", len(spec.language.layer_kinds), spec.names.language["input_norm"]))
    if spec.vision is not None:
        parts.append(("vision tower", spec.vision.layers, spec.names.vision["norm1"]))
    for part, n_layers, name in parts:
        stored = _stored_layers(f"{name}.weight", tensors)
        if stored != n_layers:
            raise UnsupportedModelError(
                f"num_hidden_layers of the {part} is {n_layers} (config.json), but {tensors.checkpoint.name} stores "
                f"{stored} layers; the config and the weights are from different checkpoints"
            )


def _stored_layers(name: str, tensors: Tensors) -> int:
    """One more than the largest layer that has the tensor `name`, in the map's spelling or with another root."""
    spellings = [name, *(there + name[len(here) :] for here, there in tensors.names.roots if name.startswith(here))]
    patterns = [re.compile(re.escape(spelling).replace(re.escape("{i}"), r"(\d{1,6})")) for spelling in spellings]
    found = (pattern.fullmatch(stored) for stored in tensors.checkpoint.tensors() for pattern in patterns)
    return max((int(match[1]) for match in found if match), default=-1) + 1
