"""GGUF: dequantisation, names, config, and the order of Q and K rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from export.checkpoint import open_checkpoint
from export.checkpoints import source
from export.checkpoints.gguf_container import READABLE_TYPES
from export.checkpoints.gguf_model import undo_rope_permutation
from export.checkpoints.gguf_rope import llama3_divisors
from tests.tiny_gguf import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, byte_level, tensors, write_model, writer
from tests.weights import qwen2_coder_0_5b, smollm2_135m

# What the gguf library itself can write; the K types are made by hand below.
WRITTEN_TYPES = [name for name in READABLE_TYPES if not name.endswith("K")]


def permute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp's reordering on conversion (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


@pytest.mark.parametrize("quant", WRITTEN_TYPES)
def test_a_model_of_each_type_reads_as_the_library_does(tmp_path: Path, quant: str) -> None:
    path = tmp_path / "model.gguf"
    original = write_model(path, "qwen2", quant=quant)
    checkpoint = open_checkpoint(path)
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    name = "blk.1.ffn_down.weight"
    expected = gguf.quants.dequantize(reference[name].data, reference[name].tensor_type)
    read = checkpoint.read("model.layers.1.mlp.down_proj.weight")
    np.testing.assert_array_equal(read, expected)
    assert np.linalg.norm(read - original[name]) / np.linalg.norm(original[name]) < 0.1
    for tensor in checkpoint.tensors():
        checkpoint.read(tensor)
    checkpoint.account()


def half(value: int) -> float:
    return float(np.array(value, np.uint16).view(np.float16))


def u16(block: bytes, at: int) -> int:
    return block[at] | block[at + 1] << 8


def q4_0(block: bytes) -> list[float]:
    scale, codes = half(u16(block, 0)), block[2:]
    return [scale * ((code & 15) - 8) for code in codes] + [scale * ((code >> 4) - 8) for code in codes]


def q4_1(block: bytes) -> list[float]:
    scale, low, codes = half(u16(block, 0)), half(u16(block, 2)), block[4:]
    return [scale * (code & 15) + low for code in codes] + [scale * (code >> 4) + low for code in codes]


def fifth_bits(block: bytes, at: int) -> list[int]:
    bits = int.from_bytes(block[at : at + 4], "little")
    return [(bits >> n & 1) << 4 for n in range(32)]


def q5_0(block: bytes) -> list[float]:
    scale, high, codes = half(u16(block, 0)), fifth_bits(block, 2), block[6:]
    nibbles = [code & 15 for code in codes] + [code >> 4 for code in codes]
    return [scale * ((low | top) - 16) for low, top in zip(nibbles, high, strict=True)]


def q5_1(block: bytes) -> list[float]:
    scale, least, high, codes = half(u16(block, 0)), half(u16(block, 2)), fifth_bits(block, 4), block[8:]
    nibbles = [code & 15 for code in codes] + [code >> 4 for code in codes]
    return [scale * (low | top) + least for low, top in zip(nibbles, high, strict=True)]


def q8_0(block: bytes) -> list[float]:
    return [half(u16(block, 0)) * (code - 256 if code > 127 else code) for code in block[2:]]


def six_bit_scales(packed: bytes) -> list[tuple[int, int]]:
    """ggml-quants.c, get_scale_min_k4: (step, minimum) of eight groups of 32."""
    found = []
    for group in range(8):
        if group < 4:
            found.append((packed[group] & 63, packed[group + 4] & 63))
        else:
            step = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            found.append((step, packed[group + 4] >> 4 | packed[group] >> 6 << 4))
    return found


def q4_k(block: bytes) -> list[float]:
    """ggml-quants.c, dequantize_row_q4_K."""
    scale, least, codes = half(u16(block, 0)), half(u16(block, 2)), block[16:]
    values = []
    for group, (step, low) in enumerate(six_bit_scales(block[4:16])):
        part = codes[group // 2 * 32 : group // 2 * 32 + 32]
        values += [scale * step * (code >> 4 * (group % 2) & 15) - least * low for code in part]
    return values


def q5_k(block: bytes) -> list[float]:
    """ggml-quants.c, dequantize_row_q5_K: as q4_K, the fifth bit of group g is bit g of 32 bytes."""
    scale, least, high, codes = half(u16(block, 0)), half(u16(block, 2)), block[16:48], block[48:]
    values = []
    for group, (step, low) in enumerate(six_bit_scales(block[4:16])):
        part = codes[group // 2 * 32 : group // 2 * 32 + 32]
        for code, fifth in zip(part, high, strict=True):
            values.append(scale * step * (code >> 4 * (group % 2) & 15 | (fifth >> group & 1) << 4) - least * low)
    return values


def q6_k(block: bytes) -> list[float]:
    """ggml-quants.c, dequantize_row_q6_K: sixteen groups of 16 with 8-bit scales."""
    low, high, scales, scale = block[:128], block[128:192], block[192:208], half(u16(block, 208))
    values = []
    for n in range(256):
        part, inside = divmod(n, 128)
        quarter, column = divmod(inside, 32)
        nibble = low[64 * part + 32 * (quarter % 2) + column] >> 4 * (quarter // 2) & 15
        top = high[32 * part + column] >> 2 * quarter & 3
        step = scales[n // 16]
        values.append(scale * (step - 256 if step > 127 else step) * ((nibble | top << 4) - 32))
    return values


DECODERS: dict[str, tuple[int, Callable[[bytes], list[float]]]] = {
    "Q4_0": (18, q4_0),
    "Q4_1": (20, q4_1),
    "Q5_0": (22, q5_0),
    "Q5_1": (24, q5_1),
    "Q8_0": (34, q8_0),
    "Q4_K": (144, q4_k),
    "Q5_K": (176, q5_k),
    "Q6_K": (210, q6_k),
}
HALVES = {
    **{name: [0] for name in ("Q4_0", "Q5_0", "Q8_0")},
    **{name: [0, 2] for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")},
    "Q6_K": [208],
}
"""Where fp16 numbers stand in a block."""


def test_every_readable_block_type_has_its_twin_here() -> None:
    assert set(DECODERS) == set(HALVES) == set(READABLE_TYPES) - {"F32", "F16", "BF16"}


@pytest.mark.parametrize("quant", DECODERS)
def test_blocks_are_decoded_as_ggml_defines_them(tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random blocks against scalar code written after ggml-quants.c; pieces of three rows are put together."""
    block_bytes, decode = DECODERS[quant]
    per_row = HIDDEN // gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quant]][0]
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (HIDDEN * per_row, block_bytes), np.uint8)
    for at in HALVES[quant]:  # finite scales
        blocks[:, at : at + 2] = rng.uniform(-1, 1, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    path = tmp_path / "model.gguf"
    vocabulary = byte_level("smollm")
    with writer(path, "llama", vocabulary) as out:
        for name, value in tensors("llama", len(vocabulary.tokens)).items():
            if name == "blk.0.ffn_down.weight":
                kind = gguf.GGMLQuantizationType[quant]
                out.add_tensor(name, blocks.reshape(HIDDEN, -1), raw_dtype=kind)
            else:
                out.add_tensor(name, value)
    monkeypatch.setattr(source, "CHUNK_BYTES", 3 * HIDDEN * 4)
    read = open_checkpoint(path).read("model.layers.0.mlp.down_proj.weight")
    expected = np.array([decode(block.tobytes()) for block in blocks]).reshape(HIDDEN, HIDDEN)
    np.testing.assert_allclose(read, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_names_and_config(tmp_path: Path, arch: str, tied: bool) -> None:
    path = tmp_path / "tiny.gguf"
    original = write_model(path, arch, tied=tied)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert config["model_type"] == arch
    assert config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in checkpoint.tensors()) is not tied
    expected: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": len(byte_level("smollm").tokens),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    assert json.loads(checkpoint.files["config.json"]) == config
    assert "rope_scaling" not in config
    assert len(checkpoint.tensors()) == len(original)
    stem = "model.layers.1.self_attn.v_proj"
    np.testing.assert_array_equal(checkpoint.read(f"{stem}.weight"), original["blk.1.attn_v.weight"])
    assert (f"{stem}.bias" in checkpoint.tensors()) is (arch == "qwen2")


def test_only_llamas_q_and_k_rows_were_reordered(tmp_path: Path) -> None:
    for arch in ("llama", "qwen2"):
        path = tmp_path / f"{arch}.gguf"
        stored = write_model(path, arch)
        checkpoint = open_checkpoint(path)
        for letter, heads in (("q", HEADS), ("k", KV_HEADS)):
            name = f"model.layers.0.self_attn.{letter}_proj.weight"
            read, raw = checkpoint.read(name), stored[f"blk.0.attn_{letter}.weight"]
            is_same = np.array_equal(read, raw)
            assert is_same is (arch == "qwen2")
            if arch == "llama":
                np.testing.assert_array_equal(permute(read, heads), raw)
                assert not np.array_equal(permute(read, heads * 2), raw), "control: another number of heads"
                np.testing.assert_array_equal(checkpoint.read_rows(name, 5, 9), read[5:9])


def test_the_reordering_and_its_inverse() -> None:
    weight = np.arange(48, dtype=np.float32).reshape(16, 3)
    np.testing.assert_array_equal(undo_rope_permutation(permute(weight, 2), 2), weight)
    assert not np.array_equal(undo_rope_permutation(weight, 2), permute(weight, 2)), (
        "control: it is not its own inverse"
    )
    np.testing.assert_array_equal(undo_rope_permutation(permute(weight[:, 0], 2), 2), weight[:, 0])


def write_with(
    path: Path, *, metadata: dict[str, Any] | None = None, more: dict[str, NDArray[Any]] | None = None
) -> Path:
    vocabulary = byte_level("smollm")
    with writer(path, "llama", vocabulary) as out:
        for name, value in {**tensors("llama", len(vocabulary.tokens)), **(more or {})}.items():
            out.add_tensor(name, value)
        for key, value in (metadata or {}).items():
            add = {str: out.add_string, float: out.add_float32, int: out.add_uint32}[type(value)]
            add(key, value)
    return path


def test_llama3_rope_factors_become_its_scaling(tmp_path: Path) -> None:
    factors = llama3_divisors(HEAD_DIM, 10000.0, 32.0, 8192).astype(np.float32)
    assert factors.min() == 1 and factors.max() == 32 and len(set(factors)) > 3
    checkpoint = open_checkpoint(write_with(tmp_path / "tiny.gguf", more={"rope_freqs.weight": factors}))
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in checkpoint.tensors())
    factors[3] *= 1.01
    with pytest.raises(UnsupportedModelError, match="other factors than Llama 3"):
        open_checkpoint(write_with(tmp_path / "other.gguf", more={"rope_freqs.weight": factors}))


def test_rope_scaling_is_read_or_refused(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    checkpoint = open_checkpoint(write_with(tmp_path / "linear.gguf", metadata=linear))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(UnsupportedModelError, match="RoPE scaling 'yarn'"):
        open_checkpoint(write_with(tmp_path / "yarn.gguf", metadata={"llama.rope.scaling.type": "yarn"}))


@pytest.mark.parametrize(
    ("metadata", "fragment"),
    [
        ({"llama.rope.dimension_count": 16}, "rotates only a part"),
        ({"llama.attention.key_length": 64}, "has 256 rows, expected 8 heads of 64"),
        ({"llama.attention.sliding_window": 4096}, "sets 'llama.attention.sliding_window'"),
        ({"llama.attention.clamp_kqv": 8.0}, "sets 'llama.attention.clamp_kqv'"),
        ({"llama.attention.key_length": "32"}, "must be of type int, found str"),
        ({"llama.attention.value_length": 16}, "different head sizes"),
    ],
)
def test_fields_that_would_change_the_result_are_refused(
    tmp_path: Path, metadata: dict[str, Any], fragment: str
) -> None:
    with pytest.raises((UnsupportedModelError, PackageError), match=fragment):
        open_checkpoint(write_with(tmp_path / "tiny.gguf", metadata=metadata))


def test_any_cut_or_flipped_byte_is_an_error_or_a_sound_read(tmp_path: Path) -> None:
    """Damage anywhere in the metadata ends in one of our errors, never in another exception."""
    path = tmp_path / "tiny.gguf"
    write_model(path)
    sound = path.read_bytes()
    end = sound.index(b"token_embd.weight") + 2000
    rng = np.random.default_rng(0)
    n_refused = 0
    for at in rng.integers(4, end, 120):
        damaged = bytearray(sound)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except (PackageError, UnsupportedModelError):
            n_refused += 1
    assert 10 < n_refused < 120


CONFIG_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "hidden_act"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


@pytest.mark.weights
@pytest.mark.reference
@pytest.mark.parametrize(
    "weights",
    [pytest.param(smollm2_135m, id="smollm2"), pytest.param(qwen2_coder_0_5b, id="qwen2", marks=pytest.mark.slow)],
)
def test_real_tensors_equal_transformers(weights: Callable[[], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    path = weights()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    expected = model.state_dict()
    checkpoint = open_checkpoint(path)
    for name in checkpoint.tensors():
        np.testing.assert_array_equal(checkpoint.read(name), expected[name].numpy(), err_msg=name)
    left = set(expected) - set(checkpoint.tensors())
    assert left == ({"lm_head.weight"} if checkpoint.config["tie_word_embeddings"] else set())
    theirs, ours = model.config, transformers.AutoConfig.for_model(**checkpoint.config)
    assert ours.model_type == theirs.model_type
    for field in CONFIG_FIELDS:
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps, rel=1e-7)  # theirs is the float32's double
