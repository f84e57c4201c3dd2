"""Rows that the demo's model is trained on: what is left out moves nothing that is shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "assets/demo"))
pytest.importorskip("torch", reason="lessons are torch's")
pytest.importorskip("matplotlib", reason="the pictures' fonts are matplotlib's")

pytestmark = pytest.mark.reference

LANGUAGE: Any = SimpleNamespace(
    prefix_ids=[1, 2, 3], after="<after>", next_turn="<next>", eos=0, ids=lambda text: [ord(c) for c in text]
)


@pytest.fixture(scope="module")
def lessons() -> Any:
    return pytest.importorskip("lessons")


@pytest.fixture(scope="module")
def example(lessons: Any) -> Any:
    """A screenshot: many tiles, most of them empty ground."""
    return lessons.scene_example("train", 3, "screenshot")


def places(packed: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Positions of the row's picture tokens; (id, position) of the tokens whose next one is asked for."""
    ((_, start, count),) = packed.image
    shown = packed.positions[0, start : start + count].tolist()
    text = [(int(packed.ids[0, c]), int(packed.positions[0, c])) for c in packed.columns]
    return shown, text


def test_a_thinned_picture_keeps_what_it_shows_and_every_position(lessons: Any, example: Any) -> None:
    rng = np.random.default_rng(0)
    thin = lessons.thinned(example, rng, 0.1)
    found = lessons.cells(example)
    busy = np.flatnonzero(((found.shape > 0) | (found.first > 0)).ravel())
    assert len(busy) > 20 and set(busy) <= set(thin.kept)
    assert {index // lessons.TILE_TOKENS for index in thin.kept} == {index // lessons.TILE_TOKENS for index in busy}
    assert thin.n_tokens < 0.6 * example.n_tokens and thin.n_places == example.n_places

    for chained in (False, True):
        whole, thinned = (lessons.pack(LANGUAGE, [e], [chained]) for e in (example, thin))
        shown, asked = places(whole)
        shown_thin, asked_thin = places(thinned)
        assert asked_thin == asked and thinned.targets.tolist() == whole.targets.tolist()
        assert shown_thin == [shown[index] for index in thin.kept]


def test_with_all_tokens_kept_the_row_is_the_whole_picture_s(lessons: Any, example: Any) -> None:
    everything = replace(example, kept=np.arange(example.n_places))
    one, other = (lessons.pack(LANGUAGE, [e], [False]) for e in (example, everything))
    assert (one.ids == other.ids).all() and (one.positions == other.positions).all() and (one.sees == other.sees).all()
    moved = replace(everything, kept=everything.kept[::2])
    assert lessons.pack(LANGUAGE, [moved], [False]).positions.shape != one.positions.shape


def test_a_row_is_no_longer_than_was_said(lessons: Any, example: Any) -> None:
    for each in (example, lessons.thinned(example, np.random.default_rng(1), 0.2)):
        packed = lessons.pack(LANGUAGE, [each], [False])
        assert packed.ids.shape[1] - lessons.PAD_TO < lessons.row_length(LANGUAGE, each)
        assert packed.columns[-1] < lessons.row_length(LANGUAGE, each)


def drawn(lessons: Any, *shapes: tuple[str, str, float, float]) -> Any:
    """A 224 px picture's example of (shape, color, x, y) in token units, each one token and a half around."""
    import scenes
    from PIL import Image

    marks = [
        scenes.Mark((28 * (x - 0.8), 28 * (y - 0.8), 28 * (x + 0.8), 28 * (y + 0.8)), label, color)
        for label, color, x, y in shapes
    ]
    return lessons.as_example(Image.new("RGB", (224, 224), "white"), [], marks)


def test_a_count_goes_on_where_a_shape_begins(lessons: Any) -> None:
    low, blue, cross, last = shapes = [
        ("star", "red", 6.5, 5.5), ("star", "blue", 1.5, 1.5), ("cross", "red", 5.5, 1.5), ("star", "red", 1.5, 6.5)
    ]  # fmt: skip
    labels = lessons.ordinals(drawn(lessons, *shapes))
    in_order = [labels[int(y) * lessons.SIDE + int(x)].tolist() for _, _, x, y in (blue, cross, low, last)]
    assert in_order == [[1, 1, 1, 1], [2, 1, 1, 2], [3, 2, 2, 3], [4, 3, 3, 4]]
    assert labels[0].tolist() == [lessons.IGNORED] * 3 + [0] and labels[-1].tolist() == [lessons.IGNORED] * 3 + [4]
    hidden = drawn(lessons, *shapes, ("circle", "red", 1.5, 6.5))
    assert (lessons.ordinals(hidden) == lessons.IGNORED).all()


def test_only_the_first_tile_is_counted(lessons: Any, example: Any) -> None:
    labels = lessons.ordinals(example)
    assert (labels[: lessons.TILE_TOKENS, 3] >= 0).all() and (labels[lessons.TILE_TOKENS :] == lessons.IGNORED).all()


def test_what_is_read_is_spelt(lessons: Any) -> None:
    import scenes

    pieces = SimpleNamespace(ids=lambda text: [len(text)])
    asked = {c: lessons.answer_ids(pieces, scenes.Question("?", "door", c)) for c in ("word", "number", "shape")}
    assert asked == {"word": [1] * 4, "number": [1] * 4, "shape": [4]}


def test_attention_in_products_is_torch_s() -> None:
    import torch

    networks = pytest.importorskip("networks")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 16, generator=generator) for heads in (6, 2, 2))
    sees = torch.rand(2, 1, 7, 7, generator=generator) < 0.5
    sees |= torch.eye(7, dtype=torch.bool)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=0.3, enable_gqa=True
    )
    actual, _ = networks.attend(torch.nn.Identity(), query, key, value, sees, 0.3)
    torch.testing.assert_close(actual.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
    other, _ = networks.attend(torch.nn.Identity(), query, key, value, torch.ones_like(sees), 0.3)
    assert (other - actual).abs().max() > 0.1


def test_a_linear_computes_with_its_weight_as_the_package_stores_it() -> None:
    import torch

    from export.quant.scheme import parse_scheme, stored_weight

    networks = pytest.importorskip("networks")
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 16)
    x = torch.randn(5, 64)
    plain = linear(x)
    update = networks.LowRank(linear.requires_grad_(False), 4)
    update.up.data.normal_(0, 0.1)
    updated = linear.weight + networks.SCALE * update.up @ update.down
    stored, _ = stored_weight(updated.detach().numpy(), parse_scheme("w4g32"))
    update.store(parse_scheme("w4g32"))
    expected = {"base": linear.weight, "updated": updated, "stored": torch.from_numpy(stored)}
    for form, weight in expected.items():
        update.form = form
        torch.testing.assert_close(update(x), torch.nn.functional.linear(x, weight, linear.bias))
    assert (update(x) - torch.nn.functional.linear(x, updated, linear.bias)).abs().max() > 0.01
    assert (plain - torch.nn.functional.linear(x, updated, linear.bias)).abs().max() > 0.1
    # the update learns as if nothing had been rounded
    gradients = []
    for form in ("updated", "stored"):
        update.form = form
        gradients.append(torch.autograd.grad(update(x).sum(), (update.down, update.up)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_the_package_stores_in_4_bits_is_rounded() -> None:
    import torch

    from export.quant.rules import QuantPlan

    networks = pytest.importorskip("networks")
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    updates = {name: networks.LowRank(torch.nn.Linear(64, 16).requires_grad_(False), 4) for name in names}
    language = SimpleNamespace(updates=updates, PREFIX=networks.Language.PREFIX)

    def moved() -> list[bool]:
        return [not torch.equal(update.rounded, update.linear.weight) for update in updates.values()]

    networks.Language.store(language, QuantPlan("fp32"))
    assert moved() == [False, False]
    eight = ((r"language_model\.model\.layers\.(0)\.mlp\.up_proj\.weight", "w8"),)
    networks.Language.store(language, QuantPlan("w4g32-mix", overrides=eight))
    assert moved() == [False, True]


def test_what_is_known_halfway_counts_only_where_it_is_asked(lessons: Any) -> None:
    import torch

    heads = pytest.importorskip("heads")
    torch.manual_seed(0)
    midway, states = heads.Midway(8), torch.randn(5, 8)
    labels = torch.full((5, 6), lessons.IGNORED)
    assert midway.loss(states, labels).item() == 0
    labels[:, 0] = 3  # the first character, of every token
    with torch.no_grad():
        midway.heads[0].bias[3] += 50
    right = midway.loss(states, labels).item()
    labels[4, 0] = 4
    assert right < 1e-3 < 1 < midway.loss(states, labels).item()


def test_without_the_downsampler_a_patch_gives_what_four_equal_ones_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from safetensors.numpy import load_file

    unmerged = pytest.importorskip("unmerged")
    source = Path(unmerged.__file__).parent
    monkeypatch.setattr(sys, "argv", ["unmerged.py", "--start", str(source), "--out", str(tmp_path)])
    unmerged.main()
    assert json.loads((tmp_path / "composed.json").read_text())["scale_factor"] == 1
    merging, single = (
        load_file(folder / "projector.safetensors")["downsampler.weight"].astype(np.float32)
        for folder in (source, tmp_path)
    )
    patch = np.random.default_rng(0).standard_normal(single.shape[1]).astype(np.float32)
    expected = merging @ np.tile(patch, 4)
    np.testing.assert_allclose(single @ patch, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    other = merging @ np.concatenate([patch, -patch, patch, -patch])
    assert np.abs(other - expected).max() > 0.1 * np.abs(expected).max()
