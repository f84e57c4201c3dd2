"""config.json and its neighbours → ArchSpec: sparse files, both dialects, layouts of names, refusals by field name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from edgevlm.errors import EdgeVLMError, PackageError, UnsupportedModelError
from edgevlm.spec import ProcessorSpec
from export.archs import ARCHS, arch_spec
from export.archspec import ArchSpec, ConnectorSpec, LMSpec, NameMap, RopeSpec, VisionSpec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.graphs.supported import ANY, TABLES, check_all, check_supported
from export.quant.rules import QuantPlan
from tests.tiny import MAKERS, added_token_ids, make_bluelm_v, make_llama, make_smolvlm, tokenizer_json

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}


def spec_of(directory: Path) -> ArchSpec:
    checkpoint = open_checkpoint(directory)
    return arch_spec(checkpoint.config, checkpoint.files)


def rope_of(**config: Any) -> RopeSpec:
    language = arch_spec({**LLAMA, **config}, {}).language
    assert language is not None
    return dict(language.ropes)["full"]


@pytest.mark.parametrize("name", MAKERS)
def test_every_architecture_reads_its_tiny_checkpoint(name: str, tmp_path: Path) -> None:
    spec = spec_of(MAKERS[name](tmp_path / name))
    assert spec.model_type == name
    for part in (spec.language, spec.vision, spec.connector):
        if part is not None:
            check_supported(part)


def test_sparse_config_takes_class_defaults() -> None:
    language = arch_spec({"model_type": "llama"}, {}).language
    assert language is not None
    assert (language.hidden, language.mlp[0], language.vocab, language.context) == (4096, 11008, 32000, 2048)
    assert (language.norm_eps, language.kv_heads[0], language.head_dim[0], language.tied) == (1e-6, 32, 128, False)
    qwen = arch_spec({"model_type": "qwen2"}, {}).language
    assert qwen is not None
    assert (qwen.mlp[0], qwen.context, qwen.bias_qkv, qwen.bias_o) == (22016, 32768, True, False)


def test_sparse_vision_config_takes_class_defaults() -> None:
    vision = arch_spec({"model_type": "siglip_vision_model"}, {}).vision
    assert vision is not None
    assert (vision.width, vision.patch, vision.image_px, vision.act) == (768, 16, 224, "gelu_tanh")
    dino = arch_spec({"model_type": "dinov2"}, {}).vision
    assert dino is not None
    assert (dino.patch, dino.pos_grid, dino.mlp, dino.act, dino.norm_eps) == (14, 16, 3072, "gelu", 1e-6)


LLAMA3_NUMBERS = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_NUMBERS}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_NUMBERS}},
        ),
    ],
)
def test_both_rope_dialects_say_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert rope_of(**old) == rope_of(**new)
    assert rope_of(**old).theta == 5e5


def test_absent_or_null_rope_is_the_default() -> None:
    assert rope_of() == rope_of(rope_scaling=None) == RopeSpec(theta=10000.0)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            UnsupportedModelError,
            r"rope kind 'yarn' .*scaling.type",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            UnsupportedModelError,
            "'longrope'.*rope_type",
        ),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedModelError, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
        ({"hidden_act": "swiglu"}, UnsupportedModelError, "hidden_act"),
        ({"hidden_size": "big"}, PackageError, "hidden_size"),
        ({"num_hidden_layers": -1}, PackageError, "num_hidden_layers"),
        ({"rms_norm_eps": "small"}, PackageError, "rms_norm_eps"),
        ({"attention_bias": 1}, PackageError, "attention_bias"),
        ({"num_attention_heads": 5}, PackageError, "num_attention_heads"),
        ({"rope_scaling": "linear"}, PackageError, "rope_scaling"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
            UnsupportedModelError,
            "use_sliding_window",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2},
            UnsupportedModelError,
            "layer_types",
        ),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, UnsupportedModelError, "use_swiglu_ffn"),
        ({"model_type": "dinov2", "image_size": [224, 448]}, UnsupportedModelError, "image_size"),
        ({"model_type": "siglip_vision_model", "num_channels": 1}, UnsupportedModelError, "num_channels"),
        ({"model_type": "siglip_vision_model", "num_attention_heads": 7}, PackageError, "num_attention_heads 7"),
        ({"model_type": "dinov2", "num_attention_heads": 7}, PackageError, "num_attention_heads 7"),
        ({"model_type": "smolvlm", "vision_config": {"patch_size": 16}}, PackageError, "preprocessor_config.json"),
        (
            {"model_type": "smolvlm", "text_config": {"model_type": "gemma3"}},
            UnsupportedModelError,
            "text_config.model_type",
        ),
        (
            {"model_type": "bluelm_v", "vision_config": {"model_type": "clip"}, "text_config": {"model_type": "llama"}},
            UnsupportedModelError,
            "vision_config.model_type",
        ),
        ({"model_type": "mamba"}, UnsupportedModelError, "'mamba'.*implemented: .*llama"),
        ({"model_type": None}, PackageError, "model_type"),
    ],
)
def test_refusals_name_the_field(config: dict[str, Any], error: type[EdgeVLMError], message: str) -> None:
    with pytest.raises(error, match=message):
        arch_spec({**LLAMA, **config}, {})


def test_every_spec_field_is_in_a_table() -> None:
    for spec_class, table in TABLES.items():
        assert set(table) == {field.name for field in dataclasses.fields(spec_class)}


FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llava, two layers of features": (VisionSpec, {"features": (-2, -5), "concat": True}),
    "gemma4 tower": (VisionSpec, {"pos": "xy_tables", "pos_input": "host", "placement": "sandwich", "v_norm": True}),
    "pixtral": (VisionSpec, {"rope": "even_odd", "norm": "rms", "mlp_kind": "gated"}),
    "perception_lm": (VisionSpec, {"rope": "halves", "rope_rotation": "pairs", "rope_offset": 1}),
    "qwen2_5_vl": (VisionSpec, {"temporal_patch": 2, "mask": "window", "window": 112, "full_layers": (7, 15)}),
    "qwen3_vl tower": (VisionSpec, {"pos": "bilinear", "taps": (5, 11, 17), "patch_layout": "flat_ctyx"}),
    "lfm3_vl tower": (VisionSpec, {"kv_heads": 2, "patch_layout": "flat_hwc"}),
    "minicpmv4_6": (VisionSpec, {"mid_merge": 6}),
    "internvl": (VisionSpec, {"qk_norm": "full"}),
    "llava_next": (ConnectorSpec, {"newline": True}),
    "mistral3 projector": (ConnectorSpec, {"order": "c_yx", "norm": "rms", "norm_on": "patch"}),
    "gemma3 projector": (ConnectorSpec, {"reduce": "avgpool", "norm": "rms1p", "stored_transposed": True}),
    "phi4 projector": (ConnectorSpec, {"pad": "reflect"}),
    "ovis2": (ConnectorSpec, {"extra": "visual_vocab"}),
    "mistral3": (RopeSpec, {"kind": "yarn", "factor": 16.0, "beta_fast": 32.0, "attention_factor": 1.0}),
    "phi3": (RopeSpec, {"kind": "longrope", "short_factor": (1.0,) * 48, "long_factor": (4.0,) * 48}),
    "gemma4 rope": (RopeSpec, {"kind": "proportional", "rotary_dim": 128}),
    "qwen3_vl": (RopeSpec, {"mrope_section": (24, 20, 20), "mrope_layout": "interleaved"}),
    "glm_ocr": (RopeSpec, {"rotation": "pairs"}),
    "gemma3": (LMSpec, {"layer_kinds": ("sliding", "full"), "window": 512, "norm": "rms1p", "mask": "image_blocks"}),
    "qwen3": (LMSpec, {"qk_norm": "head"}),
    "smollm3": (LMSpec, {"layer_kinds": ("full", "nope")}),
    "granite": (LMSpec, {"embed_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}),
    "granitemoe": (LMSpec, {"moe_experts": 32, "moe_top_k": 8, "moe_order": "topk_softmax"}),
    "olmoe": (LMSpec, {"moe_renorm": True, "moe_dense_layers": (0,), "clip_qkv": 8.0}),
    "gemma4": (LMSpec, {"kv_source": (0, 0), "ple_width": 256, "ple_vocab": 262144, "layer_scalar": True}),
    "qwen3_vl language": (LMSpec, {"deepstack": ((0, "after", 0),)}),
    "granite4_vision": (LMSpec, {"zero_image_embeds": True}),
    "lfm2": (LMSpec, {"layer_kinds": ("conv", "full"), "conv_kernel": 3}),
    "qwen3_5": (
        LMSpec,
        {
            "layer_kinds": ("delta", "full"),
            "delta_key_heads": 16,
            "delta_value_heads": 32,
            "delta_key_dim": 128,
            "delta_value_dim": 128,
            "delta_kernel": 4,
            "out_gate": "element",
        },
    ),
    "qwen2_vl pictures": (ProcessorSpec, {"scheme": "smart_resize", "min_pixels": 3136, "max_pixels": 12845056}),
    "lfm2_vl pictures": (ProcessorSpec, {"scheme": "naflex", "max_pixels": 512 * 512}),
    "gemma4 pictures": (ProcessorSpec, {"scheme": "patch_budget"}),
    "minicpmv pictures": (ProcessorSpec, {"scheme": "slices"}),
    "phi4 weights": (NameMap, {"transforms": ((r".*lora.*", "merge_lora"),)}),
    "modernbert weights": (NameMap, {"transforms": ((r".*Wqkv", "split"), (r".*Wi", "split"))}),
}
"""What families that are not implemented need, by part: each has its field, and is refused by that field's name."""


def part_of(spec: ArchSpec, part: type[Any]) -> Any:
    parts = (spec.names, spec.vision, spec.connector, spec.processor, spec.language)
    ropes = () if spec.language is None else [rope for _, rope in spec.language.ropes]
    return next(value for value in (*parts, *ropes) if type(value) is part)


@pytest.fixture(scope="module")
def whole_spec(tmp_path_factory: pytest.TempPathFactory) -> ArchSpec:
    return spec_of(make_bluelm_v(tmp_path_factory.mktemp("bluelm_v")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_fields_and_is_refused_by_their_names(family: str, whole_spec: ArchSpec) -> None:
    part, changes = FAMILIES[family]
    spec = whole_spec
    check_all(spec)
    for name, value in changes.items():
        changed = dataclasses.replace(part_of(spec, part), **{name: value})
        if TABLES[part][name] is ANY:  # a number of a kind that is refused
            continue
        with pytest.raises(UnsupportedModelError, match=rf"^{part.__name__}\.{name} = .* is not implemented"):
            check_supported(changed)
    whole = dataclasses.replace(part_of(spec, part), **changes)
    with pytest.raises(UnsupportedModelError, match=rf"^{part.__name__}\."):
        check_all(_with_part(spec, whole))


def _with_part(spec: ArchSpec, part: Any) -> ArchSpec:
    if isinstance(part, RopeSpec):
        assert spec.language is not None
        return dataclasses.replace(spec, language=dataclasses.replace(spec.language, ropes=(("full", part),)))
    field = next(f.name for f in dataclasses.fields(spec) if type(getattr(spec, f.name)) is type(part))
    return dataclasses.replace(spec, **{field: part})


def test_a_processor_that_no_planner_knows_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_bluelm_v(tmp_path / "checkpoint"))
    spec = arch_spec(checkpoint.config, checkpoint.files)
    assert spec.processor is not None
    wrong = dataclasses.replace(spec, processor=dataclasses.replace(spec.processor, scheme="naflex"))
    with pytest.raises(UnsupportedModelError, match=r"ProcessorSpec\.scheme = 'naflex'"):
        build_model(wrong, checkpoint, QuantPlan("fp32", "fp32"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unimplemented_spec_values_are_refused_by_name() -> None:
    language = arch_spec(LLAMA, {}).language
    assert language is not None
    for change in ({"qk_norm": "head"}, {"embed_scale": 2.0}, {"norm": "rms1p"}, {"mask": "prefix"}):
        with pytest.raises(UnsupportedModelError, match=f"LMSpec.{next(iter(change))}"):
            check_supported(dataclasses.replace(language, **change))
    with pytest.raises(UnsupportedModelError, match=r"LMSpec\.layer_kinds = 'conv'"):
        check_supported(dataclasses.replace(language, layer_kinds=("full", "conv", "full")))


def test_smolvlm_processor_and_prompt(tmp_path: Path) -> None:
    spec = spec_of(make_smolvlm(tmp_path))
    processor, prompt = spec.processor, spec.prompt
    assert processor is not None and prompt is not None
    assert (processor.scheme, processor.tile_px, processor.longest_edge_px) == ("tile_grid", 32, 128)
    assert (processor.resample, processor.thumbnail, processor.max_tiles) == ("lanczos", "last", 16)
    fake, image = "<fake_token_around_image>", "<image>" * prompt.tokens_per_tile
    assert prompt.tokens_per_tile == 4
    expected = f"{fake}<row_1_col_1>{image}{fake}<row_1_col_2>{image}\n\n{fake}<global-img>{image}{fake}"
    tiles = "".join(prompt.tile_prefix.format(row=1, col=col) + image for col in (1, 2))
    assert (
        prompt.image_prefix + tiles + prompt.row_suffix + prompt.thumbnail_prefix + image + prompt.image_suffix
        == expected
    )
    assert prompt.single_prefix + image + prompt.image_suffix == f"{fake}<global-img>{image}{fake}"
    assert prompt.content_format == "list"


def edited(directory: Path, name: str, **changes: Any) -> Path:
    path = directory / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}))
    return directory


def test_processor_as_transformers_v5_saves_it(tmp_path: Path) -> None:
    """One processor_config.json with the picture's part inside."""
    old = make_smolvlm(tmp_path / "old")
    new = make_smolvlm(tmp_path / "new")
    picture = json.loads((new / "preprocessor_config.json").read_text())
    (new / "preprocessor_config.json").unlink()
    edited(new, "processor_config.json", image_processor=picture)
    assert spec_of(new) == spec_of(old)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("processor_config.json", {"image_seq_len": 81}, PackageError, "image_seq_len 81.*4 tokens"),
        ("processor_config.json", {"image_seq_len": "4"}, PackageError, "image_seq_len '4'.*4 tokens"),
        ("processor_config.json", {"image_seq_len": [4]}, PackageError, r"image_seq_len \[4\].*4 tokens"),
        ("tokenizer_config.json", {"fake_image_token": "<a>"}, UnsupportedModelError, "fake_image_token '<a>'"),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": {"global_image_token": "<whole>"}},
            UnsupportedModelError,
            "global_image_token '<whole>'.*'<global-img>'",
        ),
        ("config.json", {"image_token_id": 5}, PackageError, "image token is 5"),
        ("config.json", {"scale_factor": 3}, UnsupportedModelError, "scale_factor"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 64}}, UnsupportedModelError, "max_image_size"),
        ("preprocessor_config.json", {"max_image_size": 64}, PackageError, "max_image_size"),
        ("preprocessor_config.json", {"resample": 4}, UnsupportedModelError, "resample"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, PackageError, "image_mean"),
        ("generation_config.json", {"eos_token_id": "two"}, PackageError, "eos_token_id"),
        ("generation_config.json", {"temperature": "warm"}, PackageError, "temperature"),
    ],
)
def test_contradicting_files_are_refused(
    name: str, changes: dict[str, Any], error: type[EdgeVLMError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        spec_of(edited(make_smolvlm(tmp_path), name, **changes))


def test_bluelm_v_processor_and_prompt(tmp_path: Path) -> None:
    spec = spec_of(make_bluelm_v(tmp_path))
    assert spec.processor is not None and spec.prompt is not None
    assert (spec.processor.scheme, spec.processor.thumbnail, spec.processor.resample) == ("relaxed", "first", "bicubic")
    assert (spec.processor.max_rows, spec.processor.max_cols, spec.processor.max_tiles) == (4, 4, 16)
    assert spec.prompt.tokens_per_tile == 9, "5x5 patches are padded to 6x6, then merged 2x2"
    assert spec.prompt.image_token_id == added_token_ids(tokenizer_json(("<image>",)))["<image>"]
    assert spec.prompt.tile_prefix == spec.prompt.image_suffix == ""


@pytest.mark.parametrize(("factor", "tokens"), [(1, 25), (2, 9), (3, 4)])
def test_bluelm_v_merges_as_many_patches_as_its_config_says(factor: int, tokens: int, tmp_path: Path) -> None:
    spec = spec_of(make_bluelm_v(tmp_path, scale_factor=factor))
    assert spec.prompt is not None and spec.connector is not None
    assert (spec.prompt.tokens_per_tile, spec.connector.factor) == (tokens, factor)


@pytest.mark.parametrize(("factor", "error"), [(0, PackageError), (6, UnsupportedModelError)])
def test_bluelm_v_refuses_blocks_that_no_tile_holds(factor: int, error: type[EdgeVLMError], tmp_path: Path) -> None:
    with pytest.raises(error, match="scale_factor"):
        spec_of(edited(make_bluelm_v(tmp_path), "config.json", scale_factor=factor))


def test_generation_defaults(tmp_path: Path) -> None:
    directory = edited(make_llama(tmp_path), "generation_config.json", eos_token_id=[2, 0], temperature=0.6, top_p=0.9)
    generation = spec_of(directory).generation
    assert generation is not None
    assert (generation.eos_token_ids, generation.temperature, generation.top_p) == ((2, 0), 0.6, 0.9)
    (directory / "generation_config.json").unlink()
    assert spec_of(directory).generation.eos_token_ids == (2,), "from config.json"  # type: ignore[union-attr]
    data = json.loads((directory / "config.json").read_text())
    del data["eos_token_id"]
    (directory / "config.json").write_text(json.dumps(data))
    assert spec_of(directory).generation.eos_token_ids == (2,), "from the tokenizer"  # type: ignore[union-attr]


def build(directory: Path, out: Path) -> Any:
    checkpoint = open_checkpoint(directory)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    return build_model(spec, checkpoint, QuantPlan("fp32", "fp32"), out)


def renamed(directory: Path, pattern: str, replacement: str) -> Path:
    path = directory / "model.safetensors"
    tensors = {re.sub(pattern, replacement, name): value for name, value in load_file(path).items()}
    save_file(tensors, path)
    return directory


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("llama", "^model\\.", ""),
        ("qwen2", "^model\\.", ""),
        ("siglip", "^vision_model\\.", ""),
        ("dinov2", "^", "dinov2."),
        ("smolvlm", "^model\\.", ""),
        ("idefics3", "^model\\.", ""),
        ("bluelm_v", "^language_model\\.model\\.", "language_model."),
    ],
)
def test_other_name_layouts_build_the_same_files(name: str, pattern: str, replacement: str, tmp_path: Path) -> None:
    build(MAKERS[name](tmp_path / "hub"), tmp_path / "a")
    build(renamed(MAKERS[name](tmp_path / "other"), pattern, replacement), tmp_path / "b")
    first, second = (sorted((tmp_path / side / "onnx").iterdir()) for side in "ab")
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "checkpoint")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.layers.0.self_attn.q_norm.weight": tensors["model.norm.weight"]}, path)
    with pytest.raises(UnsupportedModelError, match="q_norm"):
        build(directory, tmp_path / "extra")
    save_file({name: value for name, value in tensors.items() if "layers.1.mlp.up_proj" not in name}, path)
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj"):
        build(directory, tmp_path / "missing")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"][:32]}, path)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight.*\[32\].*\[64\]"):
        build(directory, tmp_path / "shape")


def test_untied_config_without_a_head_is_tied_and_says_so(tmp_path: Path) -> None:
    directory = edited(make_llama(tmp_path / "checkpoint"), "config.json", tie_word_embeddings=False)
    result = build(directory, tmp_path / "out")
    assert len(result.notes) == 1 and "lm_head.weight" in result.notes[0]
    assert [size.component for size in result.sizes] == ["embedding", "layers"]


def test_tied_config_with_another_head_stored_uses_it_and_says_so(tmp_path: Path) -> None:
    directory = edited(make_llama(tmp_path / "c", tie_word_embeddings=False), "config.json", tie_word_embeddings=True)
    result = build(directory, tmp_path / "out")
    assert len(result.notes) == 1 and "the stored head is used" in result.notes[0]
    assert [size.component for size in result.sizes] == ["embedding", "layers", "head"]


def test_tied_config_with_a_copy_of_the_table_stores_it_once(tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "checkpoint")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, path)
    result = build(directory, tmp_path / "out")
    assert result.notes == ()
    assert [size.component for size in result.sizes] == ["embedding", "layers"]


def test_a_tied_table_that_is_stored_as_the_head_is_the_embedding(tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "checkpoint")
    built = build(directory, tmp_path / "as_embedding")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({("lm_head.weight" if "embed_tokens" in name else name): t for name, t in tensors.items()}, path)
    moved = build(directory, tmp_path / "as_head")
    assert (built.notes, built.graphs, built.sizes) == (moved.notes, moved.graphs, moved.sizes)
    for graph in built.graphs:
        for name in (graph.path, *graph.data):
            assert (tmp_path / "as_embedding" / name).read_bytes() == (tmp_path / "as_head" / name).read_bytes()


def test_registry_names_are_config_model_types() -> None:
    assert {"llama", "qwen2", "dinov2", "siglip", "idefics3", "smolvlm", "bluelm_v"} <= set(ARCHS)
