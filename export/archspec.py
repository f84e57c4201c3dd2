"""ArchSpec: everything an exporter must know about a model, as frozen data.

One file in `export/archs/` turns a parsed config into an ArchSpec; the graph builders read it and refuse, by field
name, a value that they do not implement. Per-layer lists are frozen at parse time; nothing is derived later from an
index rule. Field set: one place for every family surveyed, filled in as families arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgevlm.spec import GenerationSpec, ProcessorSpec, PromptSpec

Transform = Literal["transpose", "split", "merge_experts", "fold_bn", "merge_lora"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of one kind of layer."""

    theta: float
    kind: Literal["default", "linear", "llama3", "yarn", "longrope", "proportional", "none"] = "default"
    rotary_dim: int | None = None
    """Rotated channels of a head; None rotates all of them."""
    rotation: Literal["half", "pairs"] = "half"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """`yarn`: rotations inside the original context at which a channel is left alone, or stretched whole."""
    attention_factor: float | None = None
    """`yarn`, `longrope`: what the sines and cosines are multiplied by; None computes it from `factor`."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    """`longrope`: per channel, up to the original context and beyond it."""
    mrope_section: tuple[int, ...] = ()
    mrope_layout: Literal["none", "blocks", "interleaved"] = "none"


@dataclass(frozen=True)
class VisionSpec:
    """A vision transformer: patches, positions, blocks, and which features leave it."""

    layers: int
    run_layers: int
    """Layers that are computed; less than `layers` when the last feature is taken earlier."""
    width: int
    heads: int
    head_dim: int
    mlp: int
    image_px: int
    """Side of the square tile that the graph takes."""
    patch: int
    kv_heads: int | None = None
    temporal_patch: int = 1
    patch_layout: Literal["image", "flat_chw", "flat_hwc", "flat_ctyx"] = "image"
    patch_bias: bool = True
    pos: Literal["none", "table", "bucket", "bilinear", "bilinear_corners", "bilinear_aa", "bicubic", "xy_tables"] = (
        "table"
    )
    pos_grid: int = 0
    """Side of the stored position table, without CLS."""
    pos_input: Literal["constant", "host"] = "constant"
    """Whether positions are computed at export, or given to the graph with each picture."""
    rope: Literal["none", "shared", "even_odd", "halves"] = "none"
    rope_theta: float = 10000.0
    rope_rotation: Literal["half", "pairs"] = "half"
    rope_offset: int = 0
    """Position of the first patch."""
    cls: bool = False
    embed_norm: Literal["none", "ln", "rms", "rms_before_pos"] = "none"
    norm: Literal["ln", "rms"] = "ln"
    norm_eps: float = 1e-6
    placement: Literal["pre", "sandwich"] = "pre"
    layer_scale: bool = False
    qkv: Literal["split", "fused"] = "split"
    bias_qkv: bool = True
    bias_out: bool = True
    qk_norm: Literal["none", "head", "full"] = "none"
    v_norm: bool = False
    attn_scale: float | None = None
    mlp_kind: Literal["plain", "gated"] = "plain"
    mlp_bias: bool = True
    act: Activation = "gelu"
    mask: Literal["full", "padding", "segments", "window"] = "full"
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    """`window`: the layers that see everything all the same."""
    features: tuple[int, ...] = (-1,)
    concat: bool = False
    """Whether several features stand side by side in one output."""
    drop_cls: bool = True
    final_norm_applied: bool = True
    taps: tuple[int, ...] = ()
    mid_merge: int | None = None


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer of a connector."""

    out: int
    """Out features; 0 takes what the checkpoint stores (configs of composed models do not say it)."""
    bias: bool


@dataclass(frozen=True)
class ConnectorSpec:
    """From vision features (V_in, width) to image features (V, D): reduce, norm, linears."""

    reduce: Literal["none", "s2d", "avgpool", "conv"] = "none"
    factor: int = 1
    order: Literal["yx_c", "c_yx"] = "yx_c"
    when: Literal["before", "after"] = "before"
    pad: Literal["none", "zero", "reflect"] = "none"
    norm: Literal["none", "ln", "rms", "rms1p", "rms_bare"] = "none"
    norm_on: Literal["patch", "merged", "hidden", "output"] = "merged"
    norm_eps: float = 1e-5
    linears: tuple[LinearSpec, ...] = ()
    act: Activation = "gelu"
    act_after: tuple[int, ...] = (0,)
    """Indices of the linears that are followed by the activation."""
    gated: bool = False
    stored_transposed: bool = False
    out_scale: float = 1.0
    extra: Literal["none", "visual_vocab", "pos2d_sincos", "mean_token"] = "none"
    newline: bool = False
    """Whether a stored vector ends each row of patches."""


LayerKind = Literal["full", "sliding", "nope", "conv", "delta"]


@dataclass(frozen=True)
class LMSpec:
    """A decoder-only language model."""

    layer_kinds: tuple[LayerKind, ...]
    hidden: int
    heads: int
    head_dim: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp: tuple[int, ...]
    vocab: int
    context: int
    ropes: tuple[tuple[LayerKind, RopeSpec], ...]
    """One RopeSpec per layer kind that rotates."""
    window: int | None = None
    norm: Literal["rms", "rms1p", "ln_nobias"] = "rms"
    norm_eps: float = 1e-5
    placement: Literal["pre", "sandwich", "parallel"] = "pre"
    skip_first_norm: bool = False
    bias_qkv: bool = False
    bias_o: bool = False
    bias_mlp: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    v_norm: bool = False
    clip_qkv: float | None = None
    attn_scale: float | None = None
    attn_softcap: float | None = None
    out_gate: Literal["none", "element", "head"] = "none"
    q_pos_scale: float | None = None
    mlp_act: Activation = "silu"
    fused_gate_up: bool = False
    moe_experts: int = 0
    moe_top_k: int = 0
    moe_order: Literal["softmax_topk", "topk_softmax"] = "softmax_topk"
    moe_renorm: bool = False
    """Whether the chosen experts' weights are scaled to sum to one."""
    moe_dense_layers: tuple[int, ...] = ()
    """Layers with one plain MLP."""
    embed_scale: float = 1.0
    embed_scale_scope: Literal["tokens", "all"] = "tokens"
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    final_softcap: float | None = None
    layer_scalar: bool = False
    tied: bool = True
    mask: Literal["causal", "prefix", "image_blocks", "bidirectional"] = "causal"
    kv_source: tuple[int, ...] = ()
    """Per layer, the layer whose keys and values it attends to."""
    ple_width: int = 0
    ple_vocab: int = 0
    """Per-layer embeddings: width and rows of the second table."""
    deepstack: tuple[tuple[int, Literal["before", "after"], int], ...] = ()
    """(layer, side, index of the tower's tap that is added there)."""
    zero_image_embeds: bool = False
    """Whether image tokens enter the first layer as zeros, all of them coming through `deepstack`."""
    conv_kernel: int = 0
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_key_dim: int = 0
    delta_value_dim: int = 0
    delta_kernel: int = 0


@dataclass(frozen=True)
class NameMap:
    """Checkpoint tensor names by role.

    Values are names with `{i}` for the layer. Keys are fixed roles: language `embed`, `final_norm`, `lm_head`,
    `input_norm`, `q`, `k`, `v`, `o`, `post_norm`, `gate`, `up`, `down`; vision `patch`, `pos`, `cls`, `norm1`, `q`,
    `k`, `v`, `o`, `norm2`, `fc1`, `fc2`, `scale1`, `scale2`, `final_norm`; connector `reduce`, `linear.{n}`.
    A role names the stem; `.weight` and `.bias` are added, except where the checkpoint stores a bare tensor, which a
    leading '=' marks.
    """

    vision: dict[str, str] = field(default_factory=dict)
    connector: dict[str, str] = field(default_factory=dict)
    language: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    """Regular expressions (full match) of tensors that are left out on purpose."""
    roots: tuple[tuple[str, str], ...] = ()
    """Other spellings of a prefix, (prefix here, prefix on disk), tried in order when a name is not in the file."""
    transforms: tuple[tuple[str, Transform], ...] = ()
    """(regular expression of tensor names, what happens to them before they are used), in order."""


@dataclass(frozen=True)
class ArchSpec:
    """A whole model. `language` is None for a bare tower; the parts around pictures are None for a bare LM."""

    model_type: str
    names: NameMap
    language: LMSpec | None = None
    vision: VisionSpec | None = None
    connector: ConnectorSpec | None = None
    processor: ProcessorSpec | None = None
    prompt: PromptSpec | None = None
    generation: GenerationSpec | None = None
