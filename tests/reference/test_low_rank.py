"""Low-rank updates of a composed checkpoint: our graphs and the reference read the same weights, with and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgevlm.package import Package
from export import parity
from export.reference.load import load_reference
from tests import tiny
from tests.composed import SPEC
from tests.safetensors_bytes import file_of
from tests.verify_case import build_package, image_token_id, session_of

pytestmark = pytest.mark.reference

RANK = 2
UPDATED = (
    "vision_tower.encoder.layer.0.attention.attention.query.weight",
    "vision_tower.encoder.layer.1.mlp.fc2.weight",
    "language_model.model.layers.0.self_attn.v_proj.weight",
    "language_model.model.layers.1.mlp.down_proj.weight",
)
SHAPES = ((32, 32), (32, 128), (32, 64), (64, 96))


def compose(path: Path) -> Path:
    """Tower, projector and language model of `tiny`, with updates for two weights of each model."""
    tiny.make_dinov2(path / "tower")
    tiny.make_llama(path / "language")
    projector = tiny.Weights(1)
    width, hidden = tiny.dinov2_config()["hidden_size"], tiny.TEXT["hidden_size"]
    projector.linear("downsampler", width, 4 * width, True)
    projector.linear("mlp.0", 2 * hidden, width, True)
    projector.linear("mlp.2", hidden, 2 * hidden, True)
    (path / "projector.safetensors").write_bytes(file_of(projector.tensors))
    updates = tiny.Weights(2)
    for name, (n_out, n_in) in zip(UPDATED, SHAPES, strict=True):
        updates.matrix(f"{name}.down", RANK, n_in)
        updates.matrix(f"{name}.up", n_out, RANK)
    (path / "low_rank.safetensors").write_bytes(file_of(updates.tensors))
    write_spec(path, low_rank="low_rank.safetensors")
    return path


def write_spec(path: Path, low_rank: str | None) -> None:
    spec = {**SPEC, "language": "language", "tile_px": 40, "low_rank": low_rank}
    (path / "composed.json").write_text(json.dumps(spec))


def failed_stages(package: Package, expected: parity.Expected) -> set[str]:
    """Stages of the comparison with an entry that fails; the comparison has features, logits and tokens."""
    entries = parity.compare(session_of(package), expected, image_token_id(package))
    assert {entry.stage for entry in entries} == {"vision features", "logits", "greedy tokens"}
    return {entry.stage for entry in entries if entry.status != "pass"}


def test_updates_are_read_as_the_reference_adds_them(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = compose(tmp_path / "composed")
    expected = parity.expect(load_reference(path))
    updated = build_package(path, tmp_path / "updated")
    assert failed_stages(updated, expected) == set()
    # controls: either side without the updates is far away, both without them agree again
    write_spec(path, low_rank=None)
    plain = build_package(path, tmp_path / "plain")
    assert {"vision features", "logits"} <= failed_stages(plain, expected)
    without = parity.expect(load_reference(path))
    assert {"vision features", "logits"} <= failed_stages(updated, without)
    assert failed_stages(plain, without) == set()
    assert expected.text_logits is not None and without.text_logits is not None
    assert np.abs(expected.text_logits - without.text_logits).max() > 1000 * parity.ATOL
