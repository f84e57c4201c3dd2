"""OnnxSession against a plain onnxruntime run without a cache (the slow twin)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.onnx import OnnxSession
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.errors import ContextFullError, PackageError, UsageError
from edgevlm.package import Package, open_package
from edgevlm.telemetry import import_onnxruntime
from tests.edgevlm.recompute import Recompute
from tests.edgevlm.tiny_package import (
    CONTEXT,
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    TILE_PX,
    TOKENS_PER_TILE,
    VOCAB,
    write_package,
)

onnxruntime = import_onnxruntime()

RNG = np.random.default_rng(7)


def ids(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, n)


def prefill(session: OnnxSession, *segments: Any, cancel: CancelToken | None = None) -> Any:
    n_tokens = sum(len(s) for s in segments)
    return session.prefill(segments, np.arange(session.n_past, session.n_past + n_tokens), cancel)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=0)


@pytest.fixture
def session(tiny: Path) -> OnnxSession:
    return OnnxSession(open_package(tiny), threads=1)


@pytest.fixture(scope="module")
def oracle(tiny: Path) -> Recompute:
    return Recompute(tiny)


@pytest.mark.parametrize("n_tokens", [1, 2, 127, 128, 129, 300])
def test_prefill_in_chunks_equals_one_shot(session: OnnxSession, oracle: Recompute, n_tokens: int) -> None:
    prompt = ids(n_tokens)
    got = prefill(session, prompt)
    expected = oracle.logits([prompt])
    close(got, expected[-1])
    assert session.n_past == n_tokens
    if n_tokens > 1:  # negative control: the row before must not pass
        assert np.abs(got - expected[-2]).max() > 0.1


def test_segments_of_features_and_ids_share_chunks(session: OnnxSession, oracle: Recompute) -> None:
    features = RNG.standard_normal((200, HIDDEN)).astype(np.float32)
    segments = [ids(50), features, ids(3, 1), features[:1], ids(100, 2)]
    close(prefill(session, *segments), oracle.logits(segments)[-1])
    assert [name for name, _, _ in session.timings.events if name.startswith("prefill")] == [
        "prefill 128 tokens",
        "prefill 128 tokens",
        "prefill 98 tokens",
    ]


def test_step_truncate_and_step_again(session: OnnxSession, oracle: Recompute) -> None:
    prompt = ids(20)
    prefill(session, prompt)
    for i, token in enumerate([5, 9, 200]):
        logits = session.step(token, 20 + i)
    close(logits, oracle.logits([np.array([*prompt, 5, 9, 200])])[-1])
    session.truncate(21)
    close(session.step(77, 21), oracle.logits([np.array([*prompt, 5, 77])])[-1])
    assert session.timings.n_decode_tokens == 4


def test_positions_reach_the_graph(session: OnnxSession, oracle: Recompute) -> None:
    prompt = ids(20)
    shifted = session.prefill([prompt], np.arange(20) * 2)
    assert np.abs(shifted - oracle.logits([prompt])[-1]).max() > 1e-3


def test_returned_logits_are_not_overwritten(session: OnnxSession) -> None:
    first = prefill(session, ids(5))
    kept = first.copy()
    session.step(3, 5)
    np.testing.assert_array_equal(first, kept)


def test_snapshot_and_restore(session: OnnxSession, tiny: Path) -> None:
    prefill(session, ids(30))
    saved = session.snapshot()
    first = [session.step(token, 30 + i) for i, token in enumerate([1, 2, 3])]
    session.truncate(10)
    prefill(session, ids(60, 3))
    session.restore(saved)
    assert session.n_past == 30
    again = [session.step(token, 30 + i) for i, token in enumerate([1, 2, 3])]
    np.testing.assert_array_equal(first, again)
    other = OnnxSession(open_package(tiny), context=64, threads=1)
    other.restore(saved)
    close(other.step(1, 30), first[0])


TREE = [(-1, 10), (0, 11), (0, 12), (1, 13), (2, 14), (2, 15), (5, 16), (-1, 17)]


def test_scored_tree_equals_stepping_each_path(session: OnnxSession, oracle: Recompute) -> None:
    prompt = ids(140)
    prefill(session, prompt)
    parents = np.array([parent for parent, _ in TREE])
    tokens = np.array([token for _, token in TREE])
    depth = np.zeros(len(TREE), np.int64)
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
        depth[node] = len(paths[node]) - 1
    logits = session.score(tokens, parents, 140 + depth)
    assert session.n_past == 140
    for node, path in enumerate(paths):
        close(logits[node], oracle.logits([np.array([*prompt, *tokens[path]])])[-1])
    for path in paths:  # each accepted path continues as if it had been stepped
        session.score(tokens, parents, 140 + depth)
        session.accept(np.array(path))
        assert session.n_past == 140 + len(path)
        expected = oracle.logits([np.array([*prompt, *tokens[path], 42])])[-1]
        close(session.step(42, session.n_past), expected)
        session.truncate(140)


def test_accept_refuses_what_is_no_path(session: OnnxSession) -> None:
    prefill(session, ids(5))
    with pytest.raises(UsageError, match="scored just before"):
        session.accept(np.array([0]))
    tokens, parents = np.array([1, 2, 3]), np.array([-1, 0, 0])
    session.score(tokens, parents, np.array([5, 6, 6]))
    for nodes in ([1], [0, 1, 2], [2, 0], [3], [-1]):
        with pytest.raises(UsageError, match="not a path"):
            session.accept(np.array(nodes))
    session.accept(np.array([0, 2]))
    with pytest.raises(UsageError, match="before its child"):
        session.score(tokens, np.array([-1, 2, 0]), np.array([5, 6, 6]))


def test_a_full_context_is_refused_with_the_numbers(tiny: Path) -> None:
    session = OnnxSession(open_package(tiny), context=16, threads=1)
    prefill(session, ids(16))
    with pytest.raises(ContextFullError, match=r"16 tokens are held and 1 more .* capacity is 16"):
        session.step(1, 16)
    session.truncate(10)
    with pytest.raises(ContextFullError, match="7 more"):
        prefill(session, ids(7))
    assert session.n_past == 10
    with pytest.raises(UsageError, match=f"1 to {CONTEXT}"):
        OnnxSession(open_package(tiny), context=CONTEXT + 1)


@pytest.mark.parametrize("n_tiles", [1, 3, 4, 6])
def test_tiles_run_in_batches_of_four_then_one(session: OnnxSession, tiny: Path, n_tiles: int) -> None:
    tiles = RNG.standard_normal((n_tiles, 3, TILE_PX, TILE_PX)).astype(np.float32)
    features = session.encode(tiles)
    assert features.shape == (n_tiles, TOKENS_PER_TILE, HIDDEN)
    plain = onnxruntime.InferenceSession(str(tiny / "onnx/vision_encoder.onnx"), providers=["CPUExecutionProvider"])
    close(features, plain.run(None, {"pixel_values": tiles})[0])
    batches = [name for name, _, _ in session.timings.events if name.startswith("encode")]
    assert batches == ["encode 4 tiles"] * (n_tiles // 4) + ["encode 1 tile"] * (n_tiles % 4)


def test_release_vision_and_kv(session: OnnxSession, oracle: Recompute) -> None:
    tiles = RNG.standard_normal((1, 3, TILE_PX, TILE_PX)).astype(np.float32)
    assert not session.memory().vision_loaded
    first = session.encode(tiles)
    with_vision = session.memory()
    session.release("vision")
    session.release("vision")
    assert with_vision.vision_loaded and not session.memory().vision_loaded
    assert session.memory().weights_bytes < with_vision.weights_bytes
    np.testing.assert_array_equal(session.encode(tiles), first)
    prefill(session, ids(9))
    assert session.memory().kv_bytes == 2 * 2 * CONTEXT * KV_HEADS * HEAD_DIM * 4
    session.release("kv")
    assert session.memory().kv_bytes == 0 and session.n_past == 0
    close(prefill(session, ids(9, 4)), oracle.logits([ids(9, 4)])[-1])


def test_cancel_inside_prefill_keeps_whole_chunks(session: OnnxSession, oracle: Recompute) -> None:
    prompt = ids(400)
    seen: list[int] = []
    original, token = session._decode, CancelToken()

    def decode(*args: Any, **kwargs: Any) -> Any:
        seen.append(session.n_past)
        if len(seen) == 3:
            token.set()
        return original(*args, **kwargs)

    session._decode = decode  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        prefill(session, prompt, cancel=token)
    session._decode = original  # type: ignore[method-assign]
    assert session.n_past == 256
    close(prefill(session, prompt[256:]), oracle.logits([prompt])[-1])


def test_cancel_between_tile_batches_and_nothing_sticks(session: OnnxSession) -> None:
    tiles = np.zeros((9, 3, TILE_PX, TILE_PX), np.float32)
    session.encode(tiles[:1])
    before = session.timings.n_tiles
    original, token = session.timings.record, CancelToken()

    def record(name: str, start_s: float) -> float:
        if name.startswith("encode"):
            token.set()
        return original(name, start_s)

    session.timings.record = record  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        session.encode(tiles, token)
    assert session.timings.n_tiles == before + 4
    session.timings.record = original  # type: ignore[method-assign]
    assert len(session.encode(tiles)) == 9


def test_a_tower_and_the_language_model_run_side_by_side(session: OnnxSession) -> None:
    tiles = RNG.standard_normal((4, 3, TILE_PX, TILE_PX)).astype(np.float32)
    expected_features, expected_logits = session.encode(tiles), prefill(session, ids(300))
    results: list[Any] = []
    worker = threading.Thread(target=lambda: results.extend(session.encode(tiles) for _ in range(50)))
    worker.start()
    for _ in range(10):
        session.truncate(0)
        np.testing.assert_array_equal(prefill(session, ids(300)), expected_logits)
    worker.join()
    for features in results:
        np.testing.assert_array_equal(features, expected_features)


def test_graphs_that_break_the_contract_are_refused(tiny: Path, tiny_text: Path) -> None:
    from dataclasses import replace

    package = open_package(tiny)
    manifest = package.manifest
    decoder = manifest.decoder

    def opened(**changes: Any) -> None:
        OnnxSession(Package(tiny, replace(manifest, decoder=replace(decoder, **changes))), threads=1)

    with pytest.raises(PackageError, match=r"inputs_embeds.* should be 33"):
        opened(hidden_size=33)
    with pytest.raises(PackageError, match=r"logits.* should be 999"):
        opened(vocab_size=999)
    with pytest.raises(PackageError, match=r"unknown input 'past_key_values.1.key'"):
        opened(cache=decoder.cache[:2])
    with pytest.raises(PackageError, match=r"no input 'past_key_values.9.key'"):
        opened(cache=(*decoder.cache, replace(decoder.cache[0], past_name="past_key_values.9.key")))
    with pytest.raises(PackageError, match="no graph 'vision_encoder'"):
        OnnxSession(open_package(tiny_text), threads=1).encode(np.zeros((1, 3, TILE_PX, TILE_PX), np.float32))


def test_wrong_calls(session: OnnxSession) -> None:
    with pytest.raises(UsageError, match="no new token"):
        session.prefill([], np.zeros(0, np.int64))
    with pytest.raises(UsageError, match="33 wide"):
        prefill(session, np.zeros((4, 33), np.float32))
    with pytest.raises(UsageError, match="cannot keep 9"):
        session.truncate(9)
    with pytest.raises(UsageError, match="threads is 0"):
        OnnxSession(session.package, threads=0)


def test_two_seeds_make_two_models(tmp_path: Path, tiny: Path) -> None:
    """The oracle comparison would be empty if weights did not matter."""
    other = OnnxSession(open_package(write_package(tmp_path / "other", seed=5)), threads=1)
    logits = prefill(other, ids(20))
    assert logits.shape == (VOCAB,)
    assert np.abs(logits - Recompute(tiny).logits([ids(20)])[-1]).max() > 1
