"""What an exporter writes is what a reader takes: one table of values, asked by both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm import manifest_values
from edgevlm.errors import EdgeVLMError, PackageError
from edgevlm.generate import generation_options
from edgevlm.manifest_values import wrong_generation, wrong_processor, wrong_values
from edgevlm.package import open_package
from edgevlm.spec import GenerationSpec, ProcessorSpec
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.edgevlm.tiny_package import write_package

NUMBERS = (-1.0, 0.0, 1e-320, 1e-9, 1e-3, 0.5, 1.0, 1.5, 1e6, 1e30, 1e308)


def test_sound_packages_have_nothing_wrong(tmp_path: Path) -> None:
    for vision in (True, False):
        manifest = open_package(write_package(tmp_path / str(vision), vision=vision)).manifest
        assert list(wrong_values(manifest)) == []
        assert len(list(wrong_values(replace(manifest, decoder=replace(manifest.decoder, head_dim=0))))) == 1


def test_an_image_token_may_lie_behind_the_embedding(tmp_path: Path) -> None:
    """As the demo's and SmolVLM-like ones do: the features come from the tower."""
    manifest = open_package(write_package(tmp_path / "package")).manifest
    assert manifest.prompt is not None
    vocab = manifest.decoder.vocab_size
    assert not list(wrong_values(replace(manifest, prompt=replace(manifest.prompt, image_token_id=vocab))))
    assert list(wrong_values(replace(manifest, prompt=replace(manifest.prompt, image_token_id=-1))))


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", NUMBERS)
def test_a_default_that_a_manifest_may_hold_is_one_that_an_answer_is_made_with(name: str, value: float) -> None:
    """`generation_options` is what every answer begins with; a manifest may be stricter than it."""
    defaults = GenerationSpec((), do_sample=True, **{name: value})
    if not list(wrong_generation(defaults, 10)):
        generation_options(defaults)
    if 1e-3 <= value <= 1:
        assert not list(wrong_generation(defaults, 10))


def test_pixels_stay_finite_at_the_ends_of_the_ranges() -> None:
    import numpy as np

    from edgevlm.image import normalize

    base = ProcessorSpec("square", 8, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    tile = np.full((1, 8, 8, 3), 255, np.uint8)
    ends = (manifest_values.SMALLEST, manifest_values.LARGEST)
    for factor in ends:
        for std in ends:
            for mean in (-ends[1], ends[1]):
                spec = replace(base, rescale_factor=factor, image_std=(std,) * 3, image_mean=(mean,) * 3)
                assert list(wrong_processor(spec)) == []
                with np.errstate(all="raise"):
                    assert np.isfinite(normalize(tile, spec)).all()
    assert list(wrong_processor(replace(base, image_std=(1.0, 1.0, manifest_values.SMALLEST / 10))))


@pytest.mark.parametrize(
    ("file", "fields", "error", "reason"),
    [
        ("config.json", {"max_tiles": 10**9}, EdgeVLMError, "max_tiles"),
        ("config.json", {"relaxed_alpha": 1.5}, EdgeVLMError, "relaxed_alpha"),
        ("config.json", {"image_token_id": 10**6, "image_token": "<none>"}, PackageError, "has the id 1000000"),
        ("generation_config.json", {"min_p": 2}, PackageError, "min_p"),
    ],
)
def test_export_refuses_what_a_reader_would(
    tmp_path: Path, file: str, fields: dict[str, Any], error: type[EdgeVLMError], reason: str
) -> None:
    path = tiny.make_bluelm_v(tmp_path / "checkpoint")
    data = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**data, **fields}))
    with pytest.raises(error, match=reason):
        export_package(path, tmp_path / "out", ExportOptions(reference=False))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
