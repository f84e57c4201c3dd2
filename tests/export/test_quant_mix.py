"""The mix: sensitivities equal to one run per group, and an allocation that spends where KL per byte is largest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import PackageError
from edgevlm.telemetry import import_onnxruntime
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.quant import mix, sensitivity
from export.quant.mix import Group, Sensitivity
from export.quant.rules import QuantPlan
from export.quant.scheme import MIXES, parse_scheme, stored_weight
from tests import tiny

ort = import_onnxruntime()

MIX = MIXES["w4g32-mix"]
N_TOKENS = 24


def brute_force(folder: Path, source: Path, members: tuple[Group, ...]) -> dict[tuple[int, str], float]:
    """KL of each group by running the whole decoder once per group; float64 softmax."""
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    names = {name for group in members for name in group.tensors}
    built = build_model(spec, checkpoint, QuantPlan("fp32"), folder, overridable=names.__contains__)
    paths = {graph.name: str(folder / graph.path) for graph in built.graphs}
    ids = sensitivity.token_ids(checkpoint, N_TOKENS + sensitivity.N_WARM_UP)[None]
    decoder = ort.InferenceSession(paths["decoder_model_merged"])
    feeds = {
        "inputs_embeds": ort.InferenceSession(paths["embed_tokens"]).run(None, {"input_ids": ids})[0],
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.size)[None],
        "num_logits_to_keep": np.array(N_TOKENS),
    }
    assert built.decoder is not None
    for entry in built.decoder.cache:
        feeds[entry.past_name] = np.zeros((1, entry.shape[0], 0, entry.shape[2]), np.float32)

    def log_p(weights: dict[str, np.ndarray]) -> np.ndarray:
        rows = decoder.run(["logits"], {**feeds, **weights})[0][0].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    base, found = log_p({}), {}
    for group in members:
        weights = {name: stored_weight(checkpoint.read(name), MIX.low)[0].T.copy() for name in group.tensors}
        found[group.layer, group.kind] = float((np.exp(base) * (base - log_p(weights))).sum(axis=1).mean())
    return found


@pytest.mark.parametrize("make", ["make_llama", "make_qwen2"])
def test_one_pass_measures_what_a_run_per_group_measures(tmp_path: Path, make: str) -> None:
    source = getattr(tiny, make)(tmp_path / "model", num_hidden_layers=3)
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    assert spec.language is not None
    members = mix.groups(spec.language, spec.names.language, QuantPlan("w4g32-mix"))
    assert [group.kind for group in members] == ["qkv", "o", "gate_up", "down"] * 3
    stages: list[str] = []
    found = sensitivity.measure(
        spec, checkpoint, MIX.low, members, tmp_path / "a", lambda stage, *_: stages.append(stage), n_tokens=N_TOKENS
    )
    expected = brute_force(tmp_path / "b", source, members)
    for entry in found:
        assert entry.kl == pytest.approx(expected[entry.group.layer, entry.group.kind], rel=1e-3, abs=1e-6)
        assert entry.kl > 1e-4
    assert "measure 4-bit sensitivity" in stages


def test_a_model_without_tokenizer_cannot_be_measured(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_llama(tmp_path / "model"))
    checkpoint.files.pop("tokenizer.json")
    with pytest.raises(PackageError, match=r"no tokenizer\.json"):
        sensitivity.token_ids(checkpoint, 8)


def group(layer: int, parameters: int, width: int = 128, kind: str = "down") -> Group:
    return Group(layer, kind, (f"{layer}.{kind}",), parameters, width)


def test_the_budget_goes_to_the_largest_cost_per_byte() -> None:
    found = [
        Sensitivity(group(0, 1000), 0.5),
        Sensitivity(group(1, 4000), 1.0),
        Sensitivity(group(2, 1000), 0.1),
        Sensitivity(group(3, 2000), 0.9),
    ]
    # 8,000 weights; each bit of the mean is worth 8,000 / 3.625 promoted weights.
    assert mix.allocate(found, MIX, 4.5) == ()
    assert [g.layer for g in mix.allocate(found, MIX, 4.5 + 3.625 * 3000 / 8000)] == [0, 3]
    assert [g.layer for g in mix.allocate(found, MIX, 4.5 + 3.625 * 4000 / 8000)] == [0, 3, 2], "what fits is taken"
    assert [g.layer for g in mix.allocate(found, MIX, 8.2)] == [0, 3, 1, 2]


def test_padding_counts_in_the_budget() -> None:
    """Width 576 is stored in int8 blocks of 64: 8.25 bits a weight, not 8.125."""
    found = [Sensitivity(group(0, 576, width=576), 1.0)]
    assert mix.allocate(found, MIX, 8.2) == ()
    assert len(mix.allocate(found, MIX, 8.25)) == 1


def test_rules_say_which_layers_and_pick_exactly_them(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_llama(tmp_path / "model", num_hidden_layers=12))
    spec = arch_spec(checkpoint.config, checkpoint.files)
    assert spec.language is not None
    names = spec.names.language
    members = {(g.layer, g.kind): g for g in mix.groups(spec.language, names, QuantPlan("w4g32-mix"))}
    promoted = (members[1, "qkv"], members[11, "qkv"], members[0, "down"])
    plan = QuantPlan("w4g32-mix", overrides=mix.rules(promoted, spec.language, names, MIX))
    expected = {name for g in promoted for name in g.tensors} | {"model.embed_tokens.weight"}
    eight = {
        name
        for name, info in checkpoint.tensors().items()
        if len(info.shape) == 2 and plan.scheme_for(name, "language") == parse_scheme("w8")
    }
    if not spec.language.tied:
        expected.add("lm_head.weight")
    assert eight == expected
    assert any(re.search(r"\(1\|11\)", pattern) for pattern, _ in plan.overrides)
    plan.check_used()


def test_what_the_user_decides_is_not_measured(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_llama(tmp_path / "model"))
    spec = arch_spec(checkpoint.config, checkpoint.files)
    assert spec.language is not None
    pinned = QuantPlan("w4g32-mix", overrides=((r".*(down|q)_proj\.weight", "fp16"),))
    members = mix.groups(spec.language, spec.names.language, pinned)
    assert {g.kind for g in members} == {"qkv", "o", "gate_up"}
    assert [name.split(".")[-2] for name in members[0].tensors] == ["k_proj", "v_proj"]
