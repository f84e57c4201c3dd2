"""Picture processors that `export` must refuse: a part of the table of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from tests.broken import BrokenCase

OWN, SHARED = "preprocessor_config.json", "processor_config.json"
TAKEN_OUT = "taken out"
"""In the place of a value: the field is absent."""


def _snapshot(maker: str, name: str, **fields: Any) -> Callable[[Path], Path]:
    """Returns a maker of a tiny checkpoint with changed fields in one of its files."""

    def make(tmp_path: Path) -> Path:
        from tests import tiny

        path = tiny.MAKERS[maker](tmp_path / "snapshot")
        data = json.loads((path / name).read_text()) if (path / name).exists() else {}
        changed = {key: value for key, value in {**data, **fields}.items() if value != TAKEN_OUT}
        (path / name).write_text(json.dumps(changed))
        return path

    return make


def _without(maker: str, name: str) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        path = _snapshot(maker, name)(tmp_path)
        (path / name).unlink()
        return path

    return make


def _smolvlm(name: str, error: type[EdgeVLMError], fragment: str, **fields: Any) -> BrokenCase:
    return BrokenCase(f"picture processor: {name}", _snapshot("smolvlm", OWN, **fields), error, fragment)


def _file(name: str, maker: str, file: str, error: type[EdgeVLMError], fragment: str, **fields: Any) -> BrokenCase:
    return BrokenCase(f"picture processor: {name}", _snapshot(maker, file, **fields), error, fragment)


PROCESSORS = [
    BrokenCase(
        "picture processor: no file", _without("smolvlm", OWN), PackageError, "needs preprocessor_config.json"
    ),
    _smolvlm("a switch that is a text", PackageError, "do_normalize must be true or false", do_normalize="false"),
    _smolvlm("a switch that is a number", PackageError, "do_rescale must be true or false", do_rescale=0),
    _smolvlm("pictures are cut without a first resize", UnsupportedModelError, "do_resize is false", do_resize=False),
    _smolvlm("a crop without a size", PackageError, "without 'crop_size'", do_center_crop=True),
    _smolvlm("a factor of 0", UnsupportedModelError, "rescale_factor is 0", rescale_factor=0),
    _smolvlm("a factor that is null", PackageError, "rescale_factor must be a number", rescale_factor=None),
    _smolvlm("a mean of two colours", PackageError, "image_mean must be one number or three", image_mean=[0.5, 0.5]),
    _smolvlm("a mean that is null", PackageError, "image_mean must be a number, found None", image_mean=None),
    _smolvlm("a mean with a text", PackageError, "must be a number, found '0.5'", image_mean=[0.5, "0.5", 0.5]),
    _smolvlm("a deviation of 0", UnsupportedModelError, "image_std is 0.0", image_std=[0.5, 0.0, 0.5]),
    _smolvlm("a filter by name", UnsupportedModelError, "resample 'bicubic'", resample="bicubic"),
    _smolvlm("a filter that is a list", UnsupportedModelError, "resample [1]", resample=[1]),
    _smolvlm("the box filter", UnsupportedModelError, "resample 4", resample=4),
    _smolvlm("a shortest edge alone", UnsupportedModelError, "{'shortest_edge': 40}", size={"shortest_edge": 40}),
    _smolvlm("the same size for every picture", UnsupportedModelError, "size is 64 x 48 pixels", size=[64, 48]),
    _smolvlm("a size that is a text", PackageError, "size must be a size, found 'large'", size="large"),
    _smolvlm("a size that is null", PackageError, "size must be a size, found None", size=None),
    _smolvlm(
        "a size of keys that do not go together", UnsupportedModelError, "'longest_edge': 64",
        size={"longest_edge": 64, "height": 64},
    ),
    _smolvlm("an edge of 0", PackageError, "size.longest_edge must be a positive", size={"longest_edge": 0}),
    _smolvlm("an edge of 10^9", UnsupportedModelError, "at most 65536", size={"longest_edge": 10**9}),
    _smolvlm("16,384 tiles a picture", UnsupportedModelError, "grid of 128 x 128 tiles", size={"longest_edge": 4096}),
    _smolvlm("tiles that are a number", PackageError, "max_image_size must be an object", max_image_size=32),
    _smolvlm(
        "tiles of another size than the tower's", UnsupportedModelError, "differs from the tower's",
        max_image_size={"longest_edge": 64},
    ),
    _smolvlm(
        "another class", UnsupportedModelError, "the picture processor 'CLIPImageProcessor'",
        image_processor_type="CLIPImageProcessor",
    ),
    _file("a list in processor_config.json", "smolvlm", SHARED, PackageError, "must be an object", image_processor=[1]),
    _file("tokens a tile that are a text", "smolvlm", SHARED, PackageError, "image_seq_len '4'", image_seq_len="4"),
    _file(
        "another text around pictures", "smolvlm", "tokenizer_config.json", UnsupportedModelError,
        "fake_image_token '<around>'", fake_image_token="<around>",
    ),
    _file("a tower's pictures as they are", "siglip", OWN, UnsupportedModelError, "do_resize False", do_resize=False),
    _file("a size beside the tower's", "siglip", OWN, UnsupportedModelError, "size is [64, 64]", size=[64, 64]),
    _file("no size for a tower of 32 px", "siglip", OWN, UnsupportedModelError, "(224, 224)", size=TAKEN_OUT),
    _file(
        "a crop of another size", "siglip", OWN, UnsupportedModelError, "crop_size is 20",
        do_center_crop=True, crop_size=20,
    ),
    _file("a pad of another size", "siglip", OWN, UnsupportedModelError, "pad_size is 40", do_pad=True, pad_size=40),
    _file("a file beside a bluelm_v", "bluelm_v", OWN, UnsupportedModelError, "nothing would read", image_mean=[1] * 3),
    _file("padding of no colour", "bluelm_v", "config.json", UnsupportedModelError, "only 0 to 1", image_mean=2),
    _file(
        "an alpha of eight decimals", "bluelm_v", "config.json", UnsupportedModelError, "at most 6 decimals",
        relaxed_alpha=0.12345678,
    ),
]  # fmt: skip
"""A checkpoint of each, by the file that is wrong."""
