"""Position tables against plain formulas, and, with torch installed, against torch itself."""

from __future__ import annotations

import numpy as np
import pytest

from export.archspec import RopeSpec
from export.graphs.positions import bicubic_table, bucket_positions, inverse_frequencies, rope_tables

LLAMA3 = RopeSpec(5e5, "llama3", factor=32.0, original_max_position_embeddings=8192)


def test_rope_table_turns_by_the_position() -> None:
    cosines, sines = rope_tables(inverse_frequencies(RopeSpec(10000.0), 8), 16)
    assert cosines.shape == sines.shape == (16, 4)
    assert np.allclose(cosines[3], np.cos(3 * 10000.0 ** -np.array([0, 0.25, 0.5, 0.75])), atol=1e-6)
    assert np.allclose(cosines**2 + sines**2, 1, atol=1e-6)


def test_linear_rope_divides_positions() -> None:
    stretched = rope_tables(inverse_frequencies(RopeSpec(10000.0, "linear", factor=4.0), 8), 16)[0]
    assert np.allclose(stretched[8], rope_tables(inverse_frequencies(RopeSpec(10000.0), 8), 16)[0][2], atol=1e-6)


def test_llama3_rope_keeps_short_waves_and_slows_long_ones() -> None:
    plain = inverse_frequencies(RopeSpec(5e5), 64)
    scaled = inverse_frequencies(LLAMA3, 64)
    assert np.array_equal(scaled[:8], plain[:8])
    assert np.allclose(scaled[-4:], plain[-4:] / 32)
    assert (np.diff(scaled) < 0).all()


def test_bicubic_weights_halfway_and_at_the_border() -> None:
    """Shrunk by two, each output lies halfway: its weights are -3/32, 19/32, 19/32, -3/32."""
    row = np.zeros((8, 8, 1), np.float32)
    row[:, 3] = 32.0
    assert bicubic_table(row, 4)[1, :, 0].tolist() == [0.0, 19.0, -3.0, 0.0]
    assert np.allclose(bicubic_table(np.ones((7, 7, 3), np.float32), 5), 1, atol=1e-6)
    table = np.random.RandomState(0).standard_normal((6, 6, 2)).astype(np.float32)
    assert np.allclose(bicubic_table(table, 6), table, atol=1e-6)


@pytest.mark.parametrize("side", [14, 16, 24, 26, 27, 32])
def test_buckets_of_published_towers_are_their_patches(side: int) -> None:
    assert bucket_positions(side, side).tolist() == list(range(side))


def test_buckets_repeat_float32_rounding() -> None:
    assert bucket_positions(19, 19).tolist() != list(range(19))
    assert bucket_positions(8, 16).tolist() == list(range(0, 16, 2))


@pytest.mark.reference
def test_against_torch() -> None:
    torch = pytest.importorskip("torch")
    table = np.random.RandomState(0).standard_normal((37, 37, 8)).astype(np.float32)
    for out in (5, 16, 18, 37, 50):
        chw = torch.from_numpy(table).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(chw, size=(out, out), mode="bicubic", align_corners=False)
        assert np.allclose(bicubic_table(table, out), expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
    for grid in range(2, 100):
        for n_patches in {grid, max(1, grid - 1), grid // 2 or 1, 2 * grid}:
            boundaries = torch.arange(1 / grid, 1.0, 1 / grid)
            steps = torch.arange(n_patches, dtype=torch.float32) * (1.0 / torch.tensor([n_patches]))
            expected = torch.bucketize(torch.clamp(steps, max=1.0 - 1e-6), boundaries, right=True)
            assert bucket_positions(n_patches, grid).tolist() == expected.tolist(), (grid, n_patches)


@pytest.mark.reference
@pytest.mark.parametrize("rope", [RopeSpec(1e5), RopeSpec(1e6, "linear", factor=8.0), LLAMA3])
def test_rope_against_transformers(rope: RopeSpec) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta, "factor": rope.factor}
    if rope.kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=8, rope_parameters=parameters, max_position_embeddings=16384
    )
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(2048)[None])
    found = rope_tables(inverse_frequencies(rope, 64), 2048)
    # One unit in the last place of a frequency is 2e-4 of an angle at position 2048.
    assert np.allclose(found[0], cosines[0, :, :32].numpy(), atol=3e-4)
    assert np.allclose(found[1], sines[0, :, :32].numpy(), atol=3e-4)
