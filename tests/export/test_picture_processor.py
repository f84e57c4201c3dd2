"""Picture processors of checkpoints: what their files say, in transformers' meaning, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from edgevlm.spec import ProcessorSpec
from export.archs.picture_processor import PictureProcessor
from export.checkpoint import open_checkpoint
from tests import tiny
from tests.golden.make_processors import GOLDEN, record
from tests.processor_check import UNREAD, names_a_field, our_pixels, our_processor
from tests.processor_configs import BASES, OWN, SHARED, ProcessorCase, picture, sizes

HALF, ZERO, ONE = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("processors")
    return {name: tiny.MAKERS[name](folder / name) for name in ("smolvlm", "idefics3", "siglip")}


def compare(row: dict[str, Any], sources: dict[str, Path]) -> str:
    """'equal', 'refused', or 'more' where transformers fails and we do not. Fails for a silent difference."""
    case = ProcessorCase(row["architecture"], row["own"], row["shared"], tuple(row["drawn"]))
    try:
        spec = our_processor(case.write(sources[case.architecture]))
    except EdgeVLMError as error:
        assert names_a_field(error, case), (case, error)
        return "refused"
    if row["found"] is None:
        assert set(case.drawn) & UNREAD, case
        return "more"
    assert [record(*our_pixels(picture(*size), spec)) for size in sizes(row["seed"])] == row["found"], case
    return "equal"


def test_random_processors_equal_transformers_or_are_refused(sources: dict[str, Path]) -> None:
    """Live, on thousands: tests/reference/test_processors.py."""
    rows = json.loads(GOLDEN.read_text())
    found = [compare(row, sources) for row in rows]
    assert found.count("equal") > 0.4 * len(rows)
    assert found.count("refused") > 0.1 * len(rows)


@pytest.mark.parametrize("field", ["do_normalize", "do_rescale", "do_image_splitting"])
def test_a_flag_that_is_not_read_shows(field: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the recorded pixels see a processor that ignores one flag of its file."""
    rows = [row for row in json.loads(GOLDEN.read_text()) if row["found"] is not None]
    switched_off = [row for row in rows if case_of(row).said().get(field, True) in (False, None)]
    row = next(row for row in switched_off if compare(row, sources) == "equal")
    real = PictureProcessor.flag

    def ignoring(self: PictureProcessor, name: str, default: bool) -> bool:
        return default if name == field else real(self, name, default)

    monkeypatch.setattr(PictureProcessor, "flag", ignoring)
    with pytest.raises(AssertionError):
        compare(row, sources)


def case_of(row: dict[str, Any]) -> ProcessorCase:
    return ProcessorCase(row["architecture"], row["own"], row["shared"], tuple(row["drawn"]))


def read(
    tmp_path: Path, architecture: str = "smolvlm", *, shared: dict[str, Any] | None = None, **fields: Any
) -> ProcessorSpec:
    """The processor of a tiny checkpoint whose own file has these fields beside the usual ones."""
    source = tiny.MAKERS[architecture](tmp_path / "source")
    return our_processor(ProcessorCase(architecture, {**BASES[architecture], **fields}, shared, ()).write(source))


def numbers(spec: ProcessorSpec) -> tuple[Any, ...]:
    return spec.image_mean, spec.image_std, spec.rescale_factor


@pytest.mark.parametrize("off", [False, None])
def test_a_step_that_is_switched_off_changes_nothing(off: bool | None, tmp_path: Path) -> None:
    """Null is off: transformers takes a class default only for a field that is absent."""
    assert numbers(read(tmp_path / "a", do_normalize=off)) == (ZERO, ONE, 1 / 255)
    assert numbers(read(tmp_path / "b", do_rescale=off)) == (HALF, HALF, 1.0)
    assert numbers(read(tmp_path / "c", do_rescale=off, do_normalize=off, image_mean=None)) == (ZERO, ONE, 1.0)
    assert read(tmp_path / "d", do_resize=off, do_image_splitting=off).longest_edge_px is None


def test_one_number_stands_for_three_colours(tmp_path: Path) -> None:
    assert numbers(read(tmp_path, image_mean=0, image_std=0.25)) == (ZERO, (0.25,) * 3, 1 / 255)


def test_without_splitting_the_longest_edge_comes_first(tmp_path: Path) -> None:
    spec = read(tmp_path, do_image_splitting=False)
    assert (spec.scheme, spec.thumbnail, spec.max_tiles, spec.longest_edge_px) == ("square", "none", 1, 128)


@pytest.mark.parametrize("size", [32, [32, 32], {"height": 32, "width": 32}])
def test_a_size_of_one_tile_is_one_tile(size: Any, tmp_path: Path) -> None:
    spec = read(tmp_path, size=size)
    assert (spec.scheme, spec.longest_edge_px, spec.max_tiles) == ("square", None, 1)


def test_the_largest_grid_is_that_of_4096_pixels(tmp_path: Path) -> None:
    """Above that the longest edge shrinks, so that a budget counts no tiles that no picture has."""
    source = tiny.make_smolvlm(tmp_path / "source", vision={"image_size": 64})
    fields = {"max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 5000}}
    case = ProcessorCase("smolvlm", {**BASES["smolvlm"], **fields}, {"image_seq_len": 16}, ())
    spec = our_processor(case.write(source))
    assert (spec.max_rows, spec.max_tiles, spec.longest_edge_px) == (64, 4096, 5000)


def test_fields_inside_processor_config_come_first(tmp_path: Path) -> None:
    inside = {**BASES["smolvlm"], "image_mean": [0.1, 0.2, 0.3]}
    assert read(tmp_path / "a", shared={"image_processor": inside}).image_mean == (0.1, 0.2, 0.3)
    assert read(tmp_path / "b", shared={"image_processor": None}).image_mean == HALF
    with pytest.raises(UnsupportedModelError, match=r"processor_config.json: image_processor: max_image_size.* 364"):
        read(tmp_path / "c", shared={"image_processor": {}})  # all fields by default


def test_a_tower_takes_its_processor_from_either_file(tmp_path: Path) -> None:
    source = tiny.make_siglip(tmp_path / "source")
    inside = {**BASES["siglip"], "image_mean": 0.25}
    case = ProcessorCase("siglip", None, {"image_processor": inside}, ())
    assert our_processor(case.write(source)).image_mean == (0.25,) * 3
    for name in (OWN, SHARED):
        (source / name).unlink(missing_ok=True)
    from export.archs import arch_spec

    checkpoint = open_checkpoint(source)
    assert arch_spec(checkpoint.config, checkpoint.files).processor is None


@pytest.mark.parametrize(
    ("architecture", "fields", "error", "message"),
    [
        ("smolvlm", {"size": "9" * 5000}, PackageError, "size must be a size, found '9{79} ... .str."),
        ("smolvlm", {"do_normalize": "no"}, PackageError, "do_normalize must be true or false, found 'no'"),
        ("smolvlm", {"do_rescale": 0}, PackageError, "do_rescale must be true or false"),
        ("smolvlm", {"rescale_factor": 0}, UnsupportedModelError, "rescale_factor is 0; only 1e-06"),
        ("smolvlm", {"rescale_factor": None}, PackageError, "rescale_factor must be a number, found None"),
        ("smolvlm", {"image_std": [0.5, 0.0, 0.5]}, UnsupportedModelError, "image_std is 0.0; only 1e-06"),
        ("smolvlm", {"image_mean": None}, PackageError, "image_mean must be a number, found None"),
        ("smolvlm", {"image_mean": [0.5, True, 0.5]}, PackageError, "image_mean must be a number, found True"),
        ("smolvlm", {"image_mean": float("nan")}, UnsupportedModelError, "image_mean is nan"),
        ("smolvlm", {"resample": [1]}, UnsupportedModelError, r"resample \[1\]"),
        ("smolvlm", {"resample": "bicubic"}, UnsupportedModelError, r"resample 'bicubic'.*3 \(bicubic\)"),
        ("smolvlm", {"resample": True}, UnsupportedModelError, "resample True"),
        ("smolvlm", {"size": {"shortest_edge": 40}}, UnsupportedModelError, "'shortest_edge': 40.*longest_edge"),
        ("smolvlm", {"size": {"longest_edge": 64, "width": 64}}, UnsupportedModelError, "size.*'width': 64"),
        ("smolvlm", {"size": {"max_height": 64, "max_width": 64}}, UnsupportedModelError, "size.*max_height"),
        ("smolvlm", {"size": {"height": 64, "width": 32}}, UnsupportedModelError, "size is 64 x 32 pixels"),
        ("smolvlm", {"size": 64, "default_to_square": False}, UnsupportedModelError, "'shortest_edge': 64"),
        ("smolvlm", {"size": {"longest_edge": 10**9}}, UnsupportedModelError, "at most 65536"),
        ("smolvlm", {"size": {"longest_edge": 4096}}, UnsupportedModelError, "grid of 128 x 128 tiles"),
        ("smolvlm", {"size": None}, PackageError, "size must be a size, found None"),
        ("smolvlm", {"max_image_size": 32}, PackageError, "max_image_size must be an object"),
        ("smolvlm", {"do_resize": False}, UnsupportedModelError, "do_resize is false beside do_image_splitting"),
        ("smolvlm", {"do_center_crop": True}, PackageError, "do_center_crop is true without 'crop_size'"),
        ("smolvlm", {"image_processor_type": "CLIPImageProcessor"}, UnsupportedModelError, "'CLIPImageProcessor'"),
        ("smolvlm", {"image_processor_type": ["a"]}, UnsupportedModelError, r"\['a'\] .*image_processor_type"),
        ("smolvlm", {"image_processor_type": ""}, UnsupportedModelError, "processor '' "),
        ("smolvlm", {"image_processor_type": 3}, UnsupportedModelError, "processor 3 .*image_processor_type"),
        ("siglip", {"do_resize": False}, UnsupportedModelError, "do_resize False"),
        ("siglip", {"size": {"height": 64, "width": 64}}, UnsupportedModelError, "size is .*64.*32 x 32 pixels"),
        ("siglip", {"size": 32}, UnsupportedModelError, "size is 32"),
        ("siglip", {"do_center_crop": True, "crop_size": 20}, UnsupportedModelError, "crop_size is 20"),
        ("siglip", {"do_pad": True, "pad_size": {"height": 40, "width": 40}}, UnsupportedModelError, "pad_size"),
        ("siglip", {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
         UnsupportedModelError, "'CLIPImageProcessor'.*feature_extractor_type"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_its_field(
    architecture: str, fields: dict[str, Any], error: type[EdgeVLMError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, architecture, **fields)


def test_an_absent_size_is_the_class_s_own(tmp_path: Path) -> None:
    source = tiny.make_siglip(tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match=r"size is the default \(224, 224\).*32 x 32"):
        our_processor(ProcessorCase("siglip", {}, None, ()).write(source))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"image_mean": [0.5, 2, 0.5]}, UnsupportedModelError, "image_mean is 2; only 0 to 1"),
        ({"image_mean": [True, 0.5, 0.5]}, PackageError, "image_mean must be a number"),
        ({"image_std": 0}, UnsupportedModelError, "image_std is 0"),
        ({"relaxed_alpha": 0.12345678}, UnsupportedModelError, "at most 6 decimals"),
        ({"relaxed_alpha": 2}, UnsupportedModelError, "relaxed_alpha is 2; only 0 to 1"),
    ],
)
def test_fields_of_bluelm_v(fields: dict[str, Any], error: type[EdgeVLMError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        our_processor(tiny.make_bluelm_v(tmp_path, **fields))


def test_a_picture_processor_beside_a_bluelm_v_is_not_ignored(tmp_path: Path) -> None:
    source = tiny.make_bluelm_v(tmp_path)
    assert our_processor(source).image_mean == (0.485, 0.456, 0.406)
    (source / OWN).write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(UnsupportedModelError, match="nothing would read"):
        our_processor(source)


def test_a_picture_of_values_that_are_not_rescaled(tmp_path: Path) -> None:
    """Old files that subtract the mean from bytes: (x - 123.675) / 58.395."""
    spec = read(tmp_path, do_rescale=False, image_mean=[123.675, 116.28, 103.53], image_std=[58.395, 57.12, 57.375])
    values, _ = our_pixels(np.full((32, 32, 3), 200, np.uint8), spec)
    expected = (np.float32(200) - np.float32(123.675)) / np.float32(58.395)
    assert (values[:, 0] == expected).all() and abs(float(expected) - 1.307) < 1e-3
