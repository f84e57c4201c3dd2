"""What pictures take: the bounds that their headers give, held against the peaks of processes of their own."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import BackendError
from edgevlm.image import load_image
from edgevlm.memory import MemoryEstimate, admit_picture
from edgevlm.model import load
from edgevlm.picture_memory import HeldPictures, PictureHeader
from edgevlm.tiles_drawing import SCHEMES
from tests.edgevlm.picture_writers import tiff

MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from edgevlm.image import load_image
from edgevlm.machine_memory import peak_memory_bytes, resident_bytes

small, large = sys.argv[1:]
load_image(small)  # what the decoder loads once
headers, before = [], resident_bytes()
picture = load_image(large, headers.append)
print(json.dumps([headers[0].decoding_bytes, peak_memory_bytes() - before, picture.nbytes]))
"""

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")


def drawn(height_px: int, width_px: int) -> Image.Image:
    """A picture that compresses like a photograph, more or less."""
    rows, columns = np.linspace(0, 255, height_px)[:, None], np.linspace(0, 255, width_px)[None]
    grey = (rows / 2 + columns / 2).astype(np.uint8)
    samples = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    noise = np.random.default_rng(0).integers(0, 64, samples[::7, ::5].shape, dtype=np.uint8)
    samples[::7, ::5] ^= noise
    return Image.fromarray(samples)


def grey_of_16_bits(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * np.uint16(257))


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha(picture: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (*picture.split(), picture.getchannel("R")))


Write = Callable[[Image.Image, Path], None]


def saved(format_name: str, change: Callable[[Image.Image], Image.Image] | None = None, **options: object) -> Write:
    def write(picture: Image.Image, path: Path) -> None:
        (picture if change is None else change(picture)).save(path, format_name, **options)

    return write


def scaled_ppm(picture: Image.Image, path: Path) -> None:
    head = f"P6 {picture.width} {picture.height} 200\n".encode()
    path.write_bytes(head + (np.asarray(picture) % 201).tobytes())


def in_one_strip(picture: Image.Image, path: Path) -> None:
    picture.save(path, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: picture.height, 274: 6})


def deep_planes(picture: Image.Image, path: Path) -> None:
    path.write_bytes(tiff(np.asarray(picture).astype(np.int64) * 257, 16, 2, planar=True))


def grey_of_12_bits(picture: Image.Image, path: Path) -> None:
    path.write_bytes(tiff(np.asarray(picture)[..., 0].astype(np.int64) * 16, 12, 0, order=">"))


# Name → how it is written, and its megapixels in the long run: as many as a phone's camera has, fewer where the encoder
# takes minutes.
PICTURES: dict[str, tuple[Write, int]] = {
    "jpeg": (saved("JPEG", quality=85), 108),
    "jpeg turned": (saved("JPEG", quality=85, exif=turned_exif()), 108),
    "jpeg grey": (saved("JPEG", lambda picture: picture.convert("L")), 108),
    "jpeg progressive": (saved("JPEG", quality=85, progressive=True), 108),
    "jpeg progressive 4:4:4": (saved("JPEG", quality=90, progressive=True, subsampling=0), 108),
    "jpeg progressive CMYK": (saved("JPEG", lambda picture: picture.convert("CMYK"), progressive=True), 50),
    "png": (saved("PNG", compress_level=1), 108),
    "png alpha": (saved("PNG", with_alpha, compress_level=1), 108),
    "png grey 16": (saved("PNG", grey_of_16_bits, compress_level=1), 108),
    "png turned": (saved("PNG", compress_level=1, exif=turned_exif()), 50),
    "tiff": (saved("TIFF"), 108),
    "tiff lzw": (saved("TIFF", compression="tiff_lzw"), 108),
    "tiff grey 16": (saved("TIFF", grey_of_16_bits), 108),
    "tiff in one strip, turned": (in_one_strip, 50),
    "tiff of 16-bit planes": (deep_planes, 12),
    "tiff of 12 bits": (grey_of_12_bits, 12),
    "bmp": (saved("BMP"), 108),
    "ppm": (saved("PPM"), 108),
    "ppm scaled": (scaled_ppm, 8),
    "gif": (saved("GIF", lambda picture: picture.quantize(64, method=2)), 50),
    "webp": (saved("WEBP", method=0), 108),
    "webp lossless alpha": (saved("WEBP", with_alpha, lossless=True, quality=0, method=0), 50),
    "avif 4:4:4 alpha": (saved("AVIF", with_alpha, speed=10, subsampling="4:4:4"), 24),
    "jp2": (saved("JPEG2000"), 16),
    "jp2 alpha": (saved("JPEG2000", with_alpha), 12),
    "jp2 grey 16": (saved("JPEG2000", grey_of_16_bits), 16),
}


def measured(name: str, megapixels: int, tmp_path: Path) -> tuple[int, int, int]:
    """(bound, peak, bytes of the RGB) of decoding one picture in a process of its own."""
    write, _ = PICTURES[name]
    height_px = int((megapixels * 1e6 * 3 / 4) ** 0.5)
    large = tmp_path / "large"
    write(drawn(height_px, height_px * 4 // 3), large)
    small = tmp_path / "small"
    write(drawn(48, 64), small)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    bound, peak, n_bytes = json.loads(output)
    return bound, peak, n_bytes


def check(name: str, megapixels: int, tmp_path: Path) -> None:
    bound, peak, n_bytes = measured(name, megapixels, tmp_path)
    assert peak <= bound, f"{name}: peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB"
    assert peak > n_bytes, f"{name}: nothing was measured"
    assert bound < 2.1 * peak + (64 << 20), f"{name}: peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB: too far"


@linux
@pytest.mark.parametrize("name", ["jpeg progressive 4:4:4", "png alpha"])
def test_decoding_stays_within_its_bound(name: str, tmp_path: Path) -> None:
    check(name, 6, tmp_path)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_decoding_large_pictures_stays_within_its_bound(name: str, tmp_path: Path) -> None:
    check(name, PICTURES[name][1], tmp_path)


RUN = """
import json, sys
from edgevlm.machine_memory import peak_memory_bytes
from edgevlm.model import load

with load(sys.argv[1], context=512) as model:
    before = model.memory_estimate.total_bytes
    model.generate("What is this?", [sys.argv[2]], max_new_tokens=2)
    print(json.dumps([before, model.memory_estimate.total_bytes, peak_memory_bytes()]))
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive 4:4:4", "png grey 16"])
def test_an_answer_about_108_megapixels_stays_within_the_estimate(name: str, tiny: Path, tmp_path: Path) -> None:
    """The estimate before the picture is the negative control: it knows nothing of it."""
    path = tmp_path / "large"
    PICTURES[name][0](drawn(9000, 12_000), path)
    command = [sys.executable, "-c", RUN, str(tiny), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, estimate, peak = json.loads(output)
    assert before < peak <= estimate


ESTIMATE = MemoryEstimate(0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_a_picture_above_the_budget_is_refused_before_it_is_decoded(tiny: Path) -> None:
    """Its body is missing, which would be noticed next."""
    stream = BytesIO()
    Image.new("RGB", (9000, 9000)).save(stream, "JPEG")
    data = stream.getvalue()[:2000]
    with load(tiny, context=100) as model:
        needed = model.memory_estimate.total_bytes
    with load(tiny, context=100, memory_budget_bytes=needed + (100 << 20)) as model:
        with pytest.raises(BackendError, match=r"picture of 2000 bytes: \d+ MB are needed with this picture .*budget"):
            model.picture(data)
        assert model.memory_estimate.pixel_bytes == 0
        model.picture(np.zeros((40, 40, 3), np.uint8))
        assert model.memory_estimate.pixel_bytes > 0


def test_what_the_machine_has_left_is_checked_for_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.memory.resident_bytes", lambda: 10_000_000)
    monkeypatch.setattr("edgevlm.memory.available_bytes", lambda: 60_000_000)
    assert admit_picture(ESTIMATE, "a.png", 9_000_000, None).pixel_bytes == 9_000_000
    with pytest.raises(BackendError, match=r"a\.png: \d+ MB more are needed with this picture .* 60 MB are available"):
        admit_picture(ESTIMATE, "a.png", 90_000_000, None)
    admit_picture(ESTIMATE, "a.png", 90_000_000, 1 << 30)  # a budget is the user's word
    monkeypatch.setattr("edgevlm.memory.available_bytes", lambda: None)
    larger = admit_picture(ESTIMATE, "a.png", 90_000_000, None)
    assert admit_picture(larger, "b.png", 1, None).pixel_bytes == 90_000_000


def test_pictures_count_as_long_as_they_are_held() -> None:
    spec = next(iter(SCHEMES.values()))[0]
    held, header = HeldPictures(), PictureHeader("a.png", 10, 10, 1000)
    alone = held.bytes_with(header, spec)
    picture = load_image(np.zeros((500, 400, 3), np.uint8))
    held.add(picture, spec)
    assert held.bytes_with(header, spec) >= alone + picture.nbytes
    del picture
    gc.collect()
    assert held.bytes_with(header, spec) == alone


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("size", [(9000, 12_000), (12_000, 9000), (2000, 50_000)])
def test_cutting_stays_within_its_bound(name: str, size: tuple[int, int]) -> None:
    program = f"""
import json
import numpy as np
from edgevlm.machine_memory import peak_memory_bytes, resident_bytes
from edgevlm.tiles_drawing import SCHEMES
from edgevlm.tiling import cut_tiles, plan_tiles
from edgevlm.picture_memory import cutting_bytes

spec, image = SCHEMES[{name!r}][0], np.zeros(({size[0]}, {size[1]}, 3), np.uint8)
image += 3
small = image[:90, :120]
cut_tiles(small, plan_tiles(90, 120, spec), spec)
plan, before = plan_tiles(*image.shape[:2], spec), resident_bytes()
tiles = cut_tiles(image, plan, spec)
print(json.dumps([cutting_bytes(*image.shape[:2], plan), peak_memory_bytes() - before, tiles.nbytes]))
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    bound, peak, n_bytes = json.loads(output)
    assert peak <= bound, f"{name}: peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB"
    assert peak >= n_bytes // 2
