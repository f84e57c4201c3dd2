"""GGUF metadata: logits of tiny models against llama.cpp's (tests/golden/gguf_logits.json), and every key's fate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import Keys
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from export.checkpoint import open_checkpoint
from export.checkpoints.gguf_keys import (
    ARCH_IDLE,
    ARCH_NEUTRAL,
    ARCH_READ,
    TOKENIZER_IDLE,
    TOKENIZER_NEUTRAL,
    TOKENIZER_READ,
)
from tests.export.graph_session import build
from tests.golden.make_gguf_logits import IDS, SHOWN
from tests.tiny_gguf import ROTATIONS, add, byte_level, llama3_factors, sentencepiece, tensors, write_calm, writer

GOLDEN = json.loads((Path(__file__).resolve().parent.parent / "golden" / "gguf_logits.json").read_text())
MAX_DIFFERENCE = 0.008
"""llama.cpp's cache has 16-bit floats: at most 0.0031 measured (2026-11-29); other rotations differ by 0.6 and more."""
LLAMA3 = "Llama 3's factors"


def logits(path: Path, out: Path) -> NDArray[np.float32]:
    graphs = build(path, out)
    found, _ = graphs.decode(graphs.embed(np.array(IDS)), keep=1)
    return found[-1][SHOWN]


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("name", ROTATIONS)
def test_logits_equal_llama_cpp(arch: str, name: str, tmp_path: Path) -> None:
    found = logits(write_calm(tmp_path / "tiny.gguf", arch, ROTATIONS[name]), tmp_path / "out")
    golden = {key: np.array(values) for key, values in GOLDEN["logits"][arch].items()}
    assert np.abs(found - golden[name]).max() < MAX_DIFFERENCE
    others = [key for key in golden if np.abs(golden[key] - golden[name]).max() > 0.1]
    assert {"linear", "plain"} & set(others), "control: another rotation has other logits"
    assert all(np.abs(found - golden[key]).max() > 0.1 for key in others)


def test_llama3_factors_equal_llama_cpp(tmp_path: Path) -> None:
    path = write_calm(tmp_path / "tiny.gguf", "llama", {}, {"rope_freqs.weight": llama3_factors()})
    golden = {key: np.array(values) for key, values in GOLDEN["logits"]["llama"].items()}
    found = logits(path, tmp_path / "out")
    difference, control = (np.abs(found - golden[key]).max() for key in (LLAMA3, "plain"))
    assert difference < 0.005 < 0.015 < control


@pytest.mark.reference
@pytest.mark.parametrize("name", ["plain", "linear", "none with a factor", "key heads listed by layer"])
def test_the_reference_equals_llama_cpp(name: str, tmp_path: Path) -> None:
    """What `verify` compares with: transformers alone leaves the scaling out and refuses the list."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from export.reference.load import load_reference

    path = write_calm(tmp_path / "tiny.gguf", "llama", ROTATIONS[name])
    with torch.no_grad():
        found = load_reference(path).parts.language(torch.tensor([IDS])).logits[0, -1].numpy()[SHOWN]
    golden = {key: np.array(values) for key, values in GOLDEN["logits"]["llama"].items()}
    assert np.abs(found - golden[name]).max() < MAX_DIFFERENCE
    assert np.abs(found - golden["plain" if name == "linear" else "linear"]).max() > 0.1, "control"


def test_none_does_not_scale(tmp_path: Path) -> None:
    """The config of both architectures, whichever key has the factor."""
    for arch in ("llama", "qwen2"):
        for name in ("none with a factor", "none with an old factor"):
            assert "rope_scaling" not in open_checkpoint(write_calm(tmp_path / "t.gguf", arch, ROTATIONS[name])).config


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_no_key_that_moves_llama_cpps_logits_is_left_alone(arch: str) -> None:
    effects = GOLDEN["keys"][arch]
    moving = {key for key, effect in effects.items() if effect != "nothing"}
    assert {"attention.causal", "rope.scaling.attn_factor", "rope.freq_base"} <= moving, "control"
    assert not moving & set(ARCH_IDLE)
    assert len(effects) > 150


def test_the_tables_do_not_overlap_and_know_the_librarys_keys() -> None:
    tables = [set(ARCH_READ), set(ARCH_NEUTRAL), set(ARCH_IDLE)]
    assert len(set().union(*tables)) == sum(map(len, tables))
    tables = [set(TOKENIZER_READ), set(TOKENIZER_NEUTRAL), set(TOKENIZER_IDLE)]
    assert len(set().union(*tables)) == sum(map(len, tables))
    names = {value for value in vars(Keys.Tokenizer).values() if isinstance(value, str) and "ggml" in value}
    assert names <= set().union(*tables) and len(names) > 20


def write_tokenizer(path: Path, metadata: dict[str, Any]) -> Path:
    vocabulary = byte_level("smollm")
    with writer(path, "llama", vocabulary) as out:
        for name, value in tensors("llama", len(vocabulary.tokens)).items():
            out.add_tensor(name, value)
        for key, value in metadata.items():
            add(out, key, value)
    return path


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
    ({"rope.scaling.type": "longrope"}, "RoPE scaling 'longrope'"),
    ({"rope.scaling.type": "Linear"}, "RoPE scaling 'Linear'"),
    ({"rope.scaling.factor": -4.0}, "expected a positive number"),
    ({"rope.freq_base": 0.0}, "expected a positive number"),
    ({"rope.scaling.attn_factor": 2.0}, r"sets 'llama\.rope\.scaling\.attn_factor' to 2\.0"),
    ({"rope.scaling.yarn_ext_factor": 1.0}, "yarn_ext_factor"),
    ({"rope.scaling.alpha": 1000.0}, "alpha"),
    ({"rope.dimension_sections": [8, 12, 12, 0]}, "sets 'llama.rope.dimension_sections' to a list of 4"),
    ({"rope.dimension_count": 0}, r"no 'llama\.rope\.dimension_count'"),
    ({"attention.causal": False}, "sets 'llama.attention.causal' to False"),
    ({"attention.causal": 1}, "sets 'llama.attention.causal' to 1"),
    ({"attention.temperature_scale": 0.5}, "temperature_scale"),
    ({"attention.head_count_kv": [2, 4]}, "differs between layers"),
    ({"attention.head_count_kv": [2, 2, 2]}, "lists 3 values; expected 2"),
    ({"feed_forward_length": [256, 128]}, "differs between layers"),
    ({"attention.head_count": [8, 4]}, "differs between layers"),
    ({"expert_used_count": 2}, "expert_used_count"),
    ({"vocab_size": 300}, "states vocab_size 300"),
    ({"block_count": 3}, r"no tensor 'blk\.2\.attn_norm\.weight'"),
    ({"block_count": 4_000_000_000}, r"no tensor 'blk\.2\.attn_norm\.weight'"),
    ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ({"pooling_type": 3}, "pooling_type"),
    ({"nextn_predict_layers": 1}, "nextn_predict_layers"),
    ({"a_key_of_tomorrow": 1}, r"sets 'llama\.a_key_of_tomorrow' to 1; what it changes is not known"),
    ({"hidden_activation": "gelu"}, r"sets 'llama\.hidden_activation' to 'gelu'"),
]


@pytest.mark.parametrize(("metadata", "fragment"), REFUSED, ids=[", ".join(metadata) for metadata, _ in REFUSED])
def test_what_is_not_read_is_refused_by_name(metadata: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedModelError, PackageError), match=fragment):
        open_checkpoint(write_calm(tmp_path / "tiny.gguf", "llama", metadata))


REFUSED_ELSEWHERE: list[tuple[dict[str, Any], str]] = [
    ({"general.type": "adapter"}, "an adapter .* merge it"),
    ({"general.type": "mmproj"}, "only the vision part"),
    ({"general.quantization_version": 1}, "quantization_version"),
    ({"tokenizer.ggml.add_sep_token": True}, "add_sep_token"),
    ({"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]}, "precompiled_charsmap"),
    ({"tokenizer.ggml.normalizer.lowercase": True}, "lowercase"),
    ({"tokenizer.ggml.suppress_tokens": [5]}, "suppress_tokens"),
    ({"tokenizer.ggml.eos_token_ids": [2, 99999]}, "holds an id that is no token"),
    ({"tokenizer.ggml.some_new_rule": True}, "some_new_rule"),
]


@pytest.mark.parametrize(
    ("metadata", "fragment"), REFUSED_ELSEWHERE, ids=[", ".join(metadata) for metadata, _ in REFUSED_ELSEWHERE]
)
def test_other_prefixes_are_refused_by_name(metadata: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match=fragment):
        open_checkpoint(write_tokenizer(tmp_path / "tiny.gguf", metadata))


def test_harmless_keys_are_read_past(tmp_path: Path) -> None:
    """What the converters of llama.cpp, ollama and others write into ordinary files."""
    harmless: dict[str, Any] = {
        "general.file_type": 7,
        "general.quantization_version": 2,
        "general.tags": ["text-generation"],
        "quantize.imatrix.file": "x.dat",
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.rope.dimension_count": 32,
        "llama.attention.value_length": 32,
        "tokenizer.ggml.remove_extra_whitespaces": False,
        "tokenizer.ggml.fim_pre_token_id": 4,
        "tokenizer.ggml.mask_token_id": 1,
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "{{ messages }}",
        "tokenizer.huggingface.json": "{}",
    }
    open_checkpoint(write_tokenizer(tmp_path / "tiny.gguf", harmless))


def test_end_ids_and_sampling_are_read(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.eos_token_ids": [2, 7],
        "general.sampling.temp": 0.5,
        "general.sampling.top_p": 0.75,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.25,
    }
    path = tmp_path / "tiny.gguf"
    vocabulary = byte_level("smollm")
    with writer(path, "llama", vocabulary) as out:
        for name, value in tensors("llama", len(vocabulary.tokens)).items():
            out.add_tensor(name, value)
        for key, value in metadata.items():
            (out.add_int32 if key.endswith("top_k") else lambda key, value: add(out, key, value))(key, value)
    generation = json.loads(open_checkpoint(path).files["generation_config.json"])
    expected = {"do_sample": True, "temperature": 0.5, "top_p": 0.75, "top_k": 20, "repetition_penalty": 1.25}
    assert generation | expected == generation
    assert generation["eos_token_id"][:2] == [2, 7]


def test_an_spm_vocabulary_without_ids_has_llama_cpps(tmp_path: Path) -> None:
    vocabulary = sentencepiece()
    for key in ("bos_token_id", "eos_token_id", "unknown_token_id"):
        del vocabulary.extra[key]
    path = tmp_path / "tiny.gguf"
    with writer(path, "llama", vocabulary) as out:
        for name, value in tensors("llama", len(vocabulary.tokens)).items():
            out.add_tensor(name, value)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.config["bos_token_id"], checkpoint.config["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("value", [9, -1])
def test_unknown_token_types_are_refused(value: int, tmp_path: Path) -> None:
    vocabulary = byte_level("smollm")
    vocabulary.types[300] = value
    path = tmp_path / "tiny.gguf"
    with writer(path, "llama", vocabulary) as out:
        for name, tensor in tensors("llama", len(vocabulary.tokens)).items():
            out.add_tensor(name, tensor)
    with pytest.raises(PackageError, match="token_type"):
        open_checkpoint(path)


def test_llama3_factors_do_not_go_with_a_factor_or_with_qwen2(tmp_path: Path) -> None:
    more = {"rope_freqs.weight": llama3_factors()}
    with pytest.raises(UnsupportedModelError, match="scales its RoPE twice"):
        open_checkpoint(write_calm(tmp_path / "a.gguf", "llama", ROTATIONS["linear"], more))
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight', which 'qwen2' does not have"):
        open_checkpoint(write_calm(tmp_path / "b.gguf", "qwen2", {}, more))
    open_checkpoint(write_calm(tmp_path / "c.gguf", "llama", ROTATIONS["none with a factor"], more))


def test_a_big_endian_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    vocabulary = byte_level("smollm")
    out = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    out.add_token_list(vocabulary.tokens)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    with pytest.raises(UnsupportedModelError, match="is a big-endian GGUF file; convert it"):
        open_checkpoint(path)
