"""What a checkpoint's picture processor becomes in our hands: spec, pixels and grids; what a refusal must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError
from edgevlm.image import normalize
from edgevlm.spec import ProcessorSpec
from edgevlm.tiling import cut_tiles, plan_tiles
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from tests.processor_configs import ProcessorCase

UNREAD = {"size", "crop_size", "pad_size", "do_center_crop"}
"""Fields that transformers looks at even where the step that reads them is switched off: it may refuse, we need not."""
DEFAULTS = {"size", "max_image_size", "image_processor_type", "do_resize"}
"""Fields whose absence can be what is refused."""


def our_processor(source: Path) -> ProcessorSpec:
    """Returns the processor of a snapshot directory. Raises EdgeVLMError for what is refused."""
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files).processor
    assert spec is not None
    return spec


def our_pixels(image: NDArray[np.uint8], spec: ProcessorSpec) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Returns pixel values (C, 3, S, S) and (rows, cols), (0, 0) for one tile, as transformers counts."""
    plan = plan_tiles(*image.shape[:2], spec)
    values = normalize(cut_tiles(image, plan, spec), spec)
    return values, (plan.grid_rows, plan.grid_cols) if plan.grid_rows * plan.grid_cols > 1 else (0, 0)


def names_a_field(error: EdgeVLMError, case: ProcessorCase) -> bool:
    """Tells whether a refusal says which field it is about."""
    return any(name in str(error) for name in {*case.drawn, *DEFAULTS})
