"""The engine's sampler against edgevlm/sampling.py: the same token for the same logits, history and seed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgevlm.backends.native_library import NativeLibrary
from edgevlm.backends.native_sampler import NativeSampler, SamplingParamsStruct
from edgevlm.errors import BackendError, UsageError
from edgevlm.sampling import RandomNumbers, Sampler, SamplingParams, token_weights

QWEN_VOCABULARY = 151_936


def random_params(rng: np.random.Generator) -> SamplingParams:
    def sometimes(value: Any, off: Any, share: float = 0.5) -> Any:
        return value if rng.random() < share else off

    return SamplingParams(
        temperature=float(rng.choice([1.0, 0.7, 0.2, 1.7, 0.001, round(float(rng.uniform(0.01, 3)), 3)])),
        top_k=sometimes(int(rng.integers(1, 60)), 0),
        top_p=sometimes(float(rng.choice([0.9, 0.5, 0.999, 1e-9, rng.uniform(0.01, 1)])), 1.0),
        min_p=sometimes(float(rng.choice([0.05, 1.0, 1e-12, rng.uniform(0, 1)])), 0.0),
        repetition_penalty=sometimes(float(rng.choice([1.1, 0.8, 1.3])), 1.0),
        seed=int(rng.integers(0, 2**63)),
    )


def random_logits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of a language model's spread; a third of them in coarse steps, so that ties are common."""
    logits = (rng.standard_normal(n) * rng.choice([0.5, 3, 10])).astype(np.float32)
    shape = rng.integers(0, 6)
    if shape < 2:
        logits = np.round(logits * 2) / 2
    if shape == 2:
        logits[rng.integers(0, n, max(1, n // 3))] = -np.inf
        logits[int(rng.integers(0, n))] = 1.0
    if shape == 3:
        logits[rng.integers(0, n, 3)] = logits.max()
    return logits


def test_same_tokens_of_small_vocabularies(engine: NativeLibrary) -> None:
    """20,000 draws under 1,000 settings."""
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        n, params = int(rng.choice([1, 2, 50, 400, 1_000])), random_params(rng)
        logits, history = random_logits(rng, n), rng.integers(0, n, int(rng.integers(0, 30)))
        with NativeSampler(engine, n, params) as native:
            sampler = Sampler(params)
            for step in range(20):
                token = sampler(logits, history)
                assert native(logits, history) == token, (params, n, step)
                history = np.append(history, token)


@pytest.mark.parametrize("n", [32_000, QWEN_VOCABULARY])
def test_same_tokens_of_large_vocabularies(n: int, engine: NativeLibrary) -> None:
    rng = np.random.default_rng(n)
    for _ in range(15):
        params = random_params(rng)
        logits, history = random_logits(rng, n), rng.integers(0, n, 200)
        with NativeSampler(engine, n, params) as native:
            sampler = Sampler(params)
            for _ in range(3):
                assert native(logits, history) == sampler(logits, history), params


def test_greedy_takes_the_first_of_equals(engine: NativeLibrary) -> None:
    rng = np.random.default_rng(5)
    with NativeSampler(engine, 300, SamplingParams()) as native:
        for _ in range(300):
            logits = random_logits(rng, 300)
            assert native(logits, []) == Sampler(SamplingParams())(logits, []) == int(logits.argmax())
    zeros = np.array([-1, -0.0, 0.0], np.float32)
    for k in (1, 2):
        params = SamplingParams(temperature=1.0, top_k=k, seed=8)
        with NativeSampler(engine, 3, params) as native:
            sampler = Sampler(params)
            assert [native(zeros, []) for _ in range(40)] == [sampler(zeros, []) for _ in range(40)]


def test_a_changed_setting_changes_tokens(engine: NativeLibrary) -> None:
    """Negative control: each parameter shows within 2,000 draws, the seed at once."""
    base = SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=1)
    rng = np.random.default_rng(2)
    rows = [random_logits(rng, 200) for _ in range(2_000)]
    changes: list[dict[str, Any]] = [
        {"temperature": 0.91}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.25}, {"seed": 2},
    ]  # fmt: skip
    with NativeSampler(engine, 200, base) as native:
        expected = [native(row, [3, 5, 7, 11]) for row in rows]
    for change in changes:
        sampler = Sampler(replace(base, **change))
        assert [sampler(row, [3, 5, 7, 11]) for row in rows] != expected, change


def test_draws_follow_the_distribution(engine: NativeLibrary) -> None:
    """Chi-square over 40 tokens and 40,000 draws; the bound is the 0.9999 quantile of 39 degrees of freedom."""
    logits = np.linspace(-2, 2, 40).astype(np.float32)
    p = token_weights(logits) / token_weights(logits).sum()
    with NativeSampler(engine, 40, SamplingParams(temperature=1.0, seed=11)) as native:
        counts = np.bincount([native(logits, []) for _ in range(40_000)], minlength=40)

    def chi_square(expected: Any) -> float:
        return float(((counts - expected) ** 2 / expected).sum())

    assert chi_square(p * 40_000) < 82
    assert chi_square(np.full(40, 1_000.0)) > 1_000  # negative control


def test_random_numbers_are_splitmix64() -> None:
    """The published sequence of seed 1234567 (Rosetta Code, Splitmix64), begun without mixing the seed."""
    stream = RandomNumbers(0)
    stream._state = 1234567
    assert [stream() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_new_question_begins_the_stream_again(engine: NativeLibrary) -> None:
    logits = random_logits(np.random.default_rng(1), 500)
    params = SamplingParams(temperature=1.0, seed=2**64 - 1)
    with NativeSampler(engine, 500, params) as native:
        first = [native(logits, []) for _ in range(20)]
        native.begin(params)
        assert [native(logits, []) for _ in range(20)] == first
        native.begin(replace(params, seed=0))
        assert [native(logits, []) for _ in range(20)] != first


@contextmanager
def raw_sampler(engine: NativeLibrary, n: int) -> Iterator[ctypes.c_void_p]:
    handle = ctypes.c_void_p()
    engine.call("ev_sampler_new", n, ctypes.byref(handle))
    try:
        yield handle
    finally:
        engine.call("ev_sampler_free", handle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0), ("temperature", 1e-9), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 1.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")), ("repetition_penalty", float("nan")),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(field: str, value: float, engine: NativeLibrary) -> None:
    params = SamplingParamsStruct(1.0, 0, 1.0, 0.0, 1.0, 0)
    with raw_sampler(engine, 4) as handle:
        engine.call("ev_sampler_begin", handle, ctypes.byref(params))
        setattr(params, field, value)
        with pytest.raises(UsageError, match=field):
            engine.call("ev_sampler_begin", handle, ctypes.byref(params))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_without_a_logit_are_no_history(engine: NativeLibrary, temperature: float) -> None:
    """A picture's placeholder may be one past the head, -200, or anything: it is as if it were not there."""
    params = SamplingParams(temperature=temperature, repetition_penalty=3.0, seed=4)
    rng = np.random.default_rng(2)
    with NativeSampler(engine, 50, params) as native:
        for _ in range(50):
            logits = rng.standard_normal(50).astype(np.float32)
            text = rng.integers(0, 50, 30).tolist()
            mixed = [50, *text[:9], -1, -200, *text[9:], 2**31 - 1]
            native.begin(params)
            expected = native(logits, text)
            native.begin(params)
            assert native(logits, mixed) == expected == Sampler(params)(logits, text) == Sampler(params)(logits, mixed)


def test_logits_that_no_token_can_be_chosen_from(engine: NativeLibrary) -> None:
    params = SamplingParams(temperature=1.0, repetition_penalty=1.1, seed=0)
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    for bad in ([1, nan, 2], [nan] * 3, [1, inf, 2], [-inf] * 3):
        logits = np.array(bad, np.float32)
        with NativeSampler(engine, 3, params) as native, pytest.raises(BackendError):
            native(logits, [])
        with pytest.raises(BackendError):
            Sampler(params)(logits, [])
    with NativeSampler(engine, 3, params) as native, pytest.raises(UsageError, match="shape"):
        native(np.zeros(4, np.float32), [])
    for n in (0, -5, (1 << 24) + 1):
        with pytest.raises(UsageError, match="vocabulary"):
            NativeSampler(engine, n, params)
