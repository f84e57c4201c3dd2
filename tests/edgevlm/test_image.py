"""Pictures in: every mode Pillow reads, orientation, transparency, sizes, and damaged files."""

from __future__ import annotations

import base64
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm.errors import ImageError, UsageError
from edgevlm.image import image_key, load_image, normalize, picture_path, resize
from edgevlm.picture_memory import PictureHeader
from edgevlm.spec import Resample
from edgevlm.tiles_drawing import SCHEMES
from tests.broken import BrokenCase
from tests.broken.images import CASES, encoded, png_header
from tests.edgevlm.picture_forms import FORMS

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def saved(picture: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_pictures(case: BrokenCase, tmp_path: Path) -> None:
    with pytest.raises(case.error) as caught:
        load_image(case.make(tmp_path))
    message = str(caught.value)
    assert case.fragment in message
    assert "\n" not in message and caught.value.exit_code == 6


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    data = saved(Image.fromarray(NOISE))
    path = tmp_path / "noise.png"
    path.write_bytes(data)
    sources = [data, path, str(path), Image.open(BytesIO(data)), Image.fromarray(NOISE), NOISE]
    loaded = [load_image(source) for source in sources]
    for pixels in loaded:
        np.testing.assert_array_equal(pixels, NOISE)
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert len({image_key(pixels) for pixels in loaded}) == 1


class Pipe:
    """A file object that cannot go back, as a response of the network."""

    def __init__(self, data: bytes) -> None:
        self._stream = BytesIO(data)

    def read(self) -> bytes:
        return self._stream.read()


class Named:
    """A path of someone else's class."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_file_objects_and_addresses_give_the_same_pixels(tmp_path: Path) -> None:
    data = saved(Image.fromarray(NOISE))
    path = tmp_path / "a picture #1 of 50%.png"
    path.write_bytes(data)
    at_its_end = BytesIO()
    at_its_end.write(data)
    base64_text = base64.b64encode(data).decode()
    with path.open("rb") as stream:
        sources = [
            BytesIO(data), at_its_end, Pipe(data), stream, Named(path), path.as_uri(), f"file://{path}",
            path.as_uri().replace("file:///", "FILE://localhost/"), f"data:image/png;base64,{base64_text}",
        ]  # fmt: skip
        for source in sources:
            np.testing.assert_array_equal(load_image(source), NOISE)
    assert picture_path(path.as_uri()) == picture_path(str(path)) == picture_path(path) == path
    assert picture_path(Path(path.as_uri())) == path  # a command line's
    assert picture_path("a%20b.png") == Path("a%20b.png")  # only an address is decoded


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("file://host/a.png", "a file on 'host'"),
        ("https://example.org/a.png", "'https://example.org/a.png' is an address on the network"),
        ("data:image/png;base64,@@", "not valid base64"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,aGVsbG8=", "the data: address of 5 bytes is text"),
    ],
)
def test_addresses_that_give_no_picture(address: str, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(address)
    assert said in str(caught.value)


def test_what_is_told_before_the_pixels_are_decoded() -> None:
    """The size as stored, before a damaged body is noticed; what it raises is raised."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(NOISE), "JPEG", exif=exif)[:-60]
    told: list[PictureHeader] = []
    with pytest.raises(ImageError, match="damaged"):
        load_image(data, told.append)
    assert (told[0].height_px, told[0].width_px) == NOISE.shape[:2]
    load_image(NOISE, told.append)
    assert len(told) == 2 and min(header.decoding_bytes for header in told) >= NOISE.nbytes

    def refuse(header: PictureHeader) -> None:
        raise UsageError(header.label)

    with pytest.raises(UsageError, match=f"picture of {len(data)} bytes"):
        load_image(data, refuse)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_of_many_strips_equals_one_of_a_single_strip(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sources = [noise, saved(Image.fromarray(noise), exif=exif), saved(Image.fromarray(noise[..., :3]), exif=exif)]
    sources.append(np.uint16(257) * noise[..., :3])
    whole = [load_image(source) for source in sources]
    for name in ("edgevlm.samples.STRIP_PIXELS", "edgevlm.image.STRIP_PIXELS"):
        monkeypatch.setattr(name, 1000)
    for source, expected in zip(sources, whole, strict=True):
        np.testing.assert_array_equal(load_image(source), expected)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(31, 17), (17, 60), (200, 40), (40, 200), (97, 30), (20, 83)])
def test_resizing_in_strips_changes_no_pixel(
    size: tuple[int, int], resample: Resample, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (97, 83, 3), dtype=np.uint8)
    expected = resize(noise, *size, resample)
    monkeypatch.setattr("edgevlm.image.WHOLE_PIXELS", 10)
    monkeypatch.setattr("edgevlm.image.STRIP_PIXELS", 700)
    np.testing.assert_array_equal(resize(noise, *size, resample), expected)


def test_image_key_sees_shape_and_pixels() -> None:
    other = NOISE.copy()
    other[3, 4, 1] ^= 1
    keys = {image_key(NOISE), image_key(other), image_key(NOISE.reshape(40, 30, 3)), image_key(NOISE[:, ::-1])}
    assert len(keys) == 4
    assert image_key(NOISE[:, ::-1]) == image_key(np.ascontiguousarray(NOISE[:, ::-1]))


# What a camera stores for an upright picture P under each orientation tag, by its definition in EXIF 2.3.
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format_name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](NOISE)))
    options = {"lossless": True} if format_name == "WEBP" else {}
    np.testing.assert_array_equal(load_image(saved(stored, format_name, exif=exif, **options)), NOISE)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_unknown_orientation_is_left_alone(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(load_image(saved(Image.fromarray(NOISE), exif=exif)), NOISE)


def test_broken_exif_is_left_alone() -> None:
    data = saved(Image.fromarray(NOISE), exif=b"Exif\0\0II*\0\xff\xff\xff\xffrubbish")
    np.testing.assert_array_equal(load_image(data), NOISE)


def test_alpha_is_composited_on_white() -> None:
    rgba = np.dstack([NOISE, np.full(NOISE.shape[:2], 255, np.uint8)])
    rgba[0, 0, 3], rgba[0, 1] = 0, (0, 0, 0, 128)
    for source in (saved(Image.fromarray(rgba)), saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), rgba):
        pixels = load_image(source)
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1].tolist() == [127, 127, 127]
        np.testing.assert_array_equal(pixels[1:], NOISE[1:])


def test_grey_with_alpha_one_bit_and_bool() -> None:
    grey_alpha = Image.merge("LA", (Image.new("L", (2, 1), 10), Image.new("L", (2, 1))))
    grey_alpha.putpixel((1, 0), (10, 255))
    assert load_image(saved(grey_alpha)).tolist() == [[[255] * 3, [10] * 3]]
    bits = np.array([[True, False]])
    assert load_image(saved(Image.fromarray(bits))).tolist() == [[[255] * 3, [0] * 3]]
    assert load_image(bits).tolist() == [[[255] * 3, [0] * 3]]
    assert load_image(NOISE[:, :, 0]).shape == load_image(NOISE[:, :, :1]).shape == (30, 40, 3)


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for x in range(3):
        picture.putpixel((x, 0), x)
    assert load_image(saved(picture)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert load_image(saved(picture, transparency=1)).tolist() == [[[10, 20, 30], [255] * 3, [70, 80, 90]]]
    assert load_image(saved(picture, transparency=b"\xff\x00\x80"))[0, 2].tolist() == [162, 167, 172]


def test_rgb_with_a_transparent_colour() -> None:
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert load_image(saved(picture, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 128, 129, 257, 30_000, 65_535]], np.uint16)
    expected = np.rint(wide[0] / 257).astype(int).tolist()
    for source in (saved(Image.fromarray(wide)), saved(Image.fromarray(wide), "TIFF"), wide):
        assert load_image(source)[0, :, 0].tolist() == expected
    assert load_image(np.dstack([wide] * 3))[0, :, 2].tolist() == expected
    pgm = b"P5 6 1 65535\n" + wide.astype(">u2").tobytes()
    assert load_image(pgm)[0, :, 0].tolist() == expected
    assert load_image(wide[..., None])[0, :, 1].tolist() == expected


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_equals_pillow(adobe: bool) -> None:
    data = saved(Image.fromarray(NOISE).resize((200, 150)).convert("CMYK"), "JPEG", quality=95)
    at = data.find(b"Adobe")
    if not adobe and at > 0:  # drop the APP14 segment, which says that the values are inverted
        length = int.from_bytes(data[at - 2 : at], "big")
        data = data[: at - 4] + data[at - 2 + length :]
    with Image.open(BytesIO(data)) as picture:
        assert picture.mode == "CMYK"
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load_image(data), expected)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(format_name: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = saved(frames[0], format_name, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(data).shape == (6, 8, 3)
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_jpeg_is_decoded_as_pillow_does(mode: str) -> None:
    data = encoded("JPEG", mode)
    with Image.open(BytesIO(data)) as picture:
        np.testing.assert_array_equal(load_image(data), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"miaf", b"MA1B"])
def test_avif_is_known_by_any_of_its_brands(brand: bytes) -> None:
    """HEIC has the main brand `mif1` too; what else a file says of itself decides."""
    data = encoded("AVIF")
    assert data[8:12] == b"avif" and b"avif" in data[16:40]
    np.testing.assert_array_equal(load_image(data[:8] + brand + data[12:]), load_image(data))


def test_one_pixel_and_panorama() -> None:
    assert load_image(saved(Image.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[9, 8, 7]]]
    assert load_image(saved(Image.new("L", (20_000, 40), 7))).shape == (40, 20_000, 3)


def test_large_but_allowed_needs_no_global_setting_and_warns_nobody() -> None:
    """A 100-megapixel header passes our check (Pillow's own would warn); its missing pixels are what fails."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="damaged"):
            load_image(png_header(10_000, 10_000))
    assert before == Image.MAX_IMAGE_PIXELS


PICTURES = {form.name: form for form in FORMS}
FILES = [
    encoded("JPEG"), encoded("PNG"), encoded("GIF", "P"), encoded("BMP"), encoded("WEBP"), encoded("PPM"),
    encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("PNG", "P"), encoded("JPEG2000"),
    *(PICTURES[name].make(np.random.default_rng(0))[0] for name in (
        "tiff grey 12 black is zero <", "tiff grey 16 white is zero <", "tiff palette 4 of 8-bit entries",
        "tiff rgb 8 < unsaid alpha zero", "png rgb 16 clear colour", "png grey 2 clear colour", "j2k 1 x 12",
        "j2k 3 x 4", "bmp 32 bgra header 108 alpha zero", "pnm P5 of 1000", "avif",
    )),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(FILES),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_files_give_a_picture_or_an_image_error(
    data: bytes, flips: list[tuple[float, int]], keep: float
) -> None:
    damaged = bytearray(data[: int(len(data) * keep)])
    for where, value in flips:
        if damaged:
            # Headers are where it hurts: half of the changes fall into the first 64 bytes.
            damaged[int(where * min(len(damaged), 64 if value % 2 else len(damaged)))] = value
    try:
        pixels = load_image(bytes(damaged))
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


@pytest.mark.parametrize("name", list(SCHEMES))
def test_normalize_is_the_processors_arithmetic(name: str) -> None:
    """Source of the order: transformers 5.24, image_transforms.py, rescale and normalize."""
    spec = SCHEMES[name][0]
    tiles = np.random.default_rng(1).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    rescaled = (tiles.astype(np.float64) * spec.rescale_factor).astype(np.float32)
    mean, std = np.array(spec.image_mean, np.float32), np.array(spec.image_std, np.float32)
    expected = ((rescaled - mean) / std).transpose(0, 3, 1, 2)
    result = normalize(tiles, spec)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    wrong = normalize(tiles, replace(spec, image_mean=(spec.image_mean[0] + 1e-3, *spec.image_mean[1:])))
    assert np.abs(wrong - expected).max() > 1e-4  # negative control


def test_resize_keeps_an_image_of_the_right_size() -> None:
    assert resize(NOISE, 30, 40, "bicubic") is NOISE
    assert resize(NOISE, 15, 50, "lanczos").shape == (15, 50, 3)


def test_tall_pictures_are_resized_vertically_first_under_any_pillow() -> None:
    """A picture that loses more than twice as much height as width; in the other order its levels differ by a few."""
    found = resize(NOISE[:, :20], 8, 16, "bicubic")  # 30 x 20 to 8 x 16
    np.testing.assert_array_equal(found, resize(resize(NOISE[:, :20], 8, 20, "bicubic"), 8, 16, "bicubic"))
    assert not np.array_equal(found, resize(resize(NOISE[:, :20], 30, 16, "bicubic"), 8, 16, "bicubic"))
    other = resize(NOISE, 20, 32, "bicubic")  # 30 x 40 to 20 x 32: 10 rows are not more than twice 8 columns
    np.testing.assert_array_equal(other, resize(resize(NOISE, 30, 32, "bicubic"), 20, 32, "bicubic"))
