"""Remake the golden files of the tiling tests: `python -m tests.golden.make_tiling` (needs torch and transformers).

relaxed_order.json   sizes on which the enumeration order of `relaxed` changes the grid (float loop of the paper)
hf_grids.npz         grids that transformers' PIL processors choose for random sizes
hf_tiles.json        sha256 of the uint8 tiles they cut from real pictures
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ASSETS = HERE.parent.parent / "assets"

SIZES_PER_PROCESSOR = 2_000
TILE_GRID_PROCESSORS = {
    "smolvlm-256m": ("smolvlm", 512, 2048),
    "smolvlm-2.2b": ("smolvlm", 384, 1536),
    "idefics3": ("idefics3", 364, 1456),
    "odd": ("idefics3", 224, 5000),
}
"""name → (transformers module, tile, longest edge); the last one meets the 4096 cap and an edge of no whole tiles."""

ORDERS: dict[str, Callable[[tuple[int, int]], tuple[int, ...]]] = {
    "descending area, descending columns": lambda grid: (-grid[0] * grid[1], -grid[0]),
    "descending columns, descending rows": lambda grid: (-grid[0], -grid[1]),
    "ascending area, ascending columns": lambda grid: (grid[0] * grid[1], grid[0]),
    "descending columns, ascending rows": lambda grid: (-grid[0], grid[1]),
    "descending rows, ascending columns": lambda grid: (-grid[1], grid[0]),
}
"""Sort keys; the first is the one that the project defines.

Among 145,000 random sizes no two orders that descend in both sides disagreed, so the second stands for those.
"""


def random_sizes(seed: int, count: int) -> list[tuple[int, int]]:
    """(height, width), log-uniform, with extreme ratios and exact multiples among them."""
    draw = random.Random(seed)
    sizes = [(1, 20_000), (20_000, 1), (1, 1), (512, 512), (513, 512), (1080, 2400), (2400, 1080), (3, 10_007)]
    while len(sizes) < count:
        top = draw.choice((400, 2_000, 8_000))
        sizes.append((int(2 ** draw.uniform(0, np.log2(top))), int(2 ** draw.uniform(0, np.log2(top)))))
    return sizes


def relaxed_float(height: int, width: int, order: str, tile: int = 384, box: int = 4) -> tuple[int, int]:
    """Algorithm 1 as printed, in floats, for one enumeration order: (columns, rows)."""
    grids = [(m, n) for m in range(1, box + 1) for n in range(1, box + 1)]
    best, best_effective, least_waste = (1, 1), 0, float("inf")
    for m, n in sorted(grids, key=ORDERS[order]):
        scale = min(tile * m / width, tile * n / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = tile * m * tile * n - effective
        if effective - best_effective > 0.1 * best_effective or (
            best_effective - effective < 0.1 * best_effective and waste < least_waste
        ):
            best, best_effective, least_waste = (m, n), effective, waste
    return best


def order_sensitive(count: int) -> list[dict[str, Any]]:
    draw, rows = random.Random(7), []
    while len(rows) < count:
        height, width = int(2 ** draw.uniform(6, 12)), int(2 ** draw.uniform(6, 12))
        grids = {order: relaxed_float(height, width, order) for order in ORDERS}
        if len(set(grids.values())) > 1:
            rows.append({"height": height, "width": width, "grids": grids})
    return rows


def processor(module: str, tile: int, edge: int) -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    kind = SmolVLMImageProcessorPil if module == "smolvlm" else Idefics3ImageProcessorPil
    return kind(size={"longest_edge": edge}, max_image_size={"longest_edge": tile})


@contextmanager
def sizes_only() -> Iterator[None]:
    """Resizing makes an empty array of the right size, so that transformers' own size logic runs at no cost."""
    import transformers.image_processing_backends as backends

    real = backends.np_resize
    backends.np_resize = lambda image, size, **_: np.broadcast_to(np.uint8(0), (3, *size))
    try:
        yield
    finally:
        backends.np_resize = real


def hf_grid(proc: Any, height: int, width: int) -> tuple[int, int, int]:
    """(rows, columns, tiles with the thumbnail) of transformers; a single tile is 1 x 1."""
    tile = proc.max_image_size["longest_edge"]
    image = np.broadcast_to(np.uint8(0), (3, height, width))
    image = proc.resize(image=image, size=proc.size, resample=proc.resample)
    image = proc.resize_for_vision_encoder(image, tile, resample=proc.resample)
    frames, rows, cols = proc.split_images(image, {"longest_edge": tile}, resample=proc.resample)
    return max(rows, 1), max(cols, 1), len(frames)


def internvl_grid(height: int, width: int) -> tuple[int, int]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    cols, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
    return rows, cols


def llava_next_plan(height: int, width: int) -> tuple[int, int, int, int]:
    """(canvas height, canvas width, resized height, resized width)."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    best = select_best_resolution((height, width), LlavaNextImageProcessorPil.image_grid_pinpoints)
    image = np.broadcast_to(np.uint8(0), (3, height, width))
    return (*best, *get_patch_output_size(image, best, ChannelDimension.FIRST))


def pictures() -> dict[str, np.ndarray]:
    """Real pictures of several sizes and ratios: crops and enlargements of the committed ones."""
    coffee = Image.open(ASSETS / "coffee.jpg").convert("RGB")
    strip = Image.open(ASSETS / "shapes-strip.png").convert("RGB")
    found = {
        "coffee": coffee,
        "coffee-tall": coffee.crop((210, 0, 333, 400)),
        "coffee-tiny": coffee.crop((300, 200, 317, 211)),
        "coffee-flat": coffee.crop((0, 199, 600, 206)),
        "coffee-large": coffee.resize((2311, 1603), Image.Resampling.BICUBIC),
        "strip": strip,
    }
    return {name: np.asarray(picture) for name, picture in found.items()}


def hf_tiles(proc: Any, image: np.ndarray) -> np.ndarray:
    """uint8 (C, S, S, 3) as transformers cuts them."""
    out = proc.preprocess([Image.fromarray(image)], do_rescale=False, do_normalize=False, do_pad=False)
    return np.stack(out["pixel_values"][0]).transpose(0, 2, 3, 1)


def internvl_tiles(image: np.ndarray) -> np.ndarray:
    proc, size = internvl_processor()
    tiles = proc.crop_image_to_patches(image.transpose(2, 0, 1), 1, 12, True, size, proc.resample)
    return np.stack(tiles).transpose(0, 2, 3, 1)


def internvl_processor() -> tuple[Any, Any]:
    from transformers.image_utils import SizeDict
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(), SizeDict(height=448, width=448)


def llava_next_tiles(image: np.ndarray) -> np.ndarray:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    proc = LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    tiles = proc.get_image_patches(
        image.transpose(2, 0, 1), proc.image_grid_pinpoints, (336, 336), 336, Image.Resampling.BICUBIC
    )
    return np.stack(tiles).transpose(0, 2, 3, 1)


def digest(tiles: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(tiles)
    return {"n_tiles": len(data), "sha256": hashlib.sha256(data.tobytes()).hexdigest()}


def main() -> None:
    import PIL
    import transformers

    versions = {"transformers": transformers.__version__, "pillow": PIL.__version__}
    order = {"orders": list(ORDERS), "alpha": 0.1, "tile_px": 384, "box": 4, "sizes": order_sensitive(40)}
    (HERE / "relaxed_order.json").write_text(json.dumps(order, indent=None, separators=(",", ":")) + "\n")

    sizes = random_sizes(0, SIZES_PER_PROCESSOR)
    grids: dict[str, np.ndarray] = {"sizes": np.array(sizes, np.int32), "versions": np.array(json.dumps(versions))}
    with sizes_only():
        for name, settings in TILE_GRID_PROCESSORS.items():
            proc = processor(*settings)
            grids[name] = np.array([hf_grid(proc, *size) for size in sizes], np.int16)
    grids["internvl"] = np.array([internvl_grid(*size) for size in sizes], np.int16)
    grids["llava-next"] = np.array([llava_next_plan(*size) for size in sizes], np.int16)
    np.savez_compressed(HERE / "hf_grids.npz", **grids)

    tiles: dict[str, Any] = {"versions": versions}
    for name, image in pictures().items():
        tiles[name] = {
            proc_name: digest(hf_tiles(processor(*TILE_GRID_PROCESSORS[proc_name]), image))
            for proc_name in ("smolvlm-256m", "idefics3")
        }
        tiles[name]["internvl"] = digest(internvl_tiles(image))
        tiles[name]["llava-next"] = digest(llava_next_tiles(image))
    (HERE / "hf_tiles.json").write_text(json.dumps(tiles, indent=1) + "\n")


if __name__ == "__main__":
    main()
