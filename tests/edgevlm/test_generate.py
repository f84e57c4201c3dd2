"""The loop against greedy decoding by full recomputation; stop texts, cancel, refusals, streaming."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.onnx import OnnxSession
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.errors import BackendError, UsageError
from edgevlm.generate import (
    GenerationOptions,
    PictureRun,
    Prompt,
    Response,
    StopMatcher,
    TokenLoop,
    generation_options,
)
from edgevlm.package import open_package
from edgevlm.sampling import SamplingParams
from edgevlm.spec import GenerationSpec
from edgevlm.strict_json import to_json
from tests.edgevlm.recompute import Recompute
from tests.edgevlm.tiny_package import CONTEXT, HIDDEN, IMAGE, TOKENS_PER_TILE

FEATURES = np.random.default_rng(3).standard_normal((5 * TOKENS_PER_TILE, HIDDEN)).astype(np.float32)


class Letters:
    """A decoder of one letter per token."""

    def push(self, token_id: int) -> str:
        return chr(ord("a") + token_id % 26)

    def finish(self) -> str:
        return "."


def ids(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, n)


def prompt_of(*parts: Any) -> Prompt:
    return Prompt(parts, IMAGE)


def features(key: Hashable) -> Any:
    assert key == "cat"
    return FEATURES


def run(loop: TokenLoop, prompt: Prompt, n: int = 12, cancelled: CancelToken | None = None, **options: Any) -> Any:
    """Returns the pieces of text and the response."""
    chosen = GenerationOptions(max_new_tokens=n, **options)
    chunks = list(loop.run(prompt, features, Letters(), chosen, cancelled or CancelToken()))
    assert chunks[-1].response is not None and all(chunk.response is None for chunk in chunks[:-1])
    return [chunk.text for chunk in chunks], chunks[-1].response


def greedy(oracle: Recompute, parts: list[Any], n: int) -> list[int]:
    return oracle.greedy(parts, n)


@pytest.fixture
def session(tiny: Path) -> OnnxSession:
    """A session whose rows the loop takes for equal however they were computed, as the native engine's are."""
    session = OnnxSession(open_package(tiny), threads=1)
    session.reuse_step = 1
    return session


@pytest.fixture
def loop(session: OnnxSession) -> TokenLoop:
    return TokenLoop(session, ())


@pytest.fixture(scope="module")
def oracle(tiny: Path) -> Recompute:
    return Recompute(tiny)


@pytest.mark.parametrize("n_prompt", [1, 7, 128, 200])
def test_greedy_equals_full_recomputation(loop: TokenLoop, oracle: Recompute, n_prompt: int) -> None:
    prompt = ids(n_prompt, n_prompt)
    _, response = run(loop, prompt_of(prompt))
    assert list(response.token_ids) == greedy(oracle, [prompt], 12)
    assert response.finish_reason == "length"
    assert (response.n_prompt_tokens, response.n_image_tokens) == (n_prompt, 0)


def test_pictures_and_text_equal_full_recomputation(loop: TokenLoop, oracle: Recompute) -> None:
    parts = [ids(10), PictureRun("cat", 0, 8), ids(3, 1), PictureRun("cat", 8, 12), ids(9, 2)]
    _, response = run(loop, prompt_of(*parts))
    rows = [ids(10), FEATURES[:8], ids(3, 1), FEATURES[8:20], ids(9, 2)]
    assert list(response.token_ids) == greedy(oracle, rows, 12)
    assert response.n_image_tokens == 20 and response.n_prompt_tokens == 42
    rows[1] = FEATURES[1:9]  # negative control: one row further gives another answer
    assert list(response.token_ids) != greedy(oracle, rows, 12)


@pytest.mark.parametrize("n_shared", [0, 1, 5, 13, 25, 41, 42])
def test_a_shared_prefix_is_reused_and_changes_nothing(session: OnnxSession, tiny: Path, n_shared: int) -> None:
    parts = [ids(10), PictureRun("cat", 0, 20), ids(12, 2)]
    loop = TokenLoop(session, ())
    run(loop, prompt_of(*parts))
    first = prompt_of(*parts)
    tail = ids(30, 9)
    # the new prompt shares exactly n_shared tokens: cut the parts there
    cut: list[Any] = []
    left = n_shared
    for part in parts:
        size = part.n_rows if isinstance(part, PictureRun) else len(part)
        take = min(size, left)
        left -= take
        if take:
            cut.append(PictureRun(part.picture, part.first_row, take) if isinstance(part, PictureRun) else part[:take])
    prompt = prompt_of(*cut, tail)
    n_common = n_shared + int(n_shared < 42 and prompt.keys[n_shared] == first.keys[n_shared])
    before = session.timings.n_prefill_tokens
    _, reused = run(loop, prompt)
    assert reused.n_reused_tokens >= n_common
    assert session.timings.n_prefill_tokens - before == len(prompt.keys) - reused.n_reused_tokens
    _, fresh = run(TokenLoop(OnnxSession(open_package(tiny), threads=1), ()), prompt)
    assert reused.token_ids == fresh.token_ids and fresh.n_reused_tokens == 0


def test_an_answer_is_reused_and_an_equal_prompt_computes_one_token(loop: TokenLoop, session: OnnxSession) -> None:
    prompt = ids(20)
    _, first = run(loop, prompt_of(prompt), 8)
    _, again = run(loop, prompt_of(prompt), 8)
    assert again.token_ids == first.token_ids and again.n_reused_tokens == 19
    longer = np.array([*prompt, *first.token_ids, 3, 4])
    _, third = run(loop, prompt_of(longer), 2)
    assert third.n_reused_tokens == 20 + 7  # the last token was never fed


def test_another_picture_under_equal_text_is_not_reused(loop: TokenLoop) -> None:
    run(loop, prompt_of(ids(5), PictureRun("cat", 0, 4), ids(5)))
    other = prompt_of(ids(5), PictureRun("dog", 0, 4), ids(5))
    chunks = loop.run(other, lambda key: -FEATURES, Letters(), GenerationOptions(2), CancelToken())
    assert [chunk.response for chunk in chunks][-1].n_reused_tokens == 5  # type: ignore[union-attr]


def test_sampling_is_repeatable(loop: TokenLoop) -> None:
    def sample(seed: int) -> Any:
        return run(loop, prompt_of(ids(9)), sampling=SamplingParams(temperature=1.0, seed=seed))[1].token_ids

    assert sample(1) == sample(1) != sample(2)


def test_the_penalty_counts_the_prompt(loop: TokenLoop, oracle: Recompute) -> None:
    favourite = greedy(oracle, [ids(9)], 1)[0]
    prompt = np.array([favourite, *ids(9)])
    plain = greedy(oracle, [prompt], 1)[0]
    penalised = run(loop, prompt_of(np.array([plain, *prompt])), 1, sampling=SamplingParams(repetition_penalty=50.0))[1]
    assert penalised.token_ids[0] not in set(prompt.tolist())


def test_every_end_token_ends(session: OnnxSession, oracle: Recompute) -> None:
    expected = greedy(oracle, [ids(9)], 12)
    for n_kept in (0, 4):
        eos = expected[n_kept]
        first = expected.index(eos)
        texts, response = run(TokenLoop(session, (9999, eos)), prompt_of(ids(9)))
        assert list(response.token_ids) == expected[:first] and response.finish_reason == "stop"
        assert len(texts) == first + 2


def test_stop_texts_end_the_answer_before_them(loop: TokenLoop) -> None:
    texts, plain = run(loop, prompt_of(ids(9)))
    answer = plain.text[:-1]
    stop = answer[5:8]
    at = answer.index(stop)
    texts, response = run(loop, prompt_of(ids(9)), stop=("never there", stop))
    assert response.text == "".join(texts) == answer[:at] and response.finish_reason == "stop"
    assert len(response.token_ids) == at + 3


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_stop_matcher_equals_a_search_in_the_whole_text(size: int) -> None:
    stops = ("STOP", "STAB", "\n\n", "é!")
    for text in ("abSTOPcd", "SSTOSTAB", "ST", "a\n\n", "x\nSTO", "caf\u00e9 caf\u00e9! S", "STSTOP", "nothing", ""):
        matcher, shown = StopMatcher(stops), ""
        for i in range(0, len(text), size):
            shown += matcher.push(text[i : i + size])
            assert not any(stop in shown for stop in stops)
            if matcher.stopped:
                break
        if not matcher.stopped:
            shown += matcher.finish()
        ends = [text.find(stop) for stop in stops if stop in text]
        assert shown == (text[: min(ends)] if ends else text)
        assert matcher.stopped == bool(ends)


def test_text_is_shown_as_soon_as_no_stop_text_can_begin_in_it() -> None:
    matcher = StopMatcher(("<end>",))
    assert [matcher.push(piece) for piece in ("a<", "b", "<e", "nd", "x")] == ["a", "<b", "", "", "<endx"]


@pytest.mark.parametrize("n_steps", [0, 1, 5])
def test_cancel_between_tokens_keeps_what_was_said(loop: TokenLoop, session: OnnxSession, n_steps: int) -> None:
    cancelled = CancelToken()
    chunks = loop.run(prompt_of(ids(9)), features, Letters(), GenerationOptions(12), cancelled)
    texts = [next(chunks).text for _ in range(n_steps)]
    cancelled.set()
    rest = list(chunks)
    response = rest[-1].response
    assert response is not None and response.finish_reason == "cancelled"
    assert len(response.token_ids) == n_steps and response.text.startswith("".join(texts))
    _, after = run(loop, prompt_of(ids(9)))
    assert after.n_reused_tokens == (0 if n_steps == 0 else 8)
    assert list(after.token_ids[:n_steps]) == list(response.token_ids)


def test_cancel_inside_prefill_reuses_the_chunks_done(loop: TokenLoop, session: OnnxSession, oracle: Recompute) -> None:
    original, calls, token = session._decode, [], CancelToken()

    def decode(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            token.set()
        return original(*args, **kwargs)

    session._decode = decode  # type: ignore[method-assign]
    _, response = run(loop, prompt_of(ids(300)), cancelled=token)
    session._decode = original  # type: ignore[method-assign]
    assert response.finish_reason == "cancelled" and response.token_ids == ()
    _, again = run(loop, prompt_of(ids(300)))
    assert again.n_reused_tokens == 128
    assert list(again.token_ids) == greedy(oracle, [ids(300)], 12)


def test_cancel_while_waiting_for_a_picture(loop: TokenLoop) -> None:
    def waits(key: Hashable) -> Any:
        raise Cancelled

    prompt = prompt_of(ids(5), PictureRun("cat", 0, 4), ids(5))
    chunks = list(loop.run(prompt, waits, Letters(), GenerationOptions(3), CancelToken()))
    assert chunks[-1].response is not None and chunks[-1].response.finish_reason == "cancelled"
    assert run(loop, prompt)[1].finish_reason == "length"


def test_a_stream_that_is_dropped_leaves_the_loop_usable(loop: TokenLoop, oracle: Recompute) -> None:
    chunks = loop.run(prompt_of(ids(9)), features, Letters(), GenerationOptions(12), CancelToken())
    next(chunks)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    _, response = run(loop, prompt_of(ids(9)))
    assert list(response.token_ids) == greedy(oracle, [ids(9)], 12)


def test_the_context_ends_the_answer(tiny: Path) -> None:
    session = OnnxSession(open_package(tiny), context=20, threads=1)
    _, response = run(TokenLoop(session, ()), prompt_of(ids(15)), 100)
    assert response.finish_reason == "length" and len(response.token_ids) == 6 and session.n_past == 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(loop: TokenLoop, session: OnnxSession, value: float) -> None:
    original = session.step

    def step(token: int, position: int, cancel: CancelToken | None = None) -> Any:
        logits = original(token, position, cancel)
        logits[17] = value
        return logits

    session.step = step  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not finite after 10 tokens"):
        run(loop, prompt_of(ids(9)))
    session.step = original  # type: ignore[method-assign]
    assert run(loop, prompt_of(ids(9)))[1].finish_reason == "length"


def whole_chunks(tiny: Path) -> TokenLoop:
    """The loop as onnxruntime needs it: sums differ in their order between one row and many."""
    return TokenLoop(OnnxSession(open_package(tiny), threads=1), ())


def test_only_whole_chunks_of_prefill_are_reused(tiny: Path, oracle: Recompute) -> None:
    """Not the rows of a chunk's rest, nor those of an answer, which were computed in other company."""
    loop = whole_chunks(tiny)
    prompt = ids(200)
    _, first = run(loop, prompt_of(prompt), 70)
    _, again = run(loop, prompt_of(prompt), 70)
    assert again.n_reused_tokens == 128 and again.token_ids == first.token_ids
    longer = np.array([*prompt, *first.token_ids, *ids(9)])
    _, third = run(loop, prompt_of(longer), 4)
    assert third.n_reused_tokens == 128  # 256 rows are there, the second chunk as a rest and single steps
    _, fourth = run(loop, prompt_of(np.array([*longer, 1])), 4)
    assert fourth.n_reused_tokens == 256
    assert list(fourth.token_ids) == greedy(oracle, [np.array([*longer, 1])], 4)
    assert run(loop, prompt_of(ids(100)), 4)[1].n_reused_tokens == 0


def test_a_cancelled_prefill_leaves_whole_chunks(tiny: Path) -> None:
    loop = whole_chunks(tiny)
    session: Any = loop._session
    original, token = session._decode, CancelToken()

    def decode(n_rows: int, positions: Any, n_past: int, *args: Any, **kwargs: Any) -> Any:
        if n_past == 128:
            token.set()
        return original(n_rows, positions, n_past, *args, **kwargs)

    session._decode = decode
    assert run(loop, prompt_of(ids(300)), cancelled=token)[1].finish_reason == "cancelled"
    session._decode = original
    assert run(loop, prompt_of(ids(300)))[1].n_reused_tokens == 128


def test_a_cancel_before_the_first_stage_ends_the_call(loop: TokenLoop, session: OnnxSession) -> None:
    run(loop, prompt_of(ids(9)), 3)
    token, before = CancelToken(), session.timings.n_prefill_tokens
    token.set()
    prompt = prompt_of(ids(4), PictureRun("cat", 0, 4), ids(5, 1))
    _, response = run(loop, prompt, cancelled=token)
    assert response.finish_reason == "cancelled" and response.token_ids == ()
    assert session.timings.n_prefill_tokens == before and session.n_past == 4
    assert run(loop, prompt)[1].finish_reason == "length"  # and no later one


@pytest.mark.parametrize("image_id", [IMAGE, 7])
def test_placeholders_are_no_history(session: OnnxSession, oracle: Recompute, image_id: int) -> None:
    """Pictures' rows are penalised as no id: past the head there is no logit, and inside it nobody has said it."""
    n_rows, text = 12, ids(9)
    prompt = Prompt((text, PictureRun("cat", 0, n_rows)), image_id)
    penalty = 3.0
    logits = oracle.logits([text, FEATURES[:n_rows]])[-1]
    expected = logits.copy()
    for token in set(text.tolist()):
        expected[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    seen: list[Any] = []
    loop = TokenLoop(session, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgevlm.sampling.Sampler.filter", lambda self, found: seen.append(found) or found)
        run(loop, prompt, 1, sampling=SamplingParams(temperature=1.0, repetition_penalty=penalty, seed=1))
    np.testing.assert_allclose(seen[0], expected, atol=2e-3)
    assert len(prompt.text_ids()) == 9 and len(prompt.ids()) == 9 + n_rows


def options_table() -> list[dict[str, Any]]:
    table = json.loads((Path(__file__).parents[1] / "generation_options.json").read_text())
    return list(table["rows"])


@pytest.mark.parametrize("row", options_table(), ids=str)
def test_options_table(row: dict[str, Any]) -> None:
    """The rows that android_demo's OptionsChecks runs too: written by hand, not computed."""
    package = GenerationSpec((2,), **row["package"])
    if row.get("refused"):
        with pytest.raises(UsageError, match="expected"):
            generation_options(package, **row["given"])
        return
    found = generation_options(package, **row["given"]).sampling
    assert {name: getattr(found, name) for name in row["expected"]} == row["expected"]


def test_options_follow_the_package_unless_given() -> None:
    plain = GenerationSpec((2,), temperature=0.6, top_k=50, top_p=0.9)
    assert generation_options(plain).sampling.temperature == 0.0
    assert generation_options(plain, top_p=0.5).sampling == SamplingParams(0.6, 50, 0.5)
    assert generation_options(plain, temperature=0.0).sampling.temperature == 0.0
    sampling = GenerationSpec((2,), do_sample=True, temperature=0.6, top_k=50, min_p=0.1, repetition_penalty=1.1)
    assert generation_options(sampling, seed=4).sampling == SamplingParams(0.6, 50, 1.0, 0.1, 1.1, 4)
    assert generation_options(plain, stop="x").stop == ("x",)
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        generation_options(plain, max_new_tokens=0)
    with pytest.raises(UsageError, match="stop text is empty"):
        generation_options(plain, stop=("a", ""))


def test_a_response_is_json(loop: TokenLoop) -> None:
    _, response = run(loop, prompt_of(ids(9)), 3)
    assert isinstance(response, Response)
    data = json.loads(json.dumps(to_json(response)))
    assert data["token_ids"] == list(response.token_ids)
    assert data["timings"]["prefill_s"] > 0 and data["decode_tok_per_s"] > 0 and data["peak_memory_bytes"] > 1 << 20


def test_a_prompt_splits_anywhere() -> None:
    prompt = prompt_of(np.array([1, 2, 3]), PictureRun("cat", 4, 5), np.array([6]))
    assert prompt.keys == [1, 2, 3, *(("cat", row) for row in range(4, 9)), 6]
    assert prompt.ids().tolist() == [1, 2, 3, *[IMAGE] * 5, 6]
    for n in range(9):
        rest = Prompt(tuple(prompt.after(n)), IMAGE)
        assert rest.keys == prompt.keys[n:]
    assert len(prompt.keys) < CONTEXT
