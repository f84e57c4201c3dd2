"""The package contract: frozen dataclasses that `export` writes to edgevlm.json and the runtime reads.

Nothing here imports the rest of the project, and nothing is inferred at run time from names or shapes:
what the runtime needs to know stands in one of these fields. Image sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1
MANIFEST_NAME = "edgevlm.json"

GraphName = Literal["vision_encoder", "embed_tokens", "decoder_model_merged"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
TilingScheme = Literal[
    "square", "relaxed", "tile_grid", "internvl", "llava_next", "fixed",
    "smart_resize", "naflex", "patch_budget", "slices",
]  # fmt: skip


@dataclass(frozen=True)
class ProcessorSpec:
    """How a picture becomes tiles of (C, S, S, 3) uint8 and then (C, 3, S, S) float32."""

    scheme: TilingScheme
    """The rule that chooses grid and canvas (edgevlm/tiling.py)."""
    tile_px: int
    """Side of a square tile."""
    resample: Resample
    image_mean: tuple[float, float, float]
    """Per channel, R G B, subtracted after rescaling; 0 where nothing is subtracted."""
    image_std: tuple[float, float, float]
    """Per channel, divided by; 1 where nothing is divided."""
    rescale_factor: float = 1 / 255
    """Multiplies the uint8 values first; 1 where they stay as they are."""
    thumbnail: Literal["none", "first", "last"] = "none"
    max_rows: int = 1
    """Largest grid height (`relaxed`), the grid's height (`fixed`); for `internvl` the budget is max_tiles."""
    max_cols: int = 1
    """Largest grid width (`relaxed`), the grid's width (`fixed`)."""
    max_tiles: int = 1
    """Largest number of grid tiles, without the thumbnail."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """`smart_resize`, `naflex`, `patch_budget`: smallest and largest area of the resized picture."""
    relaxed_alpha: float = 0.1
    """`relaxed`: how much more useful area a larger grid must bring."""
    longest_edge_px: int | None = None
    """`tile_grid`, `square`: the longer side is resized to this before the picture is cut, or becomes one tile."""
    grid_pinpoints: tuple[tuple[int, int], ...] = ()
    """`llava_next`: allowed canvases as (height_px, width_px)."""


@dataclass(frozen=True)
class PromptSpec:
    """How the image marker of a chat template is expanded.

    Text pieces around runs of `tokens_per_tile` image tokens; `{row}` and `{col}` count from 1. A picture of one
    tile is `single_prefix + tokens + image_suffix`; a grid is `image_prefix`, per tile `tile_prefix + tokens`,
    `row_suffix` after each row, `thumbnail_prefix + tokens` where the thumbnail stands, then `image_suffix`.
    """

    image_token: str
    """The marker in the chat template, and the text of the token that stands for one picture feature."""
    image_token_id: int
    tokens_per_tile: int
    """V: features of one tile."""
    image_prefix: str = ""
    single_prefix: str = ""
    tile_prefix: str = ""
    row_suffix: str = ""
    thumbnail_prefix: str = ""
    image_suffix: str = ""
    content_format: Literal["string", "list"] = "string"
    """What the chat template expects as `message['content']`: a string, or a list of typed parts."""


@dataclass(frozen=True)
class CacheEntry:
    """One tensor of the decoder's state: input `past_name`, output `present_name`.

    `shape` is the shape of one sequence; the axis written as 'P' grows with the past tokens (its capacity is the
    context length chosen at load time).
    """

    kind: Literal["key", "value", "conv", "delta"]
    layer: int
    past_name: str
    present_name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class DecoderSpec:
    """What the loop must know about the language model."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    """Longest context that the graphs can serve."""
    default_context: int
    """Context when none is asked for at load time."""
    cache: tuple[CacheEntry, ...]
    kv_bits: tuple[tuple[int, int], ...]
    """Per layer (bits of keys, bits of values) that onnxruntime's cache holds: 16 (float). What the native engine's
    holds stands in CompiledEntry."""
    position_rank: Literal[1, 3] = 1
    """3 for multimodal RoPE: one position per time, height and width."""


@dataclass(frozen=True)
class GenerationSpec:
    """Defaults from generation_config.json; the ids that end a turn."""

    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    not_applied: tuple[str, ...] = ()
    """'field value' of what transformers would apply and this runtime does not, as the export told."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the package, path relative to the package with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphEntry:
    """One ONNX graph and the external data files that it reads (a tied table may live in another graph's file)."""

    name: GraphName
    path: str
    data: tuple[str, ...]
    """External data files, relative to the package."""


@dataclass(frozen=True)
class TensorError:
    """Quantisation error of one tensor: relative root-mean-square error, ||W - W_q|| / ||W||."""

    name: str
    scheme: str
    relative_rms: float


@dataclass(frozen=True)
class QuantEntry:
    """What was quantised how. `overrides` is an ordered list of (pattern, scheme); the first match wins."""

    language_scheme: str
    vision_scheme: str
    overrides: tuple[tuple[str, str], ...]
    worst_tensors: tuple[TensorError, ...]
    mean_bits_per_weight: float
    """Over all weights of the language model and the tower, scales included."""
    tied_at_import: bool = False
    """Whether the checkpoint stored head and embedding apart and the export joined them."""


@dataclass(frozen=True)
class ComponentSize:
    """One line of the size table."""

    component: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class ParityEntry:
    """One verified (or not yet verified) number.

    `status` is 'unverified' when the check needs software that was missing; `detail` then says how to run it.
    """

    stage: str
    against: str
    metric: str
    status: Literal["pass", "fail", "unverified"]
    value: float | None = None
    bound: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class DeviceEntry:
    """What a phone reads instead of tokenizer.json and the chat template (android_demo/library)."""

    tokenizer: str | None
    """Path of the tokenizer's tables; null when a phone cannot do what the tokenizer asks for."""
    chat: str | None
    """Path of the compiled chat template, likewise."""
    missing: tuple[str, ...] = ()
    """Why a file is not there, one sentence each."""


@dataclass(frozen=True)
class CompiledEntry:
    """The package in the native engine's form for one architecture ('x86_64' or 'arm64')."""

    arch: str
    plan: str
    """Path of plan.bin; weights.bin stands beside it."""
    weights: str
    plan_version: int
    vision: str | None = None
    """Path of vision.bin, the vision tower's weights; null when onnxruntime runs the tower."""
    kv_bits: tuple[tuple[int, int], ...] = ()
    """Per layer (bits of keys, bits of values) of the cache that the plan asks for: 16 (float), 8 or 4. Empty in
    packages compiled before this was written down, whose plans ask for 8 and 8 in every layer."""


@dataclass(frozen=True)
class NpuGraph:
    """One fixed graph: 'prefill', 'decode', 'vision_4' or 'vision_1'.

    Several of one name are parts of a graph that is too large for one binary. They run in the order in which they are
    listed: the first output of each is an input of the next.
    """

    name: str
    path: str


@dataclass(frozen=True)
class NpuTarget:
    """Context binaries for one generation of the NPU."""

    arch: str
    """'v75'; the directory lib/qnn-htp-v75 holds it."""
    soc: str
    """The chip that it was compiled for, 'SM8650'."""
    graphs: tuple[NpuGraph, ...]
    """ONNX files around the binaries, as onnxruntime loads them."""
    binaries: tuple[str, ...]
    sdk: str
    """Versions of the provider's package and of the QNN SDK in it."""
    shared_weights: bool = False
    """Whether prefill and decode lie in one binary with one copy of their weights."""
    on_cpu: tuple[str, ...] = ()
    """Nodes that run on the CPU, each of an operator in `allow_cpu`; empty means that all run on the NPU."""


@dataclass(frozen=True)
class NpuEntry:
    """The package as fixed, statically quantised graphs, and what they were compiled to."""

    context: int
    """Cache rows that each call takes: the longest conversation."""
    chunk_tokens: int
    """Tokens of one prefill call, right-padded."""
    tile_batches: tuple[int, ...]
    """Tiles of one vision call, largest first; empty without a tower."""
    graphs: tuple[NpuGraph, ...]
    """Quantised ONNX graphs: what the binaries are made of, and the simulation that they are compared with."""
    weights: str
    """Data file of those graphs."""
    ranges: str
    """JSON: codes (scale, zero point, type) of every activation."""
    range_method: Literal["minmax", "percentile", "mse"]
    allow_cpu: tuple[str, ...] = ()
    """Operators that the user let run on the CPU."""
    targets: tuple[NpuTarget, ...] = ()
    parity: tuple[ParityEntry, ...] = ()
    """The simulation against float activations, beside the CPU graphs' own distance."""


@dataclass(frozen=True)
class Manifest:
    """edgevlm.json, whole."""

    schema_version: int
    """SCHEMA_VERSION of the writer; a reader of another version refuses."""
    name: str
    arch: str
    """The checkpoint's model_type."""
    created: str
    """UTC time, ISO 8601."""
    source: str
    """What it was exported from, as the user named it (no absolute machine path)."""
    versions: dict[str, str]
    """Packages that took part in the export."""
    processor: ProcessorSpec | None
    """null for a language model."""
    prompt: PromptSpec | None
    """null for a language model."""
    decoder: DecoderSpec
    generation: GenerationSpec
    graphs: tuple[GraphEntry, ...]
    quant: QuantEntry
    sizes: tuple[ComponentSize, ...]
    parity: tuple[ParityEntry, ...]
    files: tuple[FileEntry, ...]
    compiled: tuple[CompiledEntry, ...] = ()
    device: DeviceEntry | None = None
    npu: NpuEntry | None = None
