"""Composed checkpoints: three sources under one set of names, and the image token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgevlm.errors import PackageError
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.checkpoints.composed import add_special_token
from tests import tiny
from tests.composed import write_composed
from tests.tiny_gguf import byte_level


def test_a_directory_or_its_json_opens(tmp_path: Path) -> None:
    path = write_composed(tmp_path / "composed")
    for source in (path, path / "composed.json"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.name == "tiny-composed"
        config = checkpoint.config
        assert config["model_type"] == "bluelm_v"
        assert config["vision_config"] == {"model_type": "dinov2", "hidden_size": 8}
        assert config["text_config"]["model_type"] == "llama"
        assert (config["tile_px"], config["max_tiles"], config["relaxed_alpha"]) == (28, 4, 0.2)
        assert (config["image_mean"], config["image_std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
        assert json.loads(checkpoint.files["config.json"]) == config


def test_tensors_of_all_parts_are_read_and_accounted_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_composed(tmp_path / "composed"))
    np.testing.assert_array_equal(checkpoint.read("projector.mlp.0.weight"), np.eye(8))
    np.testing.assert_array_equal(checkpoint.read("vision_tower.embeddings.cls_token"), np.ones((1, 1, 8)))
    alone = open_checkpoint(tmp_path / "composed" / "language.gguf")
    for name in alone.tensors():
        np.testing.assert_array_equal(checkpoint.read(f"language_model.{name}"), alone.read(name))
    checkpoint.account()


def test_the_image_token_gets_the_first_free_id(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_composed(tmp_path / "composed"))
    n_tokens = len(byte_level("smollm").tokens)
    assert checkpoint.config["image_token_id"] == n_tokens
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode())
    assert tokenizer.encode("a<image>b", add_special_tokens=False).ids[1] == n_tokens
    tokenizer.encode_special_tokens = True
    assert n_tokens not in tokenizer.encode("a<image>b", add_special_tokens=False).ids


def test_another_image_token_reaches_the_prompt(tmp_path: Path) -> None:
    path = write_composed(tmp_path / "composed", image_token="<picture>", vision="dinov2", language="llama")
    tiny.make_dinov2(path / "dinov2")
    tiny.make_llama(path / "llama")
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode())
    assert tokenizer.token_to_id("<image>") is None
    prompt = arch_spec(checkpoint.config, checkpoint.files).prompt
    assert prompt is not None and prompt.image_token == "<picture>"
    assert prompt.image_token_id == tokenizer.token_to_id("<picture>")


def test_an_image_token_that_exists_keeps_its_id() -> None:
    content = {"added_tokens": [{"id": 7, "content": "<image>", "special": True}], "model": {"vocab": {"a": 0}}}
    encoded = json.dumps(content).encode()
    assert add_special_token(encoded, "<image>", "tokenizer.json") == (encoded, 7)
    content["added_tokens"][0]["special"] = False  # type: ignore[index]
    with pytest.raises(PackageError, match="as an ordinary token"):
        add_special_token(json.dumps(content).encode(), "<image>", "tokenizer.json")


def test_the_language_model_may_be_a_snapshot(tmp_path: Path) -> None:
    path = write_composed(tmp_path / "composed")
    tiny.make_llama(path / "language")
    spec = json.loads((path / "composed.json").read_text())
    (path / "composed.json").write_text(json.dumps(spec | {"language": "language", "image_token": "<picture>"}))
    checkpoint = open_checkpoint(path)
    alone = open_checkpoint(path / "language")
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(checkpoint.read(f"language_model.{name}"), alone.read(name))
    assert checkpoint.files["generation_config.json"] == alone.files["generation_config.json"]


def test_blocks_of_patches(tmp_path: Path) -> None:
    assert open_checkpoint(write_composed(tmp_path / "default")).config["scale_factor"] == 2
    assert open_checkpoint(write_composed(tmp_path / "single", scale_factor=1)).config["scale_factor"] == 1
    with pytest.raises(PackageError, match="'scale_factor' has the value 0"):
        open_checkpoint(write_composed(tmp_path / "none", scale_factor=0))


def test_a_saved_directory_wins_over_composed_json(tmp_path: Path) -> None:
    path = tiny.make_bluelm_v(tmp_path / "saved")
    (path / "composed.json").write_text("{}")
    assert open_checkpoint(path).config["model_type"] == "bluelm_v"
