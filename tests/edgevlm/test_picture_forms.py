"""Every form of picture file against Pillow's RGB, or against what its samples say."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from edgevlm.errors import ImageError
from edgevlm.image import FORMATS, load_image
from tests.edgevlm.picture_forms import FORMS, Form

N_SLOW = 6
"""Pictures of each form in the long run."""


def compare(form: Form, seed: int) -> bool:
    """Compares one random picture; returns whether another reading of it (a negative) would have been noticed."""
    data, expected = form.make(np.random.default_rng([seed, *form.name.encode()]))
    found = load_image(data).astype(np.float64)
    assert found.shape == expected.shape, f"{form.name}, seed {seed}"
    difference = np.abs(found - expected).max()
    assert difference <= form.levels, f"{form.name}, seed {seed}: {difference:.2f} levels off"
    return bool(np.abs(255 - found - expected).max() > form.levels)


def test_the_forms_are_many_and_distinct() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)
    assert {form.format for form in FORMS} == set(FORMATS)
    assert len(FORMS) >= 20 and N_SLOW * len(FORMS) >= 500


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_picture_of_every_form(form: Form) -> None:
    assert compare(form, 0), "a negative of this picture looks the same"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_pictures_of_every_form(form: Form) -> None:
    would_notice = [compare(form, seed) for seed in range(1, 1 + N_SLOW)]
    assert any(would_notice)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_picture_that_pillow_has_opened_is_read_as_its_file_is(form: Form) -> None:
    data, _ = form.make(np.random.default_rng(7))
    if form.by_pillow:
        with Image.open(BytesIO(data)) as picture:
            np.testing.assert_array_equal(load_image(picture), load_image(data))
    else:
        with pytest.raises((UnidentifiedImageError, ImageError)), Image.open(BytesIO(data)) as picture:
            load_image(picture)
