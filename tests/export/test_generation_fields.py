"""generation_config.json: what is read, what is refused by name, what is told because it is not applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import PackageError
from edgevlm.generate import generation_options
from edgevlm.generation_defaults import SMALLEST_TOP_P
from edgevlm.package import open_package
from edgevlm.sampling import keep_top_p
from edgevlm.spec import GenerationSpec
from export.archs.fields import Fields
from export.archs.files import generation_spec
from tests.edgevlm.tiny_package import write_package

VOCABULARY = 384


def spec_of(generation: dict[str, Any], **config: Any) -> GenerationSpec:
    """The defaults that an export writes for a generation_config.json."""
    text = Fields({"vocab_size": VOCABULARY, "eos_token_id": 2, **config})
    return generation_spec(text, text, {"generation_config.json": json.dumps(generation).encode()})


@pytest.mark.parametrize(
    ("written", "field", "meant"),
    [
        ({}, "top_k", 50),  # transformers' own default
        ({"top_k": None}, "top_k", 50),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 50.0}, "top_k", 50),
        ({"top_k": 10**30}, "top_k", 0),
        ({"top_k": 10**400}, "top_k", 0),
        ({"top_p": 0}, "top_p", SMALLEST_TOP_P),
        ({"top_p": 1.5}, "top_p", 1.0),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 1e-6}, "temperature", 0.0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"do_sample": None}, "do_sample", False),
        ({"repetition_penalty": None}, "repetition_penalty", 1.0),
        ({"eos_token_id": []}, "eos_token_ids", (2,)),
        ({"eos_token_id": [5, 7]}, "eos_token_ids", (5, 7)),
        ({"eos_token_id": [5, 99999, -1]}, "eos_token_ids", (5,)),
        ({"eos_token_id": 99999}, "eos_token_ids", (2,)),
        ({"pad_token_id": -1}, "pad_token_id", None),
    ],
)
def test_meaning(written: dict[str, Any], field: str, meant: Any) -> None:
    spec = spec_of({"do_sample": True, **written})
    assert getattr(spec, field) == meant
    generation_options(spec)  # a run does not refuse what its user has not typed


def test_a_top_p_of_0_keeps_the_likeliest_alone() -> None:
    """In a large vocabulary, where it is hardly likelier than the rest."""
    logits = np.zeros(1 << 20, np.float32)
    logits[77] = 1e-3
    assert np.flatnonzero(keep_top_p(logits, SMALLEST_TOP_P) > -np.inf).tolist() == [77]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"temperature": float("nan")}, "temperature must be a finite number, found nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number, found inf"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": "hot"}, "temperature must be a finite number, found 'hot'"),
        ({"temperature": 10**400}, "temperature must be a finite number, found 1000"),
        ({"temperature": True}, "temperature must be a finite number, found True"),
        ({"top_k": 0.5}, "top_k must be an integer, found 0.5"),
        ({"top_k": float("nan")}, "top_k must be a finite number, found nan"),
        ({"top_k": [50]}, "top_k must be a finite number"),
        ({"top_p": -0.1}, "top_p is -0.1, expected from 0 to 1"),
        ({"top_p": float("nan")}, "top_p must be a finite number"),
        ({"min_p": 2}, "min_p is 2, expected from 0 to 1"),
        ({"min_p": float("nan")}, "min_p must be a finite number"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be a finite number"),
        ({"do_sample": "yes"}, "do_sample must be true or false, found 'yes'"),
        ({"do_sample": 1}, "do_sample must be true or false, found 1"),
        ({"eos_token_id": [[1, 2]]}, "eos_token_id must be an integer or a list of them"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer or a list of them"),
        ({"eos_token_id": True}, "eos_token_id must be an integer or a list of them"),
        ({"bos_token_id": "<s>"}, "bos_token_id must be an integer, found '<s>'"),
        ({"pad_token_id": 1.5}, "pad_token_id must be an integer, found 1.5"),
    ],
)
def test_refused_by_name(written: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError) as caught:
        spec_of(written)
    assert str(caught.value).startswith(f"generation_config.json: {message}")


TOLD: list[dict[str, Any]] = [
    {"num_beams": 3}, {"no_repeat_ngram_size": 3}, {"encoder_no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.3}, {"bad_words_ids": [[5]]}, {"sequence_bias": [[[5], 1.0]]},
    {"suppress_tokens": [4]}, {"begin_suppress_tokens": [4]}, {"forced_bos_token_id": 4}, {"forced_eos_token_id": 2},
    {"min_length": 9}, {"min_new_tokens": 9}, {"exponential_decay_length_penalty": [3, 1.1]}, {"guidance_scale": 2.0},
    {"penalty_alpha": 0.6, "top_k": 4}, {"penalty_alpha": 0.6},
    {"do_sample": True, "typical_p": 0.5}, {"do_sample": True, "epsilon_cutoff": 1e-4},
    {"do_sample": True, "eta_cutoff": 1e-4}, {"do_sample": True, "top_h": 0.4},
]  # fmt: skip
"""What changes transformers' answer and is not applied."""
NEUTRAL: list[dict[str, Any]] = [
    {}, {"num_beams": 1}, {"no_repeat_ngram_size": 0}, {"encoder_no_repeat_ngram_size": 0},
    {"encoder_repetition_penalty": 1.0}, {"bad_words_ids": None}, {"forced_eos_token_id": None}, {"min_length": 0},
    {"guidance_scale": 1}, {"penalty_alpha": 0.0, "top_k": 4}, {"penalty_alpha": 0.6, "top_k": 1}, {"typical_p": 0.5},
    {"epsilon_cutoff": 1e-4}, {"do_sample": True, "typical_p": 1.0}, {"do_sample": True, "epsilon_cutoff": 0.0},
    {"do_sample": True, "eta_cutoff": 0.0}, {"max_length": 4096}, {"use_cache": False},
]  # fmt: skip


@pytest.mark.parametrize("written", TOLD, ids=json.dumps)
def test_told(written: dict[str, Any]) -> None:
    (told,) = spec_of({"eos_token_id": 2, **written}).not_applied
    name = next(name for name in written if name not in ("do_sample", "top_k"))
    assert told == f"{name} {written[name]}"


@pytest.mark.parametrize("written", NEUTRAL, ids=json.dumps)
def test_neutral(written: dict[str, Any]) -> None:
    assert spec_of(written).not_applied == ()


def test_an_end_that_is_no_token_is_told() -> None:
    assert spec_of({"eos_token_id": [5, 99999]}).not_applied == ("eos_token_id 99999 (no token has it)",)


@pytest.mark.reference
@pytest.mark.parametrize("written", [*TOLD, *NEUTRAL], ids=json.dumps)
def test_transformers_agrees_on_what_changes_an_answer(written: dict[str, Any]) -> None:
    """transformers' own list of processors, and its mode, are the oracle."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, **written)
    prepared, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(prepared, False, device="cpu")
    found = model._get_logits_processor(
        prepared, 3, encoder_input_ids=torch.tensor([[1, 5, 6]]), device="cpu", model_kwargs={}
    )
    ours = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"}
    more = {type(processor).__name__ for processor in found} - {*ours, "RepetitionPenaltyLogitsProcessor"}
    is_plain = str(prepared.get_generation_mode()).endswith(("GREEDY_SEARCH", "SAMPLE")) and not prepared.num_beams > 1
    assert (bool(more) or not is_plain) == (written in TOLD)
    k = next((processor.top_k for processor in found if type(processor).__name__ == "TopKLogitsWarper"), None)
    if prepared.do_sample:
        assert k == (spec_of(written).top_k or None)


def package_with(tmp_path: Path, **generation: Any) -> Path:
    """A package whose manifest says so of generation, as an earlier version would have written it."""
    package = write_package(tmp_path / "package")
    manifest = json.loads((package / "edgevlm.json").read_text())
    manifest["generation"] |= generation
    (package / "edgevlm.json").write_text(json.dumps(manifest))
    return package


@pytest.mark.parametrize("generation", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 1e-6}])
def test_an_old_package_opens_and_runs(tmp_path: Path, generation: dict[str, Any]) -> None:
    options = generation_options(open_package(package_with(tmp_path, do_sample=True, **generation)).manifest.generation)
    assert options.sampling.top_k == 0
    assert options.sampling.temperature == (0.0 if "temperature" in generation else 1.0)


@pytest.mark.parametrize(
    "generation", [{"temperature": -1.0}, {"top_p": -1.0}, {"min_p": 3.0}, {"repetition_penalty": 0.0}]
)
def test_a_package_with_a_default_without_meaning_is_refused(tmp_path: Path, generation: dict[str, Any]) -> None:
    (field,) = generation
    with pytest.raises(PackageError, match=rf"generation\.{field} is"):
        open_package(package_with(tmp_path, **generation))


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    package = package_with(tmp_path, temperature=123.5)
    path = package / "edgevlm.json"
    path.write_text(path.read_text().replace("123.5", "1e999"))
    with pytest.raises(PackageError, match=r"1e999 is too large for a number"):
        open_package(package)
