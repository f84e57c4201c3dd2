"""Names parse both ways; plans pick the first matching rule and refuse one that matches nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.errors import UsageError
from export.quant.rules import DEFAULT_VISION, QuantPlan, default_language_scheme
from export.quant.scheme import (
    MIXES,
    SCHEMES,
    Scheme,
    for_width,
    linear_scheme,
    parse_language_scheme,
    parse_scheme,
    quantise,
    stored_weight,
)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_names_parse_both_ways(name: str) -> None:
    assert parse_scheme(name).name == name


def test_mix_parses_both_ways() -> None:
    mix = parse_language_scheme("w4g32-mix")
    assert mix.name == "w4g32-mix" and mix is MIXES["w4g32-mix"]


@pytest.mark.parametrize("name", ["", "w4", "w4g16", "w4g32Z", " w8", "w4g32zz", "int4", "w8z"])
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"w4g128z, .*fp32, w4g32-mix"):
        parse_language_scheme(name)


def test_a_mix_is_no_scheme_of_one_tensor() -> None:
    with pytest.raises(UsageError, match="whole language model"):
        parse_scheme("w4g32-mix")


@pytest.mark.parametrize(
    ("name", "bits", "suffix"),
    [
        ("w4g32", 4.5, "_q4"),
        ("w4g128z", 4 + 20 / 128, "_q4"),
        ("w8", 8.125, "_int8"),
        ("fp16", 16, "_fp16"),
        ("fp32", 32, ""),
    ],
)
def test_bits_and_suffixes(name: str, bits: float, suffix: str) -> None:
    scheme = parse_scheme(name)
    assert scheme.bits_per_weight == bits and scheme.suffix == suffix


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("w8", 576, "w8g64"), ("w8", 896, "w8"), ("w8", 96, "w8g32"), ("w4g128", 192, "w4g64"), ("fp16", 7, "fp16")],
)
def test_a_table_gets_a_block_that_divides_its_width(name: str, width: int, expected: str) -> None:
    assert for_width(parse_scheme(name), width).name == expected


def test_a_width_that_no_block_divides_is_refused() -> None:
    with pytest.raises(UsageError, match="width 72"):
        for_width(parse_scheme("w8"), 72)


def test_first_match_wins_and_patterns_match_whole_names() -> None:
    plan = QuantPlan("w4g32", overrides=((r".*\.down_proj\.weight", "w8"), (r"model\..*", "w4g128")))
    assert plan.scheme_for("model.layers.0.mlp.down_proj.weight", "language").name == "w8"
    assert plan.scheme_for("model.layers.0.mlp.up_proj.weight", "language").name == "w4g128"
    assert plan.scheme_for("vision_tower.model.x", "vision").name == DEFAULT_VISION
    assert plan.scheme_for("lm_head.weight", "language").name == "w4g32"
    plan.check_used()


def test_a_rule_that_matches_nothing_is_refused() -> None:
    plan = QuantPlan("w4g32", overrides=(("down_proj", "w8"),))
    plan.scheme_for("model.layers.0.mlp.down_proj.weight", "language")
    with pytest.raises(UsageError, match="down_proj=w8 matches no tensor"):
        plan.check_used()


def test_a_rule_behind_a_wider_one_still_counts_as_matched() -> None:
    plan = QuantPlan("w4g32", overrides=((".*", "w8"), ("a", "fp16")))
    assert plan.scheme_for("a", "language").name == "w8"
    plan.check_used()


@pytest.mark.parametrize(("pattern", "scheme"), [("(", "w8"), ("a", "w5"), ("a", "w4g32-mix")])
def test_bad_rules_are_refused(pattern: str, scheme: str) -> None:
    with pytest.raises(UsageError):
        QuantPlan("w4g32", overrides=((pattern, scheme),))


def test_records_make_the_manifest_numbers() -> None:
    """ONNX holds scales as float32 (5 and 8.25 bits a weight); they count as the fp16 values that they are."""
    plan = QuantPlan("w4g32-mix")
    plan.record("a", "language", parse_scheme("w4g32"), 1280, 1280 * 5 // 8, 0.08)
    plan.record("b", "language", parse_scheme("w8"), 3840, 3840 * 33 // 32, 0.01)
    plan.record("c", "vision", parse_scheme("fp32"), 500, 2000, 0.0)
    assert [tensor.name for tensor in plan.worst(10)] == ["a", "b"]
    assert plan.mean_bits_per_weight(["language"]) == pytest.approx((4.5 + 3 * 8.125) / 4)


def test_padding_counts_as_bits() -> None:
    plan = QuantPlan("w4g128")
    plan.record("a", "language", parse_scheme("w4g128"), 576, 640 * 17 // 32, 0.1)
    assert plan.mean_bits_per_weight() == pytest.approx(4.125 * 640 / 576)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("w8", 576, "w8g64"), ("w8", 1536, "w8"), ("w8", 70, "w8g32"), ("w4g128", 576, "w4g128"), ("fp16", 7, "fp16")],
)
def test_w8_takes_the_block_that_stores_the_fewest_bytes(name: str, width: int, expected: str) -> None:
    assert linear_scheme(parse_scheme(name), width).name == expected


def test_the_default_turns_to_four_bits_at_one_billion() -> None:
    assert default_language_scheme(999_999_999) == "w4g32-mix"
    assert default_language_scheme(1_000_000_000) == "w4g32"


def test_float_schemes_have_no_codes_but_round_trip() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    with pytest.raises(UsageError, match="no integer codes"):
        quantise(weight, Scheme("fp16"))
    rounded, error = stored_weight(weight, Scheme("fp16"))
    assert 0 < error < 1e-3 and np.array_equal(rounded, weight.astype(np.float16).astype(np.float32))
    assert stored_weight(weight, Scheme("fp32"))[1] == 0.0
