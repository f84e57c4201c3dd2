"""The runtime on what the exporter writes: tiny checkpoints through the real path, float and quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS
from edgevlm.model import Model, load
from export.pipeline import ExportOptions, export_package
from tests import tiny as checkpoints
from tests.edgevlm.recompute import Recompute

FLOAT = ExportOptions(scheme="fp32", vision_scheme="fp32", verify=False)
INT4 = ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False)
WITH_TOWER: list[Callable[[Path], Path]] = [checkpoints.make_bluelm_v, checkpoints.make_smolvlm]


def picture(seed: int, height_px: int, width_px: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def exported(make: Callable[[Path], Path], tmp_path: Path, options: ExportOptions) -> Path:
    return export_package(make(tmp_path / "checkpoint"), tmp_path / "package", options)


def messages(n_images: int, text: str) -> list[Any]:
    parts: list[Any] = [{"type": "image"}] * n_images
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}]


def check_against_recomputation(model: Model, path: Path, images: list[Any]) -> None:
    oracle = Recompute(path)
    question = messages(len(images), "What is on it?")
    expected = oracle.greedy(oracle.segments(model, question, images), 10)
    eos = set(model.package.manifest.generation.eos_token_ids)
    ends = [i for i, token in enumerate(expected) if token in eos]
    response = model.generate(question, images, max_new_tokens=10)
    assert list(response.token_ids) == (expected[: ends[0]] if ends else expected)


@pytest.mark.parametrize("make", [checkpoints.make_llama, checkpoints.make_qwen2])
def test_text_equals_full_recomputation(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = exported(make, tmp_path, FLOAT)
    with load(path, threads=1) as model:
        check_against_recomputation(model, path, [])


@pytest.mark.parametrize("make", WITH_TOWER)
def test_pictures_equal_full_recomputation(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = exported(make, tmp_path, FLOAT)
    with load(path, threads=1) as model:
        check_against_recomputation(model, path, [picture(0, 40, 60)])


@pytest.mark.parametrize("make", WITH_TOWER)
def test_a_quantised_model_talks_about_pictures(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = exported(make, tmp_path, INT4)
    with load(path, threads=1) as model:
        model.package.check_hashes()
        talk = model.chat()
        talk.attach(picture(0, 40, 60))
        first = [chunk.response for chunk in talk.send("What?", max_new_tokens=5)][-1]
        talk.attach(picture(1, 32, 32))
        second = [chunk.response for chunk in talk.send("And this?", max_new_tokens=5)][-1]
        assert first is not None and second is not None
        n_whole = first.n_prompt_tokens - first.n_prompt_tokens % PREFILL_CHUNK_TOKENS
        assert second.n_reused_tokens == n_whole and first.n_prompt_tokens > first.n_image_tokens > 0
        pictures = [p.image for turn in talk.turns for p in turn.pictures]
        with load(path, threads=1) as fresh:
            assert fresh.generate(talk.messages[:-1], pictures, max_new_tokens=5).token_ids == second.token_ids
