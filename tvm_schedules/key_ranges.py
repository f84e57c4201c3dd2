"""What happens to keys before the cache quantises them, exact in floats: centred, and their channels levelled.

Softmax does not see a constant that all keys of a head have in common. And a score is a sum over channels, so a channel
of the keys may be divided by what the same channel of the queries is multiplied by; RoPE turns channels c and c + E/2
together, so both take the same factor. An 8-bit code of a head has one scale: a few wide channels set the step of all
the others. Dividing a channel by f lowers that step, and makes what is left of it count f times in the score; the
factors are those with the least expected error of a score on a text. They are powers of two, and go into the
projections' scales and biases: no float changes by a bit.

Source: QServe (arXiv 2405.04532), SmoothAttention with one factor for both channels of a pair; there a root of the
largest key, here chosen by the error, which needs the queries too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError
from edgevlm.package import Package
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tokenizer import Tokenizer
from tvm_schedules.matrices import Matrix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

MEASURED_TOKENS = 1024
"""Tokens of text that means and errors are taken over."""
EXPONENTS = tuple(range(-4, 7))
"""What a channel may be divided by, as powers of two."""
_WORTH = 0.5
"""A head is levelled where that leaves at most this much of its error: what the error leaves out, which keys are looked
at, may outweigh a smaller gain."""
_EVERY = 4
"""Of the measured tokens, every so many choose the exponents."""
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime: where the weights of a graph lie that is given as bytes."""


@dataclass(frozen=True)
class KeyRange:
    """One layer's keys after RoPE."""

    centre: Float32
    """(G, E): the mean of each channel."""
    exponents: Int32
    """(G, E/2): channels c and c + E/2 are divided by two to this power, the queries' multiplied."""

    @property
    def factors(self) -> Float32:
        """(G, E): what each channel is divided by."""
        return np.ldexp(np.float32(1), np.tile(self.exponents, 2))


def measure_keys(package: Package, text: str) -> list[KeyRange]:
    """Returns each layer's range over the first tokens of `text`, as onnxruntime computes them.

    Raises UnsupportedModelError when the graph has not one attention per layer.
    """
    decoder = package.manifest.decoder
    n_tokens = min(MEASURED_TOKENS, decoder.max_position_embeddings)
    ids = np.array(Tokenizer.open(package).encode(text)[:n_tokens], np.int64)
    keys = [entry.present_name for entry in decoder.cache if entry.kind == "key"]
    found = _run_decoder(package, ids, keys)
    kv_heads, head_dim = found[0].shape[1], found[0].shape[3]
    ranges = []
    for key, query in zip(found[: len(keys)], found[len(keys) :], strict=True):
        squares = np.square(query.reshape(len(ids), kv_heads, -1, head_dim), dtype=np.float64).mean(axis=(0, 2))
        ranges.append(_range_of(key[0], squares))
    return ranges


def _run_decoder(package: Package, ids: NDArray[np.int64], keys: list[str]) -> list[Float32]:
    """Runs `ids` once; returns the outputs `keys` (1, G, T, E), then the rotated queries of each layer."""
    import onnx
    onnxruntime = import_onnxruntime()

    path = package.graph("decoder_model_merged")
    model = onnx.load(str(path), load_external_data=False)
    queries = [node.input[0] for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    if len(queries) != len(keys):
        raise UnsupportedModelError(f"{path}: {len(queries)} attention nodes for {len(keys)} layers")
    for name in queries:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.parent))
    providers = ["CPUExecutionProvider"]
    table = onnxruntime.InferenceSession(str(package.graph("embed_tokens")), providers=providers)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    feeds = {
        "inputs_embeds": table.run(None, {"input_ids": ids[None]})[0],
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "num_logits_to_keep": np.array(1, np.int64),
    }
    decoder = package.manifest.decoder
    empty = np.zeros((1, decoder.num_key_value_heads, 0, decoder.head_dim), np.float32)
    feeds |= {item.name: empty for item in session.get_inputs() if item.name not in feeds}
    found: list[Float32] = session.run([*keys, *queries], feeds)
    return found


def _range_of(keys: Float32, query_squares: Float64) -> KeyRange:
    """Range of keys (G, T, E) whose heads' queries have mean squares (G, E)."""
    centre = keys.mean(axis=1, dtype=np.float64)
    widths = np.abs(keys[:, ::_EVERY] - centre[:, None])
    half = widths.shape[2] // 2
    pairs = np.maximum(widths[..., :half], widths[..., half:])
    weights = query_squares[:, :half] + query_squares[:, half:]
    exponents = []
    for head in zip(pairs, weights, strict=True):
        best = best_exponents(*head)
        worth_it = score_error(*head, best) <= _WORTH * score_error(*head, best * 0)
        exponents.append(best if worth_it else best * 0)
    return KeyRange(centre.astype(np.float32), np.array(exponents, np.int32))


def score_error(widths: Float64, weights: Float64, exponents: Int32) -> float:
    """Expected squared error of a head's scores, up to a constant.

    A token's codes have a step in proportion to its widest pair (T, P); the error of a score is the step squared times
    the sum of the weights (P,), each times the square of its pair's factor.
    """
    steps = np.ldexp(widths, -exponents).max(axis=1)
    return float(np.ldexp(weights, 2 * exponents).sum() * np.square(steps).mean())


def best_exponents(widths: Float64, weights: Float64) -> Int32:
    """Exponents (P,) of pairs with widths (T, P) and weights (P,) with a small `score_error`.

    One pair after the other takes its best exponent, twice.
    """
    exponents = np.zeros(len(weights), np.int32)
    choices = np.array(EXPONENTS)
    for pair in [*np.argsort(-widths.mean(axis=0))] * 2:
        scaled = np.ldexp(widths, -exponents)
        scaled[:, pair] = 0
        others = np.ldexp(weights, 2 * exponents).sum() - np.ldexp(weights[pair], 2 * exponents[pair])
        steps = np.maximum(scaled.max(axis=1)[:, None], np.ldexp(widths[:, pair, None], -choices))
        errors = (others + np.ldexp(weights[pair], 2 * choices)) * np.square(steps).mean(axis=0)
        exponents[pair] = choices[np.argmin(errors)]
    return exponents


def level(key_range: KeyRange, query: Matrix, key: Matrix) -> tuple[KeyRange, Matrix, Matrix]:
    """Returns the projections with their rows multiplied and divided, and the range as it could be kept exact.

    Scales are fp16: an exponent that would round one of its rows' scales is brought towards 0 until none is.
    """
    exponents = key_range.exponents.copy()
    groups, half = exponents.shape
    n_heads = query.shape[0] // (2 * half)
    query_scales = query.scales.reshape(groups, n_heads // groups, 2, half, -1)
    key_scales = key.scales.reshape(groups, 1, 2, half, -1)
    while True:
        up, down = exponents[:, None, None, :, None], -exponents[:, None, None, :, None]
        rounds = _rounds(query_scales, up).any(axis=(1, 2, 4)) | _rounds(key_scales, down).any(axis=(1, 2, 4))
        if not rounds.any():
            break
        exponents -= np.sign(exponents) * rounds
    return (
        KeyRange(key_range.centre, exponents),
        replace(query, scales=np.ldexp(query_scales, up).astype(np.float16).reshape(query.scales.shape)),
        replace(key, scales=np.ldexp(key_scales, down).astype(np.float16).reshape(key.scales.shape)),
    )


def _rounds(scales: NDArray[np.float16], exponents: Int32) -> NDArray[np.bool_]:
    exact = np.ldexp(scales.astype(np.float32), exponents)
    with np.errstate(over="ignore"):
        rounded: NDArray[np.bool_] = exact.astype(np.float16) != exact
    return rounded


def row_factors(key_range: KeyRange, n_heads: int) -> Float32:
    """What each row of the stacked query and key projections was multiplied by: (n_heads E + G E,)."""
    factors = key_range.factors
    queries = np.repeat(factors, n_heads // len(factors), axis=0)
    return np.concatenate([queries.reshape(-1), 1 / factors.reshape(-1)])
