"""What a package will need, computed before anything is loaded.

With onnxruntime the estimate is an upper bound on the peak resident size: the copies that it packs for its kernels, the
cache at full context, the tower loaded beside it, and the largest activations of a prefill chunk and of a batch of
tiles. It reads the manifest and the ONNX headers, never the weights. Measured on the demo model (135M at w4g32, tower
at w8) with a context of 4,096: estimated 481 MiB, peak 433 MiB (2026-11-24); the features of pictures that a
conversation keeps are counted beside that, at their limit, which one picture does not reach. What a picture's pixels
take is added when its header is read (edgevlm/picture_memory.py), before they are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgevlm.backends.session import PREFILL_CHUNK_TOKENS, TILE_BATCHES
from edgevlm.errors import BackendError
from edgevlm.machine_memory import available_bytes, resident_bytes
from edgevlm.onnx_file import StoredTensor, stored_tensors
from edgevlm.package import Package
from edgevlm.pictures import DEFAULT_CACHE_BYTES
from edgevlm.spec import CompiledEntry

RUNTIME_BYTES = 64 << 20
"""Interpreter, numpy and onnxruntime; used when the resident size of this process cannot be read."""
LIBRARY_BYTES = 48 << 20
"""onnxruntime's own pages, tokenizer and heap slack."""
_FLOAT_BYTES = 4
_LIVE_WIDE_TENSORS, _LIVE_HIDDEN_TENSORS = 3, 8
"""Activations alive at once in a block: gate, up and their product; residual, norm, q, k, v and outputs."""


_POSITION_TABLES = ("rope.full.cos", "rope.full.sin")
"""For all positions of the model, in packages made before they were computed. Nothing packs them, and only rows of the
context are touched: with two of 259 MB, a session of 4,000 tokens peaked at 87 MB (2026-11-29)."""
_PLAN_VERSION_TABLES = 2
"""The last version of plans that have such tables."""
_UNSTATED_KV_BITS = (8, 8)
"""Of plans whose manifest does not tell (CompiledEntry.kv_bits)."""
_CACHE_BLOCK = 64
"""The engine's cache holds a multiple of this many tokens."""
_SCORED_ROWS = 16
"""Rows of logits that the engine has room for."""
_TOKENIZER_FACTOR = 22
"""Resident bytes of a loaded tokenizer over the bytes of tokenizer.json: 127 MB over 6.0 for Qwen2.5 (2026-11-25)."""
_NATIVE_TILE_BYTES_PER_PIXEL = 96
"""The tower's arena: DINOv2-S at 224 px takes 60 bytes a pixel, SigLIP-B/16 at 512 px 90 (2026-11-25)."""


@dataclass(frozen=True)
class NativeChoice:
    """What the native engine would open."""

    compiled: CompiledEntry
    kv_bits: Sequence[tuple[int, int]] | None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose; `total_bytes` is compared with a budget, `new_bytes` with what the machine has left."""

    process_bytes: int
    """Resident before loading."""
    table_bytes: int
    """The embedding table, and the rows of position tables that the context reaches; read in place."""
    packed_bytes: int
    """onnxruntime's packed copies of the decoder's matrices; the file behind them is unmapped after loading."""
    loading_bytes: int
    """The decoder's file, while it is being packed."""
    kv_bytes: int
    language_activations_bytes: int
    vision_bytes: int
    """The tower's file and its packed copies, which may be loaded while the cache is full."""
    vision_activations_bytes: int
    picture_bytes: int
    """Features of pictures that are kept for later questions, at most."""
    pixel_bytes: int = 0
    """Pictures that are held, decoded and cut, at most; none before the first."""

    @property
    def running_bytes(self) -> int:
        """What an answer adds to a loaded language model."""
        activations = self.language_activations_bytes + self.vision_activations_bytes
        return self.kv_bytes + self.vision_bytes + activations + self.picture_bytes + self.pixel_bytes

    @property
    def new_bytes(self) -> int:
        """What loading and running add to the process: the file is gone before the first answer."""
        return LIBRARY_BYTES + self.table_bytes + self.packed_bytes + max(self.loading_bytes, self.running_bytes)

    @property
    def total_bytes(self) -> int:
        """The peak resident size to expect."""
        return self.process_bytes + self.new_bytes

    def describe(self) -> str:
        """Returns the sum in words, for error messages."""
        parts = [("weights", self.table_bytes + self.packed_bytes)]
        if self.loading_bytes > self.running_bytes:
            parts.append(("the file while it is packed", self.loading_bytes))
        else:
            activations = self.language_activations_bytes + self.vision_activations_bytes
            parts += [
                ("key-value cache", self.kv_bytes),
                ("vision tower", self.vision_bytes),
                ("activations", activations),
                ("pictures", self.picture_bytes),
                ("their pixels", self.pixel_bytes),
            ]
        parts.append(("process and libraries", self.process_bytes + LIBRARY_BYTES))
        return ", ".join(f"{name} {_mb(size)}" for name, size in parts if size)


def estimate_memory(package: Package, context: int) -> MemoryEstimate:
    """Returns what running `package` with `context` tokens takes."""
    decoder = package.manifest.decoder
    sizes = {entry.path: entry.size_bytes for entry in package.manifest.files}
    table = packed = loading = language = tower = vision = rows = 0
    for graph in package.manifest.graphs:
        tensors = stored_tensors(package.file(graph.path))
        on_disk = sum(sizes[path] for path in graph.data)
        turned = [tensor for tensor in tensors if tensor.name in _POSITION_TABLES and len(tensor.shape) == 2]
        tensors = [tensor for tensor in tensors if tensor not in turned]
        on_disk -= sum(tensor.length or 0 for tensor in turned)
        rows += sum(min(tensor.length or 0, context * tensor.shape[1] * _FLOAT_BYTES) for tensor in turned)
        copies = sum(_packed_bytes(tensor) for tensor in tensors)
        if graph.name == "embed_tokens":
            table = on_disk
        elif graph.name == "decoder_model_merged":
            packed, loading = copies, on_disk
            language = _decoder_activations(package, tensors, context)
        else:
            tower = on_disk + copies
            vision = _vision_activations(package, tensors)
    kv = 0
    for entry in decoder.cache:
        n_elements = 1
        for axis in entry.shape:
            n_elements *= context if axis == "P" else int(axis)
        kv += n_elements * _FLOAT_BYTES
    process = resident_bytes() or RUNTIME_BYTES
    pictures = DEFAULT_CACHE_BYTES if package.has_vision else 0
    return MemoryEstimate(process, table + rows, packed, loading, kv, language, tower, vision, pictures)


def estimate_native_memory(
    package: Package, context: int, compiled: CompiledEntry, kv_bits: Sequence[tuple[int, int]] | None
) -> MemoryEstimate:
    """Returns what the native engine takes: its files mapped as they are, a cache of codes, and planned scratch.

    Measured on Qwen2.5-Coder-1.5B at w4g32 with a context of 4,096: estimated 1,184 MB, peak 1,078 MB (2026-11-25).
    """
    decoder, processor = package.manifest.decoder, package.manifest.processor
    sizes = {entry.path: entry.size_bytes for entry in package.manifest.files}
    slots = decoder.num_key_value_heads * (-(-context // _CACHE_BLOCK) * _CACHE_BLOCK)
    kv = 0
    for bits in kv_bits or compiled.kv_bits or [_UNSTATED_KV_BITS] * decoder.num_hidden_layers:
        per_channel = sum(4.0 if part == 16 else part / 8 for part in bits)
        kv += int(slots * (decoder.head_dim * per_channel + 2 * _FLOAT_BYTES))
    rows = _SCORED_ROWS * decoder.vocab_size + PREFILL_CHUNK_TOKENS * _LIVE_HIDDEN_TENSORS * decoder.hidden_size
    vision = vision_activations = pictures = 0
    if processor is not None:
        if compiled.vision:
            vision = sizes[compiled.vision]
        else:
            graphs = [graph for graph in package.manifest.graphs if graph.name == "vision_encoder"]
            vision = 2 * sum(sizes[path] for graph in graphs for path in graph.data)
        vision_activations = TILE_BATCHES[0] * _NATIVE_TILE_BYTES_PER_PIXEL * processor.tile_px**2
        pictures = DEFAULT_CACHE_BYTES
    weights = sizes[compiled.weights]
    if compiled.plan_version <= _PLAN_VERSION_TABLES:
        untouched = (decoder.max_position_embeddings - context) * decoder.head_dim * _FLOAT_BYTES
        weights -= min(weights, max(0, untouched))
    tokenizer = _TOKENIZER_FACTOR * sizes.get("tokenizer.json", 0)
    process = (resident_bytes() or RUNTIME_BYTES) + tokenizer
    return MemoryEstimate(process, 0, weights, 0, kv, rows * _FLOAT_BYTES, vision, vision_activations, pictures)


def check_memory(
    package: Package, context: int, budget_bytes: int | None, native: NativeChoice | None = None
) -> MemoryEstimate:
    """Returns the estimate: of the native engine when `native` says what it opens, of onnxruntime otherwise.

    Raises BackendError with the numbers when it is above `budget_bytes`, or, without a budget, above what the machine
    and the cgroup have left.
    """
    if native is None:
        estimate = estimate_memory(package, context)
    else:
        estimate = estimate_native_memory(package, context, native.compiled, native.kv_bits)
    advice = "load with a smaller context or export with fewer bits"
    if budget_bytes is not None and estimate.total_bytes > budget_bytes:
        raise BackendError(
            f"{package.path}: {_mb(estimate.total_bytes)} are needed at a context of {context} tokens "
            f"({estimate.describe()}), the memory budget is {_mb(budget_bytes)}; raise the budget, {advice}"
        )
    available = available_bytes()
    if budget_bytes is None and available is not None and estimate.new_bytes > available:
        raise BackendError(
            f"{package.path}: {_mb(estimate.new_bytes)} more are needed at a context of {context} tokens "
            f"({estimate.describe()}), {_mb(available)} are available; close other programs, {advice}"
        )
    return estimate


def admit_picture(estimate: MemoryEstimate, label: str, pixel_bytes: int, budget_bytes: int | None) -> MemoryEstimate:
    """Returns the estimate with room for `pixel_bytes` of pictures, the one that `label` names among them.

    Raises BackendError with the numbers when it is above `budget_bytes`, or, without a budget, above what the machine
    has left. The estimate never goes down: it bounds the peak of the process.
    """
    larger = replace(estimate, pixel_bytes=max(estimate.pixel_bytes, pixel_bytes))
    advice = "make the picture smaller first"
    if budget_bytes is not None and larger.total_bytes > budget_bytes:
        raise BackendError(
            f"{label}: {_mb(larger.total_bytes)} are needed with this picture ({larger.describe()}), the memory budget "
            f"is {_mb(budget_bytes)}; raise the budget or {advice}"
        )
    available, resident = available_bytes(), resident_bytes()
    if budget_bytes is None and available is not None and resident is not None:
        needed = max(larger.total_bytes - resident, 0)
        if needed > available:
            raise BackendError(
                f"{label}: {_mb(needed)} more are needed with this picture ({larger.describe()}), {_mb(available)} are "
                f"available; close other programs or {advice}"
            )
    return larger


def _packed_bytes(tensor: StoredTensor) -> int:
    """Returns what onnxruntime keeps beside the file for a matrix: a copy in its kernels' order."""
    if len(tensor.shape) < 2 or tensor.location is None:
        return 0
    return tensor.length or 0


def _decoder_activations(package: Package, tensors: list[StoredTensor], context: int) -> int:
    decoder = package.manifest.decoder
    rows = min(PREFILL_CHUNK_TOKENS, context)
    wide = max((width for tensor in tensors if (width := _output_width(tensor)) < decoder.vocab_size), default=0)
    per_row = _LIVE_WIDE_TENSORS * wide + _LIVE_HIDDEN_TENSORS * decoder.hidden_size
    scores = decoder.num_attention_heads * rows * context
    return (rows * per_row + scores + decoder.vocab_size) * _FLOAT_BYTES


def _vision_activations(package: Package, tensors: list[StoredTensor]) -> int:
    processor = package.manifest.processor
    if processor is None:
        return 0
    n_pixels = processor.tile_px * processor.tile_px
    patch_px, hidden = 1, 1
    for tensor in tensors:
        if len(tensor.shape) == 4 and tensor.shape[1] == 3 and tensor.shape[2] > 0:
            patch_px, hidden = tensor.shape[2], tensor.shape[0]
    n_patches = n_pixels // (patch_px * patch_px)
    wide = max((_output_width(tensor) for tensor in tensors), default=0)
    per_patch = _LIVE_WIDE_TENSORS * wide + _LIVE_HIDDEN_TENSORS * hidden
    pixels = 2 * 3 * n_pixels
    return TILE_BATCHES[0] * (n_patches * per_patch + pixels) * _FLOAT_BYTES


def _output_width(tensor: StoredTensor) -> int:
    """Returns N of a MatMulNBits matrix (N, blocks, bytes) or of a float matrix (K, N)."""
    if len(tensor.shape) == 3:
        return tensor.shape[0]
    return tensor.shape[1] if len(tensor.shape) == 2 else 0


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f} MB"
