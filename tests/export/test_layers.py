"""A config with another number of layers than are stored is refused before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevlm.errors import UnsupportedModelError
from export.archs import arch_spec
from export.checkpoint import Checkpoint, open_checkpoint
from export.graphs.layers import check_layers
from export.graphs.tensors import Tensors
from export.pipeline import ExportOptions, export_package
from tests import tiny


def opened(path: Path, part: str | None = None, layers: int | None = None) -> Checkpoint:
    if layers is not None:
        config = json.loads((path / "config.json").read_text())
        (config[part] if part else config)["num_hidden_layers"] = layers
        (path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(path)


def check(checkpoint: Checkpoint) -> None:
    spec = arch_spec(checkpoint.config, checkpoint.files)
    check_layers(spec, Tensors(checkpoint, spec.names))


@pytest.mark.parametrize("name", sorted(tiny.MAKERS))
def test_sound_checkpoints_pass(tmp_path: Path, name: str) -> None:
    check(opened(tiny.MAKERS[name](tmp_path / name)))


@pytest.mark.parametrize("layers", [1, 3, 1000])
@pytest.mark.parametrize(
    ("name", "part", "what"),
    [
        ("llama", None, "language model"),
        ("qwen2", None, "language model"),
        ("smolvlm", "text_config", "language model"),
        ("smolvlm", "vision_config", "vision tower"),
        ("bluelm_v", "vision_config", "vision tower"),
        ("dinov2", None, "vision tower"),
        ("siglip", None, "vision tower"),
    ],
)
def test_another_number_is_refused(tmp_path: Path, name: str, part: str | None, what: str, layers: int) -> None:
    checkpoint = opened(tiny.MAKERS[name](tmp_path / name), part, layers)
    with pytest.raises(UnsupportedModelError, match=f"of the {what} is {layers} .* stores 2 layers"):
        check(checkpoint)
    assert not checkpoint.used


def test_other_prefixes_count_too(tmp_path: Path) -> None:
    """A bare model's tensors have no 'model.' in front."""
    from safetensors.numpy import load_file, save_file

    path = tiny.make_llama(tmp_path / "bare")
    tensors = load_file(path / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, path / "model.safetensors")
    check(opened(path))
    with pytest.raises(UnsupportedModelError, match="stores 2 layers"):
        check(opened(path, None, 4))


def test_export_asks_before_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.make_llama(tmp_path / "llama")
    opened(path, None, 3)
    monkeypatch.setattr(Checkpoint, "read_rows", lambda *args: pytest.fail("a weight was read"))
    with pytest.raises(UnsupportedModelError, match="stores 2 layers"):
        export_package(path, tmp_path / "out", ExportOptions(reference=False))
