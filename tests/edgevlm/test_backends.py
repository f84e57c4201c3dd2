"""What every backend promises, on onnxruntime, the engine and the NPU's simulation: answers, cancels, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.native_library import library_path
from edgevlm.cancel import Cancelled, CancelToken
from edgevlm.errors import UsageError
from edgevlm.generate import Response
from edgevlm.model import Model, load
from export import probes
from export.npu.compile import NpuOptions, compile_npu
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package

needs_library = pytest.mark.skipif(not library_path().exists(), reason="no native library; `make native` builds it")
BACKENDS = ["onnx", pytest.param("native", marks=needs_library), "qnn-sim"]
TEXT = {
    "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}  # fmt: skip
CONTEXT = 900
LONG = "A beginning that is longer than a chunk of the prompt and than a unit of attention's keys. " * 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that sees, of rounded weights, compiled for every backend."""
    directory = tmp_path_factory.mktemp("backends")
    source = tiny.make_bluelm_v(directory / "checkpoint", vision={"hidden_size": 128}, text=TEXT)
    found = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    if library_path().exists():
        compile_package(found, "x86_64", probes.text()[:2000])
    compile_npu(found, NpuOptions(socs=(), context=CONTEXT, chunk_tokens=48, ranges="minmax"))
    return found


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, path: Path) -> Iterator[Model]:
    with load(path, backend=request.param, context=CONTEXT, threads=1) as loaded:
        yield loaded


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def last(chunks: Any) -> Response:
    response = [chunk.response for chunk in chunks][-1]
    assert response is not None
    return response


def recorded(model: Model) -> list[np.ndarray]:
    """Every row of logits that the session returns from now on."""
    rows: list[np.ndarray] = []

    def recording(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            rows.append(call(*arguments))
            return rows[-1]

        return run

    for name in ("prefill", "step"):
        setattr(model.session, name, recording(getattr(model.session, name)))
    return rows


def from_nothing(model: Model, answer: Callable[[], Response], rows: list[np.ndarray]) -> tuple[Response, np.ndarray]:
    """Returns the answer and its rows of logits with nothing in the cache."""
    model.session.release("kv")
    model.loop.forget()
    return again(answer, rows)


def again(answer: Callable[[], Response], rows: list[np.ndarray]) -> tuple[Response, np.ndarray]:
    """Returns the answer and its rows of logits with whatever is in the cache."""
    rows.clear()
    return answer(), np.array(rows)


def test_the_same_call_is_the_same_answer_whatever_was_cached(model: Model) -> None:
    """To the bit of every logit: with the prompt itself, its answer, a longer one or a shorter one in the cache."""
    rows = recorded(model)
    texts = ["Hi", LONG, LONG + "What is it?", LONG + "What?", LONG[:100], LONG * 2]

    def answer(text: str, n: int = 12) -> Response:
        return model.generate(text, [picture(1)], max_new_tokens=n)

    expected = {text: from_nothing(model, lambda text=text: answer(text), rows) for text in texts}
    reused = 0
    for text in (*texts, *texts[::-1], texts[1], texts[1], texts[1]):
        response, logits = again(lambda text=text: answer(text), rows)
        assert response.token_ids == expected[text][0].token_ids
        np.testing.assert_array_equal(logits, expected[text][1])
        reused += response.n_reused_tokens
    assert reused > 500, "what is never reused proves nothing"
    assert len({response.token_ids for response, _ in expected.values()}) > 1


def test_a_turn_of_a_conversation_is_the_same_as_its_messages_from_nothing(model: Model) -> None:
    """The cache holds the answers' rows, computed one at a time, and the pictures of turns before."""
    rows = recorded(model)
    talk = model.chat("Be short.")
    for number, text in enumerate(("What is it?", LONG, "And this?", "Why?" * 30)):
        if number % 2 == 0:
            talk.attach(picture(number))
        response, logits = again(lambda text=text: last(talk.send(text, max_new_tokens=40)), rows)
        messages = talk.messages[:-1]
        pictures = [p.image for turn in talk.turns for p in turn.pictures]
        generate = partial(model.generate, messages, pictures, max_new_tokens=40)
        fresh, expected = from_nothing(model, generate, rows)
        assert response.token_ids == fresh.token_ids
        np.testing.assert_array_equal(logits, expected)
        again(lambda: last(talk.regenerate(max_new_tokens=40)), rows)  # the cache as the conversation leaves it
    with_pictures = [turn.response for turn in talk.turns if turn.response is not None]
    assert with_pictures[-1].n_image_tokens > with_pictures[0].n_image_tokens > 0


def test_another_context_is_the_same_answer(path: Path, model: Model) -> None:
    backend = {"OnnxSession": "onnx", "NativeSession": "native", "NpuSession": "qnn-sim"}[type(model.session).__name__]
    expected = model.generate(LONG, [picture(1)], max_new_tokens=12).token_ids
    with load(path, backend=backend, context=CONTEXT - 100, threads=1) as other:
        assert other.generate(LONG, [picture(1)], max_new_tokens=12).token_ids == expected


def test_rows_of_other_splits_differ_where_the_session_says_so(path: Path) -> None:
    """Negative control: the last row alone, behind rows of a whole prompt, is not what the whole prompt's run gives."""
    ids = np.random.default_rng(0).integers(0, 200, 200)
    with load(path, backend="onnx", threads=1) as model:
        session = model.session
        whole = session.prefill([ids], np.arange(200))
        session.truncate(199)
        alone = session.prefill([ids[199:]], np.arange(199, 200))
        assert session.reuse_step > 1 and (alone != whole).any()
        session.truncate(128)
        np.testing.assert_array_equal(session.prefill([ids[128:]], np.arange(128, 200)), whole)


# ---- cancel


def test_a_cancel_while_nothing_runs_ends_nothing(model: Model) -> None:
    expected = model.generate("hello", [picture(1)], max_new_tokens=6)
    model.cancel()
    found = model.generate("hello", [picture(1)], max_new_tokens=6)
    assert (found.finish_reason, found.token_ids) == ("length", expected.token_ids)
    talk = model.chat()
    talk.attach(picture(2))
    talk.cancel()
    assert last(talk.send("What is it?", max_new_tokens=6)).finish_reason == "length"


def test_a_token_that_is_set_ends_each_call_before_it_works(model: Model) -> None:
    session, ids = model.session, np.arange(8)
    processor = model.package.manifest.processor
    assert processor is not None
    tiles = np.zeros((1, 3, processor.tile_px, processor.tile_px), np.float32)
    expected = session.prefill([ids], np.arange(8))
    token = CancelToken()
    token.set()
    for call in (
        lambda: session.prefill([ids], np.arange(8, 16), token), lambda: session.step(3, 8, token),
        lambda: session.score(ids[:2], np.array([-1, 0]), np.array([8, 9]), token),
        lambda: session.encode(tiles, token),
    ):  # fmt: skip
        with pytest.raises(Cancelled):
            call()
        assert session.n_past == 8
    session.truncate(0)
    np.testing.assert_array_equal(session.prefill([ids], np.arange(8), CancelToken()), expected)
    assert len(session.encode(tiles)) == 1


def test_a_cancel_from_another_thread_ends_what_runs_and_nothing_later(model: Model) -> None:
    """At forty moments of an answer with a picture: each answer ends whole or cancelled, and the next is whole."""
    expected = model.generate(LONG, [picture(1)], max_new_tokens=8)
    ends = set()
    for number in range(40):
        timer = threading.Timer(0.0005 * number, model.cancel)
        timer.start()
        response = model.generate(LONG, [picture(100 + number)], max_new_tokens=8)
        timer.join()
        ends.add(response.finish_reason)
        if number % 8 == 0:
            after = model.generate(LONG, [picture(1)], max_new_tokens=8)
            assert (after.finish_reason, after.token_ids) == ("length", expected.token_ids)
    assert "cancelled" in ends


def test_a_cancel_ends_a_long_prefill_within_it(model: Model) -> None:
    outcome: list[str] = []
    token = CancelToken()

    def work() -> None:
        try:
            for _ in range(10_000):
                model.session.truncate(0)
                model.session.prefill([np.zeros(500, np.int64)], np.arange(500), token)
            outcome.append("finished")
        except Cancelled:
            outcome.append("cancelled")

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    time.sleep(0.05)
    token.set()
    worker.join(20)
    assert outcome == ["cancelled"]


# ---- closing


def test_what_is_closed_refuses(path: Path, model: Model) -> None:
    model.generate("hello", [picture(1)], max_new_tokens=2)
    session = model.session
    session.release("kv")
    assert session.memory().kv_bytes == 0 and session.n_past == 0
    session.prefill([np.arange(4)], np.arange(4))
    assert session.memory().kv_bytes > 0
    model.close()
    model.close()
    assert session.n_past == 0
    for call in (
        lambda: model.generate("hi"), lambda: model.chat().send("hi"), lambda: session.step(1, 0),
        lambda: session.prefill([np.arange(4)], np.arange(4)), lambda: session.truncate(0), session.snapshot,
        lambda: session.release("kv"), lambda: session.release("vision"),
        lambda: session.encode(np.zeros((1, 3, 28, 28), np.float32)),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="is closed; load the package again"):
            call()


def test_closing_beside_a_running_call_waits_for_it(model: Model) -> None:
    """What is freed is not used: the call ends first, and the next one is refused."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                model.session.truncate(0)
                model.session.prefill([np.zeros(300, np.int64)], np.arange(300))
        except UsageError as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.05)
    model.session.close()
    worker.join(20)
    assert len(errors) == 1 and "closed" in str(errors[0])
