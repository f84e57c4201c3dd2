"""Models and conversations on a tiny package: pictures, prefix reuse, background encoding, cancel, fit, trace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgevlm
from edgevlm.cancel import CancelToken
from edgevlm.chat import Conversation
from edgevlm.errors import BackendError, ContextFullError, ImageError, ParityError, UsageError
from edgevlm.generate import Response
from edgevlm.model import Model, load
from tests.edgevlm.recompute import Recompute
from tests.edgevlm.tiny_package import CONTEXT, TOKENS_PER_TILE, write_package


def picture(seed: int = 0, height_px: int = 28, width_px: int = 56) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with load(tiny, threads=1) as loaded:
        yield loaded


def finish(chunks: Any) -> Response:
    response = [chunk.response for chunk in chunks][-1]
    assert response is not None
    return response


def ask(conversation: Conversation, text: str, n: int = 6, **options: Any) -> Response:
    return finish(conversation.send(text, max_new_tokens=n, **options))


def replay(tiny: Path, conversation: Conversation, n: int = 6) -> Response:
    """Answers the last question of a conversation on a model that has seen nothing."""
    pictures = [p.image for turn in conversation.turns for p in turn.pictures]
    messages = conversation.messages
    with load(tiny, threads=1) as fresh:
        return fresh.generate(messages[:-1], pictures, max_new_tokens=n)


def names(model: Model) -> list[str]:
    return [name for name, _, _ in model.session.timings.events]


def test_generate_equals_full_recomputation(model: Model, tiny: Path) -> None:
    images = [picture(1), picture(2, 56, 28)]
    response = model.generate("What is it?", images, max_new_tokens=8)
    messages = [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "What is it?"}]}]
    oracle = Recompute(tiny)
    rows = oracle.segments(model, messages, images)
    expected = oracle.greedy(rows, 8)
    assert list(response.token_ids) == expected
    assert response.n_image_tokens == response.n_tiles * TOKENS_PER_TILE == sum(len(r) for r in rows if r.ndim == 2)
    assert response.n_tiles == 3 + 3
    swapped = model.generate("What is it?", images[::-1], max_new_tokens=8)
    assert swapped.token_ids != response.token_ids  # negative control: the order of pictures counts


def test_stream_joins_to_the_answer(model: Model) -> None:
    chunks = list(model.stream("hello", max_new_tokens=40, temperature=1.5, seed=3))
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].response.text  # type: ignore[union-attr]
    assert model.generate("hello", max_new_tokens=40, temperature=1.5, seed=3).text == chunks[-1].response.text  # type: ignore[union-attr]


def test_turns_and_pictures_reuse_the_prefix_and_change_nothing(model: Model, tiny: Path) -> None:
    model.session.reuse_step = 1
    talk = model.chat(system="Be short.")
    assert ask(talk, "hello").n_reused_tokens == 0
    talk.attach(picture(1))
    second = ask(talk, "what is this?")
    assert second.n_tiles == 3 and second.n_reused_tokens > 20
    assert second.token_ids == replay(tiny, talk).token_ids
    talk.attach(picture(2))
    talk.attach(picture(3, 28, 28))
    third = ask(talk, "and these?")
    assert third.token_ids == replay(tiny, talk).token_ids
    assert third.n_tiles == 3 + 3 + 1
    fourth = ask(talk, "thanks")
    assert fourth.n_tiles == 7 and fourth.timings.encode_s == 0
    assert fourth.n_prompt_tokens - fourth.n_reused_tokens < 60
    assert fourth.token_ids == replay(tiny, talk).token_ids
    assert [message["role"] for message in talk.messages] == ["system", *["user", "assistant"] * 4]


def test_a_picture_is_encoded_while_the_user_types_and_the_tower_is_freed(model: Model, tmp_path: Path) -> None:
    talk = model.chat()
    talk.attach(picture(1))
    deadline = time.monotonic() + 10
    while "release vision" not in names(model) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not model.memory().vision_loaded
    before = names(model)
    assert before[-1] == "release vision" and "load vision" in before and "encode 1 tile" in before
    ask(talk, "what is this?")
    assert not any(name.startswith(("encode", "load vision")) for name in names(model)[len(before) :])
    model.write_trace(tmp_path / "trace.json")
    spans = {s["name"]: s for s in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if s["ph"] == "X"}
    typing, encoding = spans["user types"], spans["encode 1 tile"]
    assert typing["ts"] <= encoding["ts"] < encoding["ts"] + encoding["dur"] <= typing["ts"] + typing["dur"]
    assert spans["release vision"]["ts"] < spans["answer"]["ts"]


def test_an_equal_picture_is_encoded_once(model: Model) -> None:
    first = model.generate("what is this?", [picture(1)], max_new_tokens=4)
    again = model.generate("Say it!", [picture(1).copy()], max_new_tokens=4)
    assert first.timings.encode_s > 0 and again.timings.encode_s == 0
    assert sum(name.startswith("encode") for name in names(model)) == 3
    model.generate("what is this?", [picture(2)], max_new_tokens=4)
    assert sum(name.startswith("encode") for name in names(model)) == 6


def test_features_are_dropped_oldest_first(model: Model, tiny: Path) -> None:
    encoder = model.encoder
    assert encoder is not None
    flag = CancelToken()
    pictures = [model.picture(picture(seed)) for seed in range(3)]
    size = encoder.features(pictures[0], flag).nbytes
    encoder.cache_bytes = 2 * size
    for p in pictures[1:]:
        encoder.features(p, flag)
    assert [p.key in encoder._kept for p in pictures] == [False, True, True]
    encoder.features(pictures[1], flag)
    encoder.features(pictures[0], flag)
    assert [p.key in encoder._kept for p in pictures] == [True, True, False]
    encoder.cache_bytes = 0
    np.testing.assert_array_equal(encoder.features(pictures[2], flag).shape, (12, 32))


def test_regenerate_and_edit_use_the_prefix(model: Model, tiny: Path) -> None:
    model.session.reuse_step = 1
    talk = model.chat()
    talk.attach(picture(1))
    first = ask(talk, "what is this?")
    again = finish(talk.regenerate(max_new_tokens=6))
    assert again.token_ids == first.token_ids
    assert again.n_reused_tokens == again.n_prompt_tokens - 1
    edited = finish(talk.edit("what is it not?", max_new_tokens=6))
    assert edited.n_tiles == 3 and edited.n_reused_tokens > edited.n_image_tokens
    assert edited.token_ids == replay(tiny, talk).token_ids
    assert len(talk.turns) == 1 and talk.turns[0].text == "what is it not?"
    with pytest.raises(UsageError, match="no question yet"):
        model.chat().regenerate()


def test_two_conversations_share_a_model(model: Model, tiny: Path) -> None:
    one, two = model.chat(), model.chat("Other.")
    for text in ("a", "b"):
        for talk in (one, two):
            response = ask(talk, text)
            assert response.token_ids == replay(tiny, talk).token_ids


def test_one_answer_at_a_time(model: Model) -> None:
    chunks = model.stream("hello", max_new_tokens=20)
    next(chunks)
    with pytest.raises(UsageError, match="the model is answering"):
        model.generate("hello", max_new_tokens=2)
    chunks.close()  # type: ignore[attr-defined]
    assert model.generate("hello", max_new_tokens=2).finish_reason == "length"


# ---- cancel


def test_cancel_between_tokens_keeps_the_turn(model: Model, tiny: Path) -> None:
    talk = model.chat()
    chunks = talk.send("tell me", max_new_tokens=50)
    said = [next(chunks).text for _ in range(3)]
    talk.cancel()
    response = finish(chunks)
    assert response.finish_reason == "cancelled" and response.text.startswith("".join(said))
    assert talk.messages[-1] == {"role": "assistant", "content": response.text}
    after = ask(talk, "go on")
    assert after.finish_reason == "length" and after.token_ids == replay(tiny, talk).token_ids


def test_cancel_while_a_picture_is_encoded_keeps_it_attached(model: Model, tiny: Path) -> None:
    talk = model.chat()
    encode, calls = model.session.encode, []
    asked = threading.Event()

    def slow(tiles: Any, cancel: CancelToken | None = None) -> Any:
        calls.append(1)
        asked.wait(10)
        model.cancel()
        return encode(tiles, cancel)

    model.session.encode = slow  # type: ignore[method-assign]
    talk.attach(picture(1, 100, 100))
    chunks = talk.send("what is this?", max_new_tokens=6)
    asked.set()
    response = finish(chunks)
    model.session.encode = encode  # type: ignore[method-assign]
    assert response.finish_reason == "cancelled" and calls and talk.turns == []
    response = ask(talk, "what is this?")
    assert response.finish_reason == "length" and response.n_tiles == 10
    assert response.token_ids == replay(tiny, talk).token_ids


def test_cancel_while_waiting_for_a_picture(model: Model, tiny: Path) -> None:
    talk = model.chat()
    encode, entered, leave = model.session.encode, threading.Event(), threading.Event()

    def stuck(tiles: Any, cancel: CancelToken | None = None) -> Any:
        entered.set()
        leave.wait(10)
        return encode(tiles, cancel)

    model.session.encode = stuck  # type: ignore[method-assign]
    talk.attach(picture(1))
    threading.Thread(target=lambda: (entered.wait(10), time.sleep(0.05), talk.cancel())).start()
    response = ask(talk, "what is this?")
    assert response.finish_reason == "cancelled" and talk.turns == []
    leave.set()
    model.session.encode = encode  # type: ignore[method-assign]
    response = ask(talk, "what is this?")
    assert response.n_tiles == 3 and response.token_ids == replay(tiny, talk).token_ids


def test_cancel_inside_prefill_leaves_the_conversation_as_it_was(model: Model, tiny: Path) -> None:
    talk = model.chat()
    ask(talk, "hello")
    turns = list(talk.turns)
    session: Any = model.session
    original = session._decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        session._decode = original
        model.cancel()
        return original(*args, **kwargs)

    session._decode = decode
    response = ask(talk, "word " * 40)
    assert response.finish_reason == "cancelled" and talk.turns == turns
    response = ask(talk, "word " * 40)
    assert response.token_ids == replay(tiny, talk).token_ids


def test_a_cancel_while_nothing_runs_ends_nothing(model: Model) -> None:
    expected = model.generate("hello", max_new_tokens=6)
    for _ in range(3):
        model.cancel()
    found = model.generate("hello", max_new_tokens=6)
    assert (found.finish_reason, found.token_ids) == ("length", expected.token_ids)


def test_a_cancel_from_the_calls_beginning_on_ends_it(model: Model) -> None:
    """Before the first chunk is asked for, and while the call's picture is still decoded."""
    chunks = model.stream("hello", max_new_tokens=6)
    model.cancel()
    assert finish(chunks).finish_reason == "cancelled"
    decode = model.picture

    def slow(source: Any) -> Any:
        model.cancel()
        return decode(source)

    model.picture = slow  # type: ignore[method-assign]
    assert model.generate("hello", [picture(1)], max_new_tokens=6).finish_reason == "cancelled"
    model.picture = decode  # type: ignore[method-assign]
    assert model.generate("hello", [picture(1)], max_new_tokens=6).finish_reason == "length"


def test_a_call_that_was_begun_and_not_run_takes_no_cancel_away(model: Model) -> None:
    first = model.stream("hello", max_new_tokens=50)
    model.stream("never asked for", max_new_tokens=6)
    next(first)
    model.cancel()
    assert finish(first).finish_reason == "cancelled"


def test_what_is_closed_refuses(tiny: Path) -> None:
    model = load(tiny, threads=1)
    talk = model.chat()
    ask(talk, "hello")
    running = talk.send("and?", max_new_tokens=50)
    next(running)
    model.close()
    model.close()
    model.cancel()
    assert finish(running).finish_reason == "cancelled"  # closing ends what runs
    for call in (
        lambda: model.generate("hi"), lambda: talk.send("hi"), talk.regenerate, lambda: talk.attach(picture()),
        lambda: model.session.prefill([np.zeros(2, np.int64)], np.arange(2)), lambda: model.session.step(1, 0),
        lambda: model.session.encode(np.zeros((1, 3, 28, 28), np.float32)), lambda: model.session.truncate(0),
        lambda: model.session.release("kv"), lambda: model.session.snapshot(),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="is closed; load the package again"):
            call()


# ---- refusals


def test_a_full_context_is_refused_with_the_numbers(model: Model) -> None:
    talk = model.chat()
    ask(talk, "hello")
    turns = list(talk.turns)
    talk.attach(picture(1))
    with pytest.raises(ContextFullError) as caught:
        talk.send("x" * 600, max_new_tokens=32)
    message = str(caught.value)
    assert "+ 12 image tokens (1 pictures, 3 tiles) + 32 kept for the answer" in message
    assert f"the context is {CONTEXT}" in message and "--fit" in message
    assert talk.turns == turns
    assert ask(talk, "what is this?").n_tiles == 3  # the picture is still attached


def test_fit_lowers_the_tiles_and_records_it(tiny: Path) -> None:
    big = picture(5, 84, 84)
    with load(tiny, threads=1, context=110) as model, pytest.raises(ContextFullError, match="10 tiles"):
        model.generate("hi", [big], max_new_tokens=64)
    with load(tiny, threads=1, context=110, fit=True) as model:
        full = model.generate("hi", [picture(1, 28, 28)], max_new_tokens=64)
        assert full.tile_budget is None and full.n_tiles == 1
        talk = model.chat()
        talk.attach(big)
        chunks = talk.send("hi", max_new_tokens=64)
        next(chunks)
        talk.cancel()
        response = finish(chunks)
        assert response.tile_budget is not None and 1 < response.n_tiles <= response.tile_budget + 1 < 10
        assert response.n_prompt_tokens + 64 <= 110
        follow = ask(talk, "?", 4)
        assert follow.n_tiles == response.n_tiles and follow.tile_budget is None  # planned once, kept
        with pytest.raises(ContextFullError, match="text tokens"):
            ask(talk, "x" * 200)


def test_a_language_model_takes_no_pictures(tiny_text: Path) -> None:
    with load(tiny_text, threads=1) as model:
        with pytest.raises(UsageError, match="takes no pictures"):
            model.generate("hi", [picture()])
        with pytest.raises(UsageError, match="takes no pictures"):
            model.chat().attach(picture())
        assert model.generate("hi", max_new_tokens=3).n_image_tokens == 0


def test_wrong_calls(model: Model, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unexpected keyword argument 'temprature'"):
        model.generate("hi", temprature=1)
    with pytest.raises(UsageError, match="1 image parts, 0 pictures"):
        model.generate([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(UsageError, match="backend is 'gpu'"):
        load(tiny, backend="gpu")
    with pytest.raises(BackendError, match="the memory budget is 1 MB"):
        load(tiny, memory_budget_bytes=1_000_000)
    broken = tmp_path / "x.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    with pytest.raises(ImageError):
        model.chat().attach(broken)


def test_a_tower_with_other_token_counts_is_refused(tmp_path: Path) -> None:
    path = write_package(tmp_path / "p")
    manifest = json.loads((path / "edgevlm.json").read_text())
    manifest["prompt"]["tokens_per_tile"] = 5
    (path / "edgevlm.json").write_text(json.dumps(manifest))
    with (
        load(path, threads=1) as model,
        pytest.raises(ParityError, match=r"15 placeholders, the vision graph returned 12 \(3 tiles x 4\)"),
    ):
        model.generate("hi", [picture()], max_new_tokens=3)


def test_load_is_found_on_the_package() -> None:
    assert edgevlm.load is load and edgevlm.Model is Model
    with pytest.raises(AttributeError):
        edgevlm.nothing  # noqa: B018
