"""Low-rank updates of a composed checkpoint: W + up @ down where named, everything else untouched, misfits refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from export.checkpoint import open_checkpoint
from tests.composed import write_composed
from tests.safetensors_bytes import file_of

NAME = "language_model.model.layers.0.mlp.down_proj.weight"
Tensors = dict[str, NDArray[np.float32]]


def composed_with_update(path: Path, edit: Callable[[Tensors], object] = lambda tensors: None) -> tuple[Path, Tensors]:
    """A composed checkpoint with an update of rank 2 for one weight; `edit` changes the update's tensors."""
    write_composed(path)
    n_out, n_in = open_checkpoint(path).tensors()[NAME].shape
    rng = np.random.default_rng(0)
    tensors = {
        f"{NAME}.up": rng.standard_normal((n_out, 2), np.float32),
        f"{NAME}.down": rng.standard_normal((2, n_in), np.float32),
    }
    edit(tensors)
    (path / "low_rank.safetensors").write_bytes(file_of(tensors))
    spec = json.loads((path / "composed.json").read_text())
    (path / "composed.json").write_text(json.dumps(spec | {"low_rank": "low_rank.safetensors"}))
    return path, tensors


def test_the_update_is_added_to_its_weight_only(tmp_path: Path) -> None:
    path, tensors = composed_with_update(tmp_path / "composed")
    updated, base = open_checkpoint(path), open_checkpoint(path / "language.gguf")
    for name in base.tensors():
        expected = base.read(name)
        if f"language_model.{name}" == NAME:
            product = tensors[f"{NAME}.up"].astype(np.float64) @ tensors[f"{NAME}.down"].astype(np.float64)
            assert np.abs(product).max() > 0.1
            expected = expected + product
        np.testing.assert_allclose(updated.read(f"language_model.{name}"), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(updated.read("projector.mlp.0.weight"), np.eye(8))


def test_rows_are_updated_like_the_whole(tmp_path: Path) -> None:
    path, _ = composed_with_update(tmp_path / "composed")
    checkpoint = open_checkpoint(path)
    whole = checkpoint.read(NAME)
    np.testing.assert_allclose(checkpoint.read_rows(NAME, 3, 7), whole[3:7], rtol=0, atol=1e-6)


def _widen(tensors: Tensors) -> None:
    tensors[f"{NAME}.up"] = np.concatenate([tensors[f"{NAME}.up"]] * 2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(f"{NAME}.up"), "lacks its .up tensor"),
        (lambda tensors: tensors.pop(f"{NAME}.down"), "lacks its .down tensor"),
        (_widen, "the update of .* has the shapes"),
        (lambda tensors: tensors.update({f"{NAME}.alpha": np.ones(1, np.float32)}), "is no part of an update"),
        (
            lambda tensors: tensors.update({f"x.{part}": np.ones((2, 2), np.float32) for part in ("up", "down")}),
            "updates 'x', which the checkpoint does not have",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_refused(
    tmp_path: Path, edit: Callable[[Tensors], object], message: str
) -> None:
    path, _ = composed_with_update(tmp_path / "composed", edit)
    with pytest.raises(PackageError, match=message):
        open_checkpoint(path)
