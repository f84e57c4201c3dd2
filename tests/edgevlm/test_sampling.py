"""Sampling against plain loops, written without numpy's tricks, and against transformers' own processors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import BackendError, UsageError
from edgevlm.sampling import (
    SMALLEST_EXPONENT,
    WEIGHT_BITS,
    RandomNumbers,
    Sampler,
    SamplingParams,
    apply_repetition_penalty,
    apply_temperature,
    draw,
    exponential,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    token_weights,
)


def logits_of(seed: int, n: int = 200, scale: float = 3.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def probabilities(logits: Any) -> list[float]:
    top = max(map(float, logits))
    weights = [math.exp(float(x) - top) for x in logits]
    return [w / math.fsum(weights) for w in weights]


def kept(logits: Any) -> set[int]:
    return {i for i, x in enumerate(logits) if x > -np.inf}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty(seed: int, penalty: float) -> None:
    logits, history = logits_of(seed), np.array([1, 5, 5, 199, 0, 5])
    got = apply_repetition_penalty(logits, history, penalty)
    for i, x in enumerate(logits):
        expected = x if i not in {0, 1, 5, 199} else (x * penalty if x < 0 else x / penalty)
        assert got[i] == pytest.approx(expected, rel=1e-6)
    assert got is not logits and got.dtype == np.float32


@pytest.mark.parametrize("k", [1, 2, 50, 200, 1000])
def test_top_k_keeps_ties(k: int) -> None:
    logits = logits_of(1)
    logits[[3, 7]] = logits.max() + 1
    order = sorted(map(float, logits), reverse=True)
    threshold = order[min(k, len(order)) - 1]
    assert kept(keep_top_k(logits, k)) == {i for i, x in enumerate(logits) if x >= threshold}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed: int, top_p: float) -> None:
    logits = logits_of(seed)
    p = probabilities(logits)
    mass, expected = 0.0, set()
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass < top_p:
            expected.add(i)
        mass += p[i]
    assert kept(keep_top_p(logits, top_p)) == expected
    assert len(expected) < len(logits)


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
def test_min_p(min_p: float) -> None:
    logits = logits_of(2)
    p = probabilities(logits)
    assert kept(keep_min_p(logits, min_p)) == {i for i, x in enumerate(p) if x >= min_p * max(p)}


def test_filters_work_on_what_the_one_before_left() -> None:
    logits = logits_of(3)
    params = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.1)
    expected = keep_min_p(keep_top_p(keep_top_k(apply_temperature(logits, 0.7), 20), 0.8), 0.1)
    got = Sampler(params).filter(logits)
    np.testing.assert_array_equal(got, expected)
    # the order matters: top-p before top-k would keep another set
    assert kept(keep_top_k(keep_top_p(logits, 0.8), 20)) != kept(keep_top_p(keep_top_k(logits, 20), 0.8))


def test_draw_follows_the_distribution() -> None:
    """Chi-square; the bound is the 0.9999 quantile of two degrees of freedom."""
    logits = np.array([0.0, -np.inf, 1.0, 2.0, -np.inf], np.float32)
    random = RandomNumbers(0)
    counts = np.bincount([draw(logits, random) for _ in range(20_000)], minlength=5)
    assert counts[1] == counts[4] == 0
    some = [0, 2, 3]
    expected = np.array(probabilities(logits[some])) * 20_000
    assert ((counts[some] - expected) ** 2 / expected).sum() < 18.5
    assert ((counts[some] - 20_000 / 3) ** 2 / (20_000 / 3)).sum() > 1_000  # and not the uniform one


def test_exponential_is_within_three_units_in_the_last_place() -> None:
    x = np.append(np.random.default_rng(0).uniform(SMALLEST_EXPONENT, 0, 20_000), [0.0, SMALLEST_EXPONENT])
    expected = np.exp(x)
    assert (np.abs(exponential(x) - expected) <= 3 * np.spacing(expected)).all()
    assert exponential(np.zeros(1))[0] == 1.0


def test_weights_are_whole_and_the_likeliest_has_them_all() -> None:
    logits = logits_of(4)
    weights = token_weights(logits)
    assert weights.dtype == np.int64 and weights.max() == 1 << WEIGHT_BITS
    np.testing.assert_allclose(weights / weights.sum(), probabilities(logits), atol=1e-11, rtol=0)
    far = np.array([0, -27, -27.1, -np.inf], np.float32)
    assert token_weights(far).tolist() == [1 << WEIGHT_BITS, 1, 0, 0]


def test_nearly_equal_seeds_give_unrelated_numbers() -> None:
    first = [RandomNumbers(seed)() for seed in range(2_000)]
    bits = np.array([[number >> bit & 1 for bit in range(64)] for number in first])
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.06).all()  # five deviations
    flips = (bits[1:] != bits[:-1]).mean(axis=0)
    assert (np.abs(flips - 0.5) < 0.06).all()


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_without_a_finite_largest_are_refused(bad: list[float]) -> None:
    with pytest.raises(BackendError, match="largest logit"):
        Sampler(SamplingParams(temperature=1.0, seed=0))(np.array(bad, np.float32), [])


def test_equal_seeds_give_equal_tokens() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.95, seed=seed))
        return [sampler(logits_of(i), []) for i in range(50)]

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_temperature_zero_is_greedy_after_the_penalty() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(SamplingParams(top_k=1, seed=3))(logits, [0]) == 0
    assert Sampler(SamplingParams(repetition_penalty=1.2))(logits, [0]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": 1e-9},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_values_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SamplingParams(**wrong)


@pytest.mark.reference
@pytest.mark.parametrize("seed", range(8))
def test_every_filter_equals_transformers(seed: int) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = logits_of(seed, 5000)
    history = np.random.default_rng(seed).integers(0, 5000, 300)
    ids = torch.tensor(history)[None]

    def theirs(*chain: Any) -> Any:
        scores = torch.tensor(logits)[None]
        for processor in chain:
            scores = processor(ids, scores)
        return scores[0].numpy()

    penalty = processors.RepetitionPenaltyLogitsProcessor(1.3)
    temperature = processors.TemperatureLogitsWarper(0.6)
    top_k, top_p = processors.TopKLogitsWarper(40), processors.TopPLogitsWarper(0.9)
    min_p = processors.MinPLogitsWarper(0.05)
    np.testing.assert_array_equal(apply_repetition_penalty(logits, history, 1.3), theirs(penalty))
    np.testing.assert_array_equal(apply_temperature(logits, 0.6), theirs(temperature))
    np.testing.assert_array_equal(keep_top_k(logits, 40), theirs(top_k))
    np.testing.assert_array_equal(keep_top_p(logits, 0.9), theirs(top_p))
    np.testing.assert_array_equal(keep_min_p(logits, 0.05), theirs(min_p))
    sampler = Sampler(SamplingParams(temperature=0.6, top_k=40, top_p=0.9, min_p=0.05))
    np.testing.assert_array_equal(
        sampler.filter(apply_repetition_penalty(logits, history, 1.3)),
        theirs(penalty, temperature, top_k, top_p, min_p),
    )
