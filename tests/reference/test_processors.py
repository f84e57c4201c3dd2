"""Random picture processors against transformers' own, loaded from the same directory: equal, or refused by name."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError, ParityError
from edgevlm.package import Package, open_package
from edgevlm.tokenizer import Tokenizer
from export import parity, probes, verify
from export.archs.picture_processor import PictureProcessor
from export.pipeline import ExportOptions, export_package
from export.reference.load import load_reference
from tests import tiny
from tests.golden.make_processors import FAILURES, TransformersProcessor
from tests.processor_check import UNREAD, names_a_field, our_pixels, our_processor
from tests.processor_configs import BASES, ProcessorCase, draw, picture, sizes
from tests.verify_case import build_package, with_processor

pytestmark = pytest.mark.reference

N_QUICK, N_ALL = 300, 3000
CHUNK = 150
SIZES = [(224, 224), (96, 300), (37, 53)]


@dataclass(frozen=True)
class Snapshots:
    """A checkpoint of each architecture, and the package that prompts are built with."""

    sources: dict[str, Path]
    packages: dict[str, Package]
    tokenizers: dict[str, Any]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("processors")
    sources = {name: tiny.MAKERS[name](folder / name) for name in ("smolvlm", "idefics3", "siglip")}
    whole = ("smolvlm", "idefics3")
    packages = {name: build_package(sources[name], folder / f"{name}-package") for name in whole}
    tokenizers = {name: transformers.AutoTokenizer.from_pretrained(sources[name]) for name in whole}
    return Snapshots(sources, packages, tokenizers)


def their_prompt(case: ProcessorCase, processor: Any, tokenizer: Any, grid: tuple[int, int]) -> list[int]:
    """Ids of a user's turn with one picture, by the processor class of the model."""
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    rows, cols = grid
    if case.architecture == "idefics3":
        whole = Idefics3Processor(processor, tokenizer, image_seq_len=4)
        run = whole.replace_image_token({"rows": [[rows]], "cols": [[cols]]}, 0)
    else:  # its processor class cannot be made without num2words and torchvision
        run = get_image_prompt_string(rows, cols, 4, "<fake_token_around_image>", "<image>", "<global-img>")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": probes.QUESTION}]}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered.replace("<image>", run), add_special_tokens=False).input_ids)


def outcome(case: ProcessorCase, seed: int, snapshots: Snapshots) -> str:
    """'equal', 'refused', or 'more' where transformers fails and we do not. Fails for a silent difference."""
    source = case.write(snapshots.sources[case.architecture])
    try:
        spec = our_processor(source)
    except EdgeVLMError as error:
        assert names_a_field(error, case), (case, error)
        return "refused"
    try:
        theirs = TransformersProcessor(case, source)
        expected = [theirs.pixels(picture(*size)) for size in sizes(seed)]
    except FAILURES as error:
        assert set(case.drawn) & UNREAD, (case, error)
        return "more"
    for size, (values, grid) in zip(sizes(seed), expected, strict=True):
        found, found_grid = our_pixels(picture(*size), spec)
        assert found_grid == grid, (case, size)
        np.testing.assert_array_equal(found, values, err_msg=f"{case}, {size}")
        if case.architecture in snapshots.packages:
            package = snapshots.packages[case.architecture]
            package = Package(package.path, replace(package.manifest, processor=spec))
            ids = parity.our_prompt_ids(package, Tokenizer.open(package), probes.QUESTION, [size])
            tokenizer = snapshots.tokenizers[case.architecture]
            assert ids == their_prompt(case, theirs.processor, tokenizer, grid), (case, size)
    return "equal"


def check(seeds: range, snapshots: Snapshots) -> Counter[str]:
    found = Counter(outcome(draw(seed), seed, snapshots) for seed in seeds)
    assert found["equal"] > 0.4 * len(seeds), found
    assert found["refused"] > 0.1 * len(seeds), found
    assert found["more"] < 0.1 * len(seeds), found
    return found


def test_processors_are_equal_or_refused(snapshots: Snapshots) -> None:
    check(range(N_QUICK), snapshots)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(N_QUICK, N_ALL, CHUNK))
def test_more_processors_are_equal_or_refused(start: int, snapshots: Snapshots) -> None:
    check(range(start, start + CHUNK), snapshots)


@pytest.mark.parametrize("field", ["do_normalize", "do_rescale", "do_image_splitting"])
def test_a_flag_that_is_not_read_shows(field: str, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the comparison sees a processor that ignores one flag of its file."""
    seed = next(seed for seed in range(1000) if draw(seed).said().get(field) is False and draw(seed).drawn == (field,))
    assert outcome(draw(seed), seed, snapshots) == "equal"
    real = PictureProcessor.flag

    def ignoring(self: PictureProcessor, name: str, default: bool) -> bool:
        return default if name == field else real(self, name, default)

    monkeypatch.setattr(PictureProcessor, "flag", ignoring)
    with pytest.raises(AssertionError):
        outcome(draw(seed), seed, snapshots)


def test_verify_fails_where_our_processor_ignores_do_normalize(tmp_path: Path) -> None:
    """The whole `verify --reference`: transformers takes its flags from the checkpoint's file, we from the package."""
    pytest.importorskip("torch")
    case = ProcessorCase("smolvlm", {**BASES["smolvlm"], "do_normalize": False}, {"image_seq_len": 4}, ())
    source = case.write(tiny.make_smolvlm(tmp_path / "source"))
    package = open_package(export_package(source, tmp_path / "package", ExportOptions(scheme="w8", verify=False)))
    entries = verify.verify_package(package, source, reference=True, n_positions=64)
    assert {entry.status for entry in entries} == {"pass"}, entries

    ignoring = with_processor(package, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    entries = verify.verify_package(ignoring, source, reference=True, n_positions=64)
    failed = {entry.stage: entry.value for entry in entries if entry.status == "fail"}
    assert failed.keys() == {"pixel values"} and failed["pixel values"] == 1.0
    with pytest.raises(ParityError, match="pixel values against transformers"):
        verify.raise_on_failure(entries)


@pytest.mark.parametrize(
    ("fields", "wrong", "stage"),
    [
        ({"do_rescale": False}, {"rescale_factor": 1 / 255}, "pixel values"),
        ({"do_image_splitting": False}, {"longest_edge_px": None}, "pixels"),
        ({"image_mean": 0.25}, {"image_mean": (0.5, 0.5, 0.5)}, "pixel values"),
        ({"resample": 3}, {"resample": "lanczos"}, "pixels"),
        ({"size": {"longest_edge": 64}}, {"longest_edge_px": 96, "max_tiles": 9}, "tile grid"),
    ],
)
def test_the_reference_sees_other_flags(
    fields: dict[str, Any], wrong: dict[str, Any], stage: str, snapshots: Snapshots
) -> None:
    """Right, the pictures pass; with one field of the manifest as if the file had not been read, they fail."""
    case = ProcessorCase("smolvlm", {**BASES["smolvlm"], **fields}, {"image_seq_len": 4}, ())
    source = case.write(snapshots.sources["smolvlm"])
    reference, package = load_reference(source), snapshots.packages["smolvlm"]
    right = Package(package.path, replace(package.manifest, processor=our_processor(source)))
    found = {entry.stage: entry.status for entry in parity.check_pictures(right, reference, SIZES)}
    assert set(found.values()) == {"pass"}
    found = {
        entry.stage: entry.status for entry in parity.check_pictures(with_processor(right, **wrong), reference, SIZES)
    }
    assert found[stage] == "fail"


def test_a_tower_is_compared_with_its_own_processor(snapshots: Snapshots) -> None:
    """It was compared with one that the reference made up from the tower's size."""
    fields = {**BASES["siglip"], "do_normalize": False}
    source = ProcessorCase("siglip", fields, None, ()).write(snapshots.sources["siglip"])
    image = picture(50, 70)
    expected = load_reference(source).picture(image)
    values, grid = our_pixels(image, our_processor(source))
    np.testing.assert_array_equal(values, expected.pixel_values)
    assert grid == expected.grid and expected.pixel_values.min() >= 0 and expected.pixel_values.max() <= 1


@pytest.mark.parametrize("max_tiles", [1, 3, 4, 8, 12, 25])
def test_a_tile_budget_of_bluelm_v_means_the_same_on_both_sides(max_tiles: int, tmp_path: Path) -> None:
    """A budget that is no square, or above the 4 x 4 grids, was another set of grids in the reference."""
    pytest.importorskip("torch")
    source = tiny.make_bluelm_v(tmp_path, max_tiles=max_tiles)
    spec = our_processor(source)
    reference = load_reference(source)
    for size in [(40, 300), (300, 40), (90, 170), (200, 210), (1, 900), (37, 53)]:
        values, (rows, cols) = our_pixels(picture(*size), spec)
        expected = reference.picture(picture(*size))
        assert (max(rows, 1), max(cols, 1)) == expected.grid
        np.testing.assert_array_equal(values, expected.pixel_values)


def test_a_bluelm_v_without_picture_fields_has_the_same_defaults(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tiny.make_bluelm_v(tmp_path)
    config = json.loads((source / "config.json").read_text())
    for name in ("image_mean", "image_std", "max_tiles", "relaxed_alpha", "tile_px"):
        del config[name]
    (source / "config.json").write_text(json.dumps(config))
    values, _ = our_pixels(picture(100, 120), our_processor(source))
    np.testing.assert_array_equal(values, load_reference(source).picture(picture(100, 120)).pixel_values)
