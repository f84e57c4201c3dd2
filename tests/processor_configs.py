"""Random picture processors of checkpoints, as files: every field in every form, alone, together, in both places."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OWN, SHARED = "preprocessor_config.json", "processor_config.json"
TILE_PX = 32
"""Of the tiny checkpoints."""
HALF = [0.5, 0.5, 0.5]
COMMON: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_std": HALF,
    "rescale_factor": 1 / 255,
}
BASES: dict[str, dict[str, Any]] = {
    "smolvlm": {
        **COMMON,
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "do_pad": True,
        "max_image_size": {"longest_edge": TILE_PX},
        "resample": 1,
        "size": {"longest_edge": 4 * TILE_PX},
    },
    "siglip": {
        **COMMON,
        "image_processor_type": "SiglipImageProcessor",
        "resample": 3,
        "size": {"height": TILE_PX, "width": TILE_PX},
    },
}
BASES["idefics3"] = {**BASES["smolvlm"], "image_processor_type": "Idefics3ImageProcessor"}

SQUARE = {"height": TILE_PX, "width": TILE_PX}
SWITCH = [True, False, False, None]
VALUES: dict[str, list[Any]] = {
    "do_resize": [*SWITCH, 0],
    "do_rescale": [*SWITCH, "false"],
    "do_normalize": [*SWITCH, 1],
    "do_pad": SWITCH,
    "do_convert_rgb": SWITCH,
    "do_center_crop": SWITCH,
    "do_image_splitting": [*SWITCH, False, "no"],
    "default_to_square": SWITCH,
    "return_row_col_info": SWITCH,
    "rescale_factor": [1 / 127.5, 1 / 256, 0.5, 1, 2, 0, -1, None, "1/255", 1e-9],
    "image_mean": [[0.485, 0.456, 0.406], 0.5, 0, [1, 0, 0.25], [123.675, 116.28, 103.53], [-0.5, 0.5, 1.5], None,
                   [0.5], "0.5", [0.5, 0.5, 0.5, 0.5], [0.5, None, 0.5], [0.5, True, 0.5]],
    "image_std": [[0.229, 0.224, 0.225], 0.25, 1, [58.395, 57.12, 57.375], [2, 0.5, 0.1], 0, [0.5, 0, 0.5], None,
                  [0.5, 0.5], "1", -0.5],
    "resample": [0, 1, 2, 3, 2, 3, 4, 5, 6, None, "bicubic", [1], 2.0, True],
    "size": [{"longest_edge": 96}, {"longest_edge": 77}, {"longest_edge": 1}, {"longest_edge": TILE_PX},
             {"shortest_edge": 40, "longest_edge": 64}, {"shortest_edge": TILE_PX}, SQUARE, TILE_PX, [TILE_PX, TILE_PX],
             {"height": 64, "width": TILE_PX}, {"height": 64, "width": 64}, 64, [64, 48],
             {"max_height": 64, "max_width": 64}, {"longest_edge": 64, "height": 64}, {"longest_edge": 0},
             {"longest_edge": None}, {"longest_edge": "64"},
             {"longest_edge": 10**9}, {}, None, "large", [TILE_PX]],
    "max_image_size": [{"longest_edge": TILE_PX, "height": 5}, {"longest_edge": 64}, SQUARE, TILE_PX,
                       None, {"longest_edge": None}],
    "crop_size": [SQUARE, TILE_PX, [TILE_PX, TILE_PX], {"height": 20, "width": 20}, {"shortest_edge": TILE_PX}, 20,
                  None],
    "pad_size": [SQUARE, TILE_PX, {"height": 40, "width": 40}, None],
    "image_processor_type": ["SmolVLMImageProcessor", "Idefics3ImageProcessorFast", "SmolVLMImageProcessorPil", None,
                             "SiglipImageProcessor", "SiglipImageProcessorFast", "CLIPImageProcessor",
                             "ViTImageProcessor", "MyImageProcessor"],
    "feature_extractor_type": ["SiglipFeatureExtractor", "CLIPFeatureExtractor"],
    "data_format": ["channels_first", "channels_last"],
    "input_data_format": ["channels_last", None],
    "return_tensors": ["pt", "np"],
    "device": ["cpu"],
    "disable_grouping": [True],
    "image_seq_length": [7],
    "do_thumbnail": [True, False],
    "processor_class": ["LlavaProcessor"],
    "auto_map": [{"AutoImageProcessor": "processing.Mine"}],
    "video_sampling": [{"fps": 1}],
}  # fmt: skip
"""Field → values that change something, values that change nothing, and values that mean nothing."""

GENTLE: dict[str, list[Any]] = {
    name: VALUES[name][:n]
    for name, n in {
        "do_rescale": 4, "do_normalize": 4, "do_pad": 4, "do_convert_rgb": 4, "do_image_splitting": 5,
        "return_row_col_info": 4, "rescale_factor": 5, "image_mean": 6, "image_std": 5, "resample": 6, "size": 5,
    }.items()
}  # fmt: skip
"""Fields and values that are likely to leave a processor that works, so that a good share of all is compared."""


@dataclass(frozen=True)
class ProcessorCase:
    """One checkpoint's processor: its architecture, its files (None: there is none) and the fields that were drawn."""

    architecture: str
    own: dict[str, Any] | None
    shared: dict[str, Any] | None
    drawn: tuple[str, ...]

    def write(self, snapshot: Path) -> Path:
        """Gives the snapshot these files, and returns it."""
        for name, content in ((OWN, self.own), (SHARED, self.shared)):
            (snapshot / name).unlink(missing_ok=True)
            if content is not None:
                (snapshot / name).write_text(json.dumps(content))
        return snapshot

    def said(self) -> Mapping[str, Any]:
        """The fields that count: transformers reads those inside the shared file first."""
        inside = (self.shared or {}).get("image_processor")
        return inside if inside is not None else (self.own or {})


def draw(seed: int) -> ProcessorCase:
    """Returns the processor of a seed: up to four fields set, one in four left out, in one of both files or in both."""
    pick = random.Random(seed)
    architecture = pick.choice(("smolvlm", "smolvlm", "idefics3", "siglip"))
    table = GENTLE if pick.random() < 0.6 else VALUES
    fields = dict(BASES[architecture])
    if architecture == "siglip" and table is GENTLE:
        table = {name: values for name, values in GENTLE.items() if name != "size"}
    if pick.random() < 0.3:  # as sparse as files by hand, so that defaults of the classes count
        keep = {"max_image_size", "size"} if pick.random() < 0.7 else {"max_image_size"}
        fields = {name: value for name, value in fields.items() if name in keep}
    drawn = pick.sample(sorted(table), k=pick.randint(1, 4))
    for name in drawn:
        if pick.random() < 0.1:
            fields.pop(name, None)
        else:
            fields[name] = pick.choice(table[name])
    shared = {} if architecture == "siglip" else {"image_seq_len": 4}
    place = pick.random()
    if place < 0.6:
        return ProcessorCase(architecture, fields, shared or None, tuple(drawn))
    if place < 0.75:
        return ProcessorCase(architecture, None, {**shared, "image_processor": fields}, tuple(drawn))
    if place < 0.9:  # the two files contradict each other
        other = {**BASES[architecture], "image_mean": [0.1, 0.2, 0.3], "resample": 2}
        return ProcessorCase(architecture, other, {**shared, "image_processor": fields}, tuple(drawn))
    return ProcessorCase(architecture, fields, {**shared, "image_processor": None}, tuple(drawn))


def sizes(seed: int, count: int = 3) -> list[tuple[int, int]]:
    """Returns (height, width) of pictures: small photos, icons, strips, and exact tiles."""
    pick = random.Random(10_000 + seed)
    found = []
    for _ in range(count):
        kind = pick.randrange(4)
        if kind == 0:
            found.append((TILE_PX * pick.randint(1, 4), TILE_PX * pick.randint(1, 4)))
        elif kind == 1:
            strip = (pick.randint(1, 6), pick.randint(1, 900))
            found.append(strip if pick.random() < 0.5 else strip[::-1])
        else:
            found.append((pick.randint(1, 260), pick.randint(1, 260)))
    return found


def picture(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Returns noise over a gradient, with black and white among it."""
    rng = np.random.RandomState(height_px * 1009 + width_px)
    noise = rng.randint(0, 256, (height_px, width_px, 3))
    slope = np.linspace(0, 255, width_px)[None, :, None]
    return np.clip((noise + slope) * 0.75 - 64, 0, 255).astype(np.uint8)
