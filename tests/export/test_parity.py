"""The checks themselves: each passes on a right package and fails on every fault that it is there for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.session import Float32, Int64
from edgevlm.cancel import CancelToken
from edgevlm.errors import ParityError
from edgevlm.package import Package
from edgevlm.spec import ParityEntry
from export import parity, probes
from export.reference.model import ReferencePicture
from export.verify import raise_on_failure
from tests import tiny
from tests.verify_case import (
    CONTEXT,
    OwnReference,
    build_package,
    copy_with_config,
    expected_of,
    image_token_id,
    session_of,
    with_processor,
    with_prompt,
)

SIZES = ((96, 200), (40, 40), (300, 64))
WHOLE = ("smolvlm", "bluelm_v")


@pytest.fixture(scope="module", params=WHOLE)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    directory = tmp_path_factory.mktemp(request.param)
    return build_package(tiny.MAKERS[request.param](directory / "source"), directory / "package")


@pytest.fixture(scope="module")
def expected(package: Package) -> parity.Expected:
    return expected_of(package)


def failed(entries: list[ParityEntry]) -> set[str]:
    return {entry.stage for entry in entries if entry.status == "fail"}


def test_a_right_package_passes(package: Package, expected: parity.Expected) -> None:
    entries = [
        *parity.check_pictures(package, OwnReference(package), SIZES),
        *parity.check_prompt_ids(package, OwnReference(package)),
        *parity.compare(session_of(package), expected, image_token_id(package)),
    ]
    assert failed(entries) == set()
    assert {entry.stage for entry in entries} == set(parity.STAGES)
    raise_on_failure(entries)


class SwappedChannels(OwnReference):
    def picture(self, image: NDArray[np.uint8]) -> ReferencePicture:
        return super().picture(np.ascontiguousarray(image[..., ::-1]))


def test_swapped_rgb_fails(package: Package) -> None:
    entries = parity.check_pictures(package, SwappedChannels(package), SIZES)
    assert {"pixels", "pixel values"} <= failed(entries)


@pytest.mark.parametrize(
    ("fields", "stages"),
    [
        ({"thumbnail": "none"}, {"pixels", "tile grid"}),
        ({"resample": "bilinear"}, {"pixels"}),
        ({"image_mean": (0.4, 0.5, 0.5)}, {"pixel values"}),
        ({"image_std": (0.5, 0.26, 0.5)}, {"pixel values"}),
        ({"rescale_factor": 1 / 256}, {"pixel values"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_processor_fails(package: Package, fields: dict[str, object], stages: set[str]) -> None:
    entries = parity.check_pictures(with_processor(package, **fields), OwnReference(package), SIZES)
    assert stages <= failed(entries)


def test_a_dropped_thumbnail_fails_in_the_prompt_too(package: Package) -> None:
    wrong = with_processor(package, thumbnail="none")
    assert failed(parity.check_prompt_ids(wrong, OwnReference(package))) == {"prompt ids"}


@pytest.mark.parametrize("fields", [{"tokens_per_tile": 3}, {"image_suffix": "\n"}, {"row_suffix": " "}], ids=str)
def test_a_wrong_prompt_fails(package: Package, fields: dict[str, object]) -> None:
    assert failed(parity.check_prompt_ids(with_prompt(package, **fields), OwnReference(package))) == {"prompt ids"}


class OtherTokens(OwnReference):
    """Knows one added token less."""

    def text_ids(self, text: str) -> list[int]:
        unknown = self.added_tokens()[-1]
        return self.tokenizer.encode(text, allow_special=unknown not in text)


def test_an_added_token_that_only_one_side_knows_fails(package: Package) -> None:
    assert failed(parity.check_prompt_ids(package, OtherTokens(package))) == {"prompt ids"}


class WithoutThoughts(OwnReference):
    """Renders what an assistant thought in another way."""

    def chat_ids(self, turns: Sequence[tuple[str, str]]) -> list[int] | None:
        return super().chat_ids([(role, text.replace("<think>", "")) for role, text in turns])


def test_another_history_fails(package: Package) -> None:
    assert failed(parity.check_prompt_ids(package, WithoutThoughts(package))) == {"prompt ids"}


class ShiftedPositions(OnnxSession):
    """Gives every token behind the first chunk the position of the one after it."""

    def score(self, ids: Int64, parents: Int64, positions: Int64, cancel: CancelToken | None = None) -> Float32:
        return super().score(ids, parents, np.where(positions >= 20, positions + 1, positions), cancel)


def test_shifted_positions_fail(package: Package, expected: parity.Expected) -> None:
    session = ShiftedPositions(package, context=CONTEXT, threads=1)
    assert "logits" in failed(parity.compare(session, expected, image_token_id(package)))


class SwappedTiles(OnnxSession):
    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        return super().encode(tiles, cancel)[::-1].copy()


def test_tiles_in_another_order_fail(package: Package, expected: parity.Expected) -> None:
    session = SwappedTiles(package, context=CONTEXT, threads=1)
    assert {"vision features", "logits"} <= failed(parity.compare(session, expected, image_token_id(package)))


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps"])
def test_a_wrong_text_config_fails(package: Package, expected: parity.Expected, field: str, tmp_path: Path) -> None:
    source = tiny.MAKERS[package.manifest.arch](tmp_path / "source")
    wrong = copy_with_config(
        source, tmp_path / "wrong", text={field: {"rope_theta": 12345.0, "rms_norm_eps": 1e-2}[field]}
    )
    session = session_of(build_package(wrong, tmp_path / "package"))
    entries = parity.compare(session, expected, image_token_id(package))
    assert failed(entries) >= {"logits"} and "vision features" not in failed(entries)


def test_one_wrong_greedy_token_fails(package: Package, expected: parity.Expected) -> None:
    greedy = (*expected.text_greedy[:-1], expected.text_greedy[-1] ^ 1)
    entries = parity.compare(session_of(package), replace(expected, text_greedy=greedy), image_token_id(package))
    assert failed(entries) == {"greedy tokens"}


def test_not_a_number_fails() -> None:
    values = np.ones((2, 3), np.float32)
    assert parity.difference(values, values).ratio == 0
    values[1, 1] = np.nan
    assert parity.difference(values, np.ones((2, 3), np.float32)).ratio == np.inf
    assert parity.bounded("x", "y", "z", float("nan"), 1.0, "").status == "fail"
    assert parity.difference(np.ones((2, 3)), np.ones((3, 2))).max_abs == np.inf


def test_a_failure_is_named_with_its_numbers() -> None:
    entries = [parity.bounded("logits", "transformers", "error", 2.5, 1.0, ""), parity.exact("pixels", "x", "n", 0, "")]
    with pytest.raises(ParityError, match=r"logits against transformers: error is 2\.5, bound 1") as caught:
        raise_on_failure(entries)
    assert caught.value.exit_code == 5


def test_split_prompt_keeps_order_and_counts() -> None:
    features = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    segments, rest = parity.split_prompt([5, 9, 9, 6, 9, 9, 7, 8], 9, features)
    assert [segment.tolist() for segment in segments] == [[5], [[0, 1], [2, 3]], [6], [[4, 5], [6, 7]]]
    assert rest.tolist() == [7, 8]
    with pytest.raises(ValueError, match="3 image tokens"):
        parity.split_prompt([9, 9, 9], 9, features)


def test_probes_are_the_same_everywhere() -> None:
    import hashlib

    digest = hashlib.sha256()
    for size in probes.PICTURE_SIZES[:4]:
        digest.update(probes.picture(*size).tobytes())
    digest.update(probes.text().encode())
    assert digest.hexdigest()[:16] == "ace7d06aa541dd61"
