"""The full-size SmolVLM-256M fixture: its numbers are the release's, and (slow) it exports and runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.benchmarks import smolvlm_256m as benchmark
from tests.smolvlm_256m import CONFIG, FIRST_ADDED_ID, VOCAB, added_tokens, tensor_shapes
from tests.weights import smollm2_135m


def test_shapes_are_those_of_the_release() -> None:
    shapes = tensor_shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 256_484_928
    assert shapes["model.connector.modality_projection.proj.weight"] == (576, 12288)


def test_added_tokens_have_the_ids_of_the_release() -> None:
    tokens = added_tokens()
    ids = {token: FIRST_ADDED_ID + offset for offset, token in enumerate(tokens)}
    assert len(tokens) == len(set(tokens)) == VOCAB - FIRST_ADDED_ID
    assert ids["<image>"] == CONFIG["image_token_id"] == 49190
    assert (ids["<global-img>"], ids["<fake_token_around_image>"], ids["<end_of_utterance>"]) == (49152, 49189, 49279)


@pytest.mark.slow
@pytest.mark.weights
def test_exports_within_memory_and_answers_about_a_picture(tmp_path: Path) -> None:
    result = benchmark.measure(smollm2_135m(), tmp_path, "w4g32")
    allowed = result.largest_tensor_bytes + benchmark.MAX_EXPORT_BYTES_ABOVE_LARGEST
    assert result.export_peak_bytes < allowed
    assert result.verify_export_peak_bytes < allowed
    assert result.reference_export_peak_bytes is None or result.reference_export_peak_bytes < allowed
    assert result.picture_tiles > 1 and result.picture_answer_tokens > 0
