"""Measures what 4 bits cost in each group of a language model: the mean KL divergence of the next-token distribution
when only that group is rounded, on a short piece of real text. Needs onnxruntime only.

All groups are measured in one pass over the layers. The fp32 decoder is cut at its residual stream into one small graph
per layer; a batch of streams travels through them: the unchanged one, and one per group of the layers behind. At each
layer the unchanged stream is also run with one group's weights replaced, which gives that group's stream. So every
layer is loaded once, and no work before the changed layer is repeated: half the arithmetic of one run per group, in
large matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from edgevlm.spec import CacheEntry
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tokenizer import read_backend
from edgevlm.tokenizers_library import tokenizers_errors
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.graphs.build import build_model
from export.graphs.tensors import Tensors
from export.quant.mix import Group, Sensitivity
from export.quant.rules import QuantPlan
from export.quant.scheme import Scheme, stored_weight

Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

N_TOKENS = 128
"""Positions scored. The cost of more and what it changes: docs/quantisation.md."""
N_WARM_UP = 8
"""Rows at the start that are not scored: with hardly any context the divergence says little."""
_STREAMS_AT_ONCE = 16
"""A weight is packed for this many streams; activations of a 1.5B model then stay below 200 MB."""


def calibration_text() -> str:
    """Returns the text that sensitivities are measured on: public domain prose and verse that no check uses."""
    return files("export").joinpath("data", "calibrate.txt").read_text(encoding="utf-8")


def measure(
    spec: ArchSpec,
    checkpoint: Checkpoint,
    low: Scheme,
    members: Sequence[Group],
    scratch: Path,
    progress: Progress | None = None,
    n_tokens: int = N_TOKENS,
) -> tuple[Sensitivity, ...]:
    """Returns the sensitivity of each group to `low`; `scratch` takes the fp32 graphs (4 bytes per parameter).

    Raises PackageError when the checkpoint has no tokenizer or no language part.
    """
    if spec.language is None:
        raise PackageError(f"{checkpoint.name} has no language model, so there is nothing to measure a mix on")
    ids = token_ids(checkpoint, n_tokens + N_WARM_UP)
    language_only = replace(
        spec,
        vision=None,
        connector=None,
        processor=None,
        prompt=None,
        names=replace(spec.names, ignore=(*spec.names.ignore, ".*")),
    )
    overridable = {name for group in members for name in group.tensors}
    built = build_model(
        language_only, checkpoint, QuantPlan("fp32"), scratch, overridable=overridable.__contains__, progress=progress
    )
    paths = {graph.name: scratch / graph.path for graph in built.graphs}
    embeds = _session(paths["embed_tokens"]).run(None, {"input_ids": ids[None]})[0]
    cache = built.decoder.cache if built.decoder is not None else ()
    chain = _LayerChain(paths["decoder_model_merged"], len(spec.language.layer_kinds), cache)
    tensors = Tensors(checkpoint, spec.names)

    streams: list[tuple[Float32, ...]] = [(embeds,)]
    order: list[Group] = []
    for layer in range(chain.n_layers):
        if progress is not None:
            progress("measure 4-bit sensitivity", layer, chain.n_layers + 1)
        run = chain.layer(layer)
        changed = []
        for group in (group for group in members if group.layer == layer):
            weights = {}
            for name in group.tensors:
                rounded, _ = stored_weight(tensors.read(name, tensors.shape(name)), low)
                weights[name] = np.ascontiguousarray(rounded.T)
            changed += run(streams[:1], weights)
            order.append(group)
        streams = run(streams, {}) + changed
    head = chain.head(n_tokens)
    baseline = _Baseline(head(streams[0]))
    costs = {group: baseline.kl(head(stream)) for group, stream in zip(order, streams[1:], strict=True)}
    return tuple(Sensitivity(group, costs[group]) for group in members)


def token_ids(checkpoint: Checkpoint, n_tokens: int) -> NDArray[np.int64]:
    """Returns the first ids of the calibration text."""
    if "tokenizer.json" not in checkpoint.files:
        raise PackageError(
            f"{checkpoint.name} has no tokenizer.json, which measuring a mix needs; add it or choose another scheme"
        )
    where = f"{checkpoint.name}: tokenizer.json"
    tokenizer = read_backend(checkpoint.files["tokenizer.json"].decode("utf-8"), where)
    with tokenizers_errors(where, "cannot encode a text", ""):
        ids = tokenizer.encode(calibration_text()[: 40 * n_tokens], add_special_tokens=False).ids
    return np.asarray(ids[:n_tokens], np.int64)


Run = Callable[[list[tuple[Float32, ...]], Mapping[str, Float32]], list[tuple[Float32, ...]]]
"""(streams, other values for some linears (K, N)) to streams; a stream is (residual, hidden), or (embeds,)."""


class _LayerChain:
    """The fp32 decoder, cut where a layer's output meets the residual stream."""

    def __init__(self, path: Path, n_layers: int, cache: Sequence[CacheEntry]) -> None:
        import onnx

        self.n_layers = n_layers
        self._folder = path.parent
        self._cache = cache
        self._model = onnx.load(str(path), load_external_data=False)
        self._producer = {output: node for node in self._model.graph.node for output in node.output if output}
        by_name = {node.name: node for node in self._model.graph.node}
        self._cuts: list[tuple[str, ...]] = [("inputs_embeds",)]
        for layer in range(1, n_layers):
            self._cuts.append(tuple(by_name[f"/model/layers.{layer}/input_layernorm/SkipRMSNorm"].input[:2]))
        final = by_name["/model/norm/SkipRMSNorm"].input[:2]
        self._cuts.append(tuple(self._producer[value].input[0] for value in final))

    def layer(self, layer: int) -> Run:
        """Returns the function that runs one layer."""
        session = self._cut(f"layer_{layer}", self._cuts[layer], self._cuts[layer + 1])
        wanted = {node.name for node in session.get_inputs()}
        inputs, outputs = self._cuts[layer], list(self._cuts[layer + 1])

        def run(streams: list[tuple[Float32, ...]], weights: Mapping[str, Float32]) -> list[tuple[Float32, ...]]:
            results: list[tuple[Float32, ...]] = []
            for start in range(0, len(streams), _STREAMS_AT_ONCE):
                batch = streams[start : start + _STREAMS_AT_ONCE]
                values = [np.concatenate(parts) for parts in zip(*batch, strict=True)]
                feeds = {**dict(zip(inputs, values, strict=True)), **self._feeds(*values[0].shape[:2])}
                needed = {name: value for name, value in feeds.items() if name in wanted}
                found = session.run(outputs, {**needed, **weights})
                results += [tuple(part[i : i + 1] for part in found) for i in range(len(batch))]
            return results

        return run

    def head(self, n_rows: int) -> Callable[[tuple[Float32, ...]], Float32]:
        """Returns the function that turns one stream into its last `n_rows` rows of logits."""
        inputs = self._cuts[-1]
        session = self._cut("head", inputs, ("logits",))

        def run(stream: tuple[Float32, ...]) -> Float32:
            feeds = {**dict(zip(inputs, stream, strict=True)), "num_logits_to_keep": np.array(n_rows, np.int64)}
            rows: Float32 = session.run(None, feeds)[0][0]
            return rows

        return run

    def _feeds(self, n_streams: int, n_tokens: int) -> dict[str, NDArray[Any]]:
        empty = {
            entry.past_name: np.zeros(
                (n_streams, *(0 if axis == "P" else int(axis) for axis in entry.shape)), np.float32
            )
            for entry in self._cache
        }
        positions = np.tile(np.arange(n_tokens, dtype=np.int64), (n_streams, 1))
        return {**empty, "attention_mask": np.ones((n_streams, n_tokens), np.int64), "position_ids": positions}

    def _cut(self, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        """Returns a session of the nodes between two cuts, over the same external data."""
        import onnx
        from onnx import TensorProto, helper

        graph = self._model.graph
        kept: set[str] = set()
        used: set[str] = set()
        pending = list(outputs)
        while pending:
            value = pending.pop()
            if value in used or not value:
                continue
            used.add(value)
            if value not in inputs and value in self._producer and self._producer[value].name not in kept:
                kept.add(self._producer[value].name)
                pending += self._producer[value].input
        declared = [info for info in graph.input if info.name in used]
        known = {info.name for info in declared}
        declared += [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in inputs if v not in known]
        part = helper.make_graph(
            [node for node in graph.node if node.name in kept],
            name,
            declared,
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in outputs],
            [tensor for tensor in graph.initializer if tensor.name in used],
        )
        model = helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        path = self._folder / f"{name}.onnx"
        onnx.save(model, str(path))
        return _session(path)


def _session(path: Path) -> Any:
    ort = import_onnxruntime()

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Baseline:
    """The fp32 distribution; KL(fp32 || other) = sum p log p - sum p z + log sum exp z, averaged over rows."""

    def __init__(self, logits: Float32) -> None:
        shifted = logits - logits.max(axis=1, keepdims=True)
        self._p = np.exp(shifted)
        total = self._p.sum(axis=1, keepdims=True)
        self._p /= total
        self._negative_entropy = np.einsum("tv,tv->t", self._p, shifted, dtype=np.float64) - np.log(total[:, 0])

    def kl(self, logits: Float32) -> float:
        """Returns the mean KL in nats; `logits` is overwritten."""
        logits -= logits.max(axis=1, keepdims=True)
        cross = np.einsum("tv,tv->t", self._p, logits, dtype=np.float64)
        np.exp(logits, out=logits)
        log_total = np.log(logits.sum(axis=1, dtype=np.float64))
        return float(np.maximum(self._negative_entropy - cross + log_total, 0.0).mean())
