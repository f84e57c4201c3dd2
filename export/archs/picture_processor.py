"""The picture processor of a checkpoint: every field as transformers reads it, or refused by its name.

What transformers does with each field is what counts, odd as it may be: a flag that is null is off, not its default; a
size is one of a few shapes; a list of processor names is known. Source: transformers 5.24, image_processing_base.py
(which file is read), image_processing_utils.py and image_processing_backends.py (what a field does).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.spec import Resample
from export.archs.files import read_json

OWN_FILE, SHARED_FILE = "preprocessor_config.json", "processor_config.json"
RESAMPLES: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as the file has them. A name is no number: transformers takes any text for bilinear."""
SMALLEST, LARGEST = 1e-6, 1e6
"""Range of the factors that the engine takes (ev_check_image_spec)."""
MAX_EDGE_PX = 1 << 16
"""Longest edge that the engine takes."""
BACKENDS = ("", "Fast", "Pil")
"""Endings of one processor's class names; the pixels are those of Pillow, the one that models were trained with."""

Size = tuple[int, int]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PixelValues:
    """How bytes become floats: (x * factor - mean) / std."""

    factor: float
    mean: Triple
    std: Triple


@dataclass(frozen=True)
class Edges:
    """A size object that says edges: (shortest, longest), whichever are given."""

    shortest: Any
    longest: Any


class PictureProcessor:
    """The fields of one picture processor; an absent field takes the default of its class in transformers."""

    def __init__(self, files: Mapping[str, bytes], config: Mapping[str, Any], names: tuple[str, ...]) -> None:
        """Finds the fields. `names` are the processor classes whose pixels are implemented, without a backend's ending.

        Raises PackageError when no file has them, UnsupportedModelError for another class.
        """
        found = _find(files)
        if found is None:
            raise PackageError(
                f"a {config.get('model_type')} checkpoint needs {OWN_FILE} (or {SHARED_FILE} with 'image_processor'), "
                "which was not found beside config.json"
            )
        self.data, self.file = found
        self._check_class(config, names)

    def where(self, name: str) -> str:
        """Returns how messages name a field."""
        return f"{self.file}: {name}"

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the field as it stands in the file; None when it is null, `default` when it is absent."""
        return self.data.get(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a switch. Null is off, as in transformers."""
        value = self.get(name, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise PackageError(f"{self.where(name)} must be true or false, found {brief(value)}")
        return value

    def resample(self, default: int) -> Resample:
        """Returns the filter of all resizes."""
        value = self.get("resample", default)
        if isinstance(value, bool) or not isinstance(value, int) or value not in RESAMPLES:
            raise refused(
                "resample", value, self.where("resample"), [f"{code} ({name})" for code, name in RESAMPLES.items()]
            )
        return RESAMPLES[value]

    def pixel_values(self, mean: Triple, std: Triple) -> PixelValues:
        """Returns what a byte becomes; a step that is switched off does nothing. `mean` and `std` are defaults."""
        factor = 1.0
        if self.flag("do_rescale", True):
            factor = number(self.get("rescale_factor", 1 / 255), self.where("rescale_factor"), SMALLEST, LARGEST)
        if not self.flag("do_normalize", True):
            return PixelValues(factor, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return PixelValues(
            factor,
            channels(self.get("image_mean", mean), self.where("image_mean"), -LARGEST, LARGEST),
            channels(self.get("image_std", std), self.where("image_std"), SMALLEST, LARGEST),
        )

    def tile_edge(self, name: str, default: int) -> int:
        """Returns `longest_edge` of an object of which transformers reads nothing else."""
        value = self.get(name, {"longest_edge": default})
        if not isinstance(value, Mapping):
            raise PackageError(f"{self.where(name)} must be an object with 'longest_edge', found {brief(value)}")
        return self._pixels(value.get("longest_edge"), f"{name}.longest_edge")

    def size(self, name: str, default: Any, *, square: bool = True) -> Size | Edges:
        """Returns a size as (height, width), or as edges.

        `square` says what one integer means: both sides, or the shortest edge. Raises PackageError for an object of
        other keys, UnsupportedModelError for keys that no processor here knows.
        """
        value = self.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool):
            edge = self._pixels(value, name)
            return (edge, edge) if square else Edges(edge, None)
        if isinstance(value, list) and len(value) == 2:
            return (self._pixels(value[0], name), self._pixels(value[1], name))
        if not isinstance(value, Mapping):
            raise PackageError(f"{self.where(name)} must be a size, found {brief(value)}")
        keys = set(value)
        if keys == {"height", "width"}:
            return (self._pixels(value["height"], f"{name}.height"), self._pixels(value["width"], f"{name}.width"))
        if keys and keys <= {"shortest_edge", "longest_edge"}:
            return Edges(value.get("shortest_edge"), value.get("longest_edge"))
        raise refused(
            name, dict(value), self.where(name), ["height and width", "longest_edge", "shortest_edge and longest_edge"]
        )

    def longest_edge(self, edges: Edges, name: str) -> int:
        """Returns the longest edge; the shortest one beside it changes nothing in Idefics3's processor."""
        if edges.longest is None and edges.shortest is not None:
            raise refused(name, {"shortest_edge": edges.shortest}, self.where(name), ["longest_edge"])
        return self._pixels(edges.longest, f"{name}.longest_edge")

    def check_unused_crop(self) -> None:
        """Refuses the one crop that transformers refuses of a processor that never crops."""
        if self.flag("do_center_crop", False) and self.get("crop_size") is None:
            raise PackageError(f"{self.where('do_center_crop')} is true without 'crop_size', which it needs")

    def require_size(self, side_px: int, default: int) -> None:
        """Refuses whatever makes a picture other than `side_px` x `side_px` by one resize of the whole."""
        square = self.flag("default_to_square", False)
        if not self.flag("do_resize", True):
            raise refused("do_resize", False, self.where("do_resize"), [True])
        self._require_side(side_px, "size", self.size("size", {"height": default, "width": default}, square=square))
        if self.flag("do_center_crop", False):
            self.check_unused_crop()
            self._require_side(side_px, "crop_size", self.size("crop_size", None))
        if self.flag("do_pad", False) and self.get("pad_size") is not None:
            self._require_side(side_px, "pad_size", self.size("pad_size", None))

    def _require_side(self, side_px: int, name: str, found: Size | Edges) -> None:
        if found != (side_px, side_px):
            said = brief(self.data[name]) if name in self.data else f"the default {found}"
            raise UnsupportedModelError(
                f"{self.where(name)} is {said}, but the tower reads pictures of {side_px} x {side_px} pixels "
                "(config.json: image_size); only that size is implemented"
            )

    def _pixels(self, value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise PackageError(f"{self.where(name)} must be a positive integer, found {brief(value)}")
        if value > MAX_EDGE_PX:
            raise UnsupportedModelError(f"{self.where(name)} is {brief(value)}; at most {MAX_EDGE_PX} is implemented")
        return value

    def _check_class(self, config: Mapping[str, Any], names: tuple[str, ...]) -> None:
        """A file without a class is read by the class of config.json's own field, else of the model type."""
        key, holder = "image_processor_type", self.file
        name = self.data.get(key)
        if name is None and (extractor := self.data.get("feature_extractor_type")) is not None:
            key, name = "feature_extractor_type", str(extractor).replace("FeatureExtractor", "ImageProcessor")
        elif name is None and config.get(key) is not None:
            holder, name = "config.json", config[key]
        known = [f"{base}{ending}" for base in names for ending in BACKENDS]
        if name is not None and name not in known:
            raise refused("the picture processor", name, f"{holder}: {key}", names)


def has_picture_processor(files: Mapping[str, bytes]) -> bool:
    """Tells whether a checkpoint's files say how pictures are processed."""
    return _find(files) is not None


def _find(files: Mapping[str, bytes]) -> tuple[Mapping[str, Any], str] | None:
    """The fields and their file's name: those inside processor_config.json come before a file of their own."""
    inside = read_json(files, SHARED_FILE).get("image_processor")
    if inside is not None:
        if not isinstance(inside, Mapping):
            raise PackageError(f"{SHARED_FILE}: image_processor must be an object, found {brief(inside)}")
        return inside, f"{SHARED_FILE}: image_processor"
    return (read_json(files, OWN_FILE), OWN_FILE) if OWN_FILE in files else None


def number(value: Any, where: str, least: float, most: float) -> float:
    """A finite number inside the range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PackageError(f"{where} must be a number, found {brief(value)}")
    if not least <= value <= most:
        raise UnsupportedModelError(f"{where} is {brief(value)}; only {least:g} to {most:g} is implemented")
    return float(value)


def channels(value: Any, where: str, least: float, most: float) -> Triple:
    """Three numbers inside the range, one a colour; one number stands for all three."""
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise PackageError(f"{where} must be one number or three, found {brief(value)}")
    red, green, blue = (number(item, where, least, most) for item in values)
    return red, green, blue


def brief(value: Any) -> str:
    """A value as messages show it, cut short when it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]} ... ({type(value).__name__})"


def refused(what: str, value: Any, where: str, implemented: Collection[Any]) -> UnsupportedModelError:
    """The error of a value that is not implemented, by the name of its field."""
    known = ", ".join(str(item) for item in implemented)
    return UnsupportedModelError(f"{what} {brief(value)} ({where}) is not implemented; implemented: {known}")
