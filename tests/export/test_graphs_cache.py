"""The decoder's cache: chunks, single tokens, and past and present bound to the same memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.telemetry import import_onnxruntime
from tests.export.graph_session import Graphs, build
from tests.golden.graph_cases import prompt_ids
from tests.tiny import make_llama

onnxruntime = import_onnxruntime()

CAPACITY = 48


@pytest.fixture(scope="module", params=["fp32", "w4g32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    directory = tmp_path_factory.mktemp("cache")
    return build(make_llama(directory / "checkpoint"), directory / "package", request.param)


def run_shared(model: Graphs, embeds: NDArray[np.float32], chunks: list[int]) -> NDArray[np.float32]:
    """Logits of all rows, through IOBinding with one full-capacity buffer per cache entry."""
    decoder, session = model.result.decoder, model.session("decoder_model_merged")
    assert decoder is not None
    shape = (1, decoder.num_key_value_heads, CAPACITY, decoder.head_dim)
    buffers = {
        entry.past_name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        for entry in decoder.cache
    }
    rows, n_past = [], 0
    for n_tokens in chunks:
        binding = session.io_binding()
        total = n_past + n_tokens
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds[:, n_past:total]))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(n_past, total)[None])
        binding.bind_cpu_input("num_logits_to_keep", np.array(0, np.int64))
        for entry in decoder.cache:
            binding.bind_ortvalue_input(entry.past_name, buffers[entry.past_name])
            binding.bind_ortvalue_output(entry.present_name, buffers[entry.past_name])
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        rows.append(binding.get_outputs()[-1].numpy()[0])
        n_past = total
    return np.concatenate(rows)


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 12], [13, 7], [1, 19]])
def test_shared_buffers_and_uneven_chunks(model: Graphs, chunks: list[int]) -> None:
    embeds = model.embed(prompt_ids())
    expected, _ = model.decode(embeds)
    # int8 activations are rounded per row, and rows do not depend on the chunk; only sums differ in their order.
    assert np.allclose(run_shared(model, embeds, chunks), expected, atol=2e-4, rtol=0)


def test_growing_cache_without_sharing(model: Graphs) -> None:
    embeds = model.embed(prompt_ids())
    expected, _ = model.decode(embeds)
    first, past = model.decode(embeds[:, :9])
    second, past = model.decode(embeds[:, 9:], past)
    assert past[0].shape[2] == 20
    assert np.allclose(np.concatenate([first, second]), expected, atol=2e-4, rtol=0)


def test_control_wrong_positions_are_noticed(model: Graphs) -> None:
    embeds = model.embed(prompt_ids())
    expected, _ = model.decode(embeds)
    spread = np.arange(20)[None] * 2
    assert not np.allclose(model.decode(embeds, position_ids=spread)[0], expected, atol=1e-2)


def test_shifted_positions_change_nothing(model: Graphs) -> None:
    """RoPE is relative: a whole prompt moved along gives the same logits.

    A value of an activation that lies between two int8 codes may fall to the other one; it moved logits of w4g32 by
    0.0075 (Zen 3, 2026-11-29). Wrong positions move them by 5, and by 1.0 in the mean.
    """
    embeds = model.embed(prompt_ids())
    expected, _ = model.decode(embeds)
    is_quantised = model.paths["decoder_model_merged"].stem.endswith("_q4")
    for shift in (1, 100, 400):
        moved = np.abs(model.decode(embeds, position_ids=np.arange(shift, shift + 20)[None])[0] - expected)
        assert np.median(moved) < 1e-5
        assert moved.max() < (0.02 if is_quantised else 1e-4)


def test_package_paths_stay_beside_the_graphs(model: Graphs) -> None:
    for graph in model.result.graphs:
        assert all(Path(data).parent == Path(graph.path).parent for data in graph.data)
        assert all((model.out / data).is_file() for data in graph.data)
