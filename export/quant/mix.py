"""`w4g32-mix`: decides by measurement which groups of a language model get 8 bits instead of 4.

A group is what one activation feeds: query, key and value | output | gate and up | down, per layer. For every group the
fp32 decoder runs once on real text with only this group's weights rounded to 4 bits; its cost is the mean KL divergence
of the next-token distribution that follows. Groups are then promoted to 8 bits in the order of cost per extra byte,
until the layers' mean bits per weight reach the target. Embedding and head get 8 bits (lowbit.md 2.8).

Needs onnxruntime only: the decoder is built with its linears as overridable initialisers, so that a run is given other
weights for one group and nothing is rebuilt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError
from edgevlm.spec import DecoderSpec
from export.archspec import ArchSpec, LMSpec
from export.checkpoint import Checkpoint
from export.graphs.build import BuildResult, build_model
from export.graphs.tensors import Tensors
from export.quant.rules import QuantPlan, Rule
from export.quant.scheme import MixScheme, stored_weight

Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

GROUPS: dict[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
N_TOKENS = 128
"""Positions scored per run. Measured 2026-11 on SmolLM2-135M: docs/quantisation.md."""
N_WARM_UP = 8
"""Rows at the start that are not scored: with hardly any context the divergence says little."""


@dataclass(frozen=True)
class Group:
    """Tensors that share one decision."""

    layer: int
    kind: str
    tensors: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Sensitivity:
    """`kl`: mean KL(fp32 || this group at 4 bits) in nats per token."""

    group: Group
    kl: float


def calibration_text() -> str:
    """Returns the text that sensitivities are measured on: public domain prose and verse, in no test or check."""
    return files("export").joinpath("data", "calibrate.txt").read_text(encoding="utf-8")


def groups(language: LMSpec, names: Mapping[str, str], pinned: QuantPlan) -> tuple[Group, ...]:
    """Returns the groups of a model, layer by layer, without tensors that an override of the user decides."""
    found = []
    for layer in range(len(language.layer_kinds)):
        shapes = linear_shapes(language, layer)
        for kind, roles in GROUPS.items():
            members = {f"{names[role].format(i=layer)}.weight": shapes[role] for role in roles}
            free = {name: shape for name, shape in members.items() if not pinned.is_overridden(name)}
            if free:
                parameters = sum(n_out * n_in for n_out, n_in in free.values())
                found.append(Group(layer, kind, tuple(free), parameters))
    return tuple(found)


def linear_shapes(language: LMSpec, layer: int) -> dict[str, tuple[int, int]]:
    """Returns (out, in) features of a layer's linears by role."""
    query = language.heads * language.head_dim[layer]
    key = language.kv_heads[layer] * language.head_dim[layer]
    hidden, mlp = language.hidden, language.mlp[layer]
    return {
        "q": (query, hidden),
        "k": (key, hidden),
        "v": (key, hidden),
        "o": (hidden, query),
        "gate": (mlp, hidden),
        "up": (mlp, hidden),
        "down": (hidden, mlp),
    }


def measure(
    spec: ArchSpec,
    checkpoint: Checkpoint,
    mix: MixScheme,
    members: Sequence[Group],
    scratch: Path,
    progress: Progress | None = None,
    n_tokens: int = N_TOKENS,
) -> tuple[Sensitivity, ...]:
    """Returns the sensitivity of each group; `scratch` takes the fp32 graphs (4 bytes per parameter).

    Raises PackageError when the checkpoint has no tokenizer.
    """
    overridable = {name for group in members for name in group.tensors}
    language_only = replace(
        spec,
        vision=None,
        connector=None,
        processor=None,
        prompt=None,
        names=replace(spec.names, ignore=(*spec.names.ignore, ".*")),
    )
    built = build_model(
        language_only, checkpoint, QuantPlan("fp32"), scratch, overridable=overridable.__contains__, progress=progress
    )
    decoder = _Decoder(built, scratch, token_ids(checkpoint, n_tokens + N_WARM_UP))
    tensors = Tensors(checkpoint, spec.names)
    baseline = _Baseline(decoder.logits({}))
    found = []
    for index, group in enumerate(members):
        if progress is not None:
            progress("measure 4-bit sensitivity", index, len(members))
        changed = {}
        for name in group.tensors:
            rounded, _ = stored_weight(tensors.read(name, tensors.shape(name)), mix.low)
            changed[name] = np.ascontiguousarray(rounded.T)
        found.append(Sensitivity(group, baseline.kl(decoder.logits(changed))))
    return tuple(found)


def token_ids(checkpoint: Checkpoint, n_tokens: int) -> NDArray[np.int64]:
    """Returns the first ids of the calibration text."""
    from tokenizers import Tokenizer

    if "tokenizer.json" not in checkpoint.files:
        raise PackageError(
            f"{checkpoint.name} has no tokenizer.json, which measuring a mix needs; choose another scheme or add it"
        )
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode("utf-8"))
    ids = tokenizer.encode(calibration_text()[: 40 * n_tokens], add_special_tokens=False).ids
    return np.asarray(ids[:n_tokens], np.int64)


def allocate(found: Sequence[Sensitivity], mix: MixScheme, target_bits: float | None = None) -> tuple[Group, ...]:
    """Returns the groups that get `mix.high`: the largest KL per extra byte first, while the mean stays on target."""
    low, high = mix.low.bits_per_weight, mix.high.bits_per_weight
    total = sum(entry.group.parameters for entry in found)
    budget = total * ((mix.target_bits if target_bits is None else target_bits) - low)
    promoted, spent = [], 0.0
    for entry in sorted(found, key=lambda entry: (-entry.kl / entry.group.parameters, entry.group.layer)):
        extra = entry.group.parameters * (high - low)
        if spent + extra <= budget:
            spent += extra
            promoted.append(entry.group)
    return tuple(promoted)


def rules(promoted: Sequence[Group], language: LMSpec, names: Mapping[str, str], mix: MixScheme) -> tuple[Rule, ...]:
    """Returns the allocation as overrides: embedding, head, then one rule per role with its layers."""
    found = [(re.escape(f"{names['embed']}.weight"), mix.high.name)]
    if not language.tied:
        found.append((re.escape(f"{names['lm_head']}.weight"), mix.high.name))
    chosen = {name for group in promoted for name in group.tensors}
    for role in (role for roles in GROUPS.values() for role in roles):
        layers = [i for i in range(len(language.layer_kinds)) if f"{names[role].format(i=i)}.weight" in chosen]
        if layers:
            before, after = names[role].split("{i}")
            found.append(
                (f"{re.escape(before)}({'|'.join(map(str, layers))}){re.escape(after)}\\.weight", mix.high.name)
            )
    return tuple(found)


class _Decoder:
    """The fp32 decoder on one piece of text."""

    def __init__(self, built: BuildResult, directory: Path, ids: NDArray[np.int64]) -> None:
        import onnxruntime as ort

        if built.decoder is None:
            raise PackageError("the model has no language part, so there is nothing to measure a mix on")
        paths = {graph.name: directory / graph.path for graph in built.graphs}
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        embed = ort.InferenceSession(str(paths["embed_tokens"]), options, providers=providers)
        self._session = ort.InferenceSession(str(paths["decoder_model_merged"]), options, providers=providers)
        n_tokens = len(ids)
        self._feeds: dict[str, NDArray[Any]] = {
            "inputs_embeds": embed.run(None, {"input_ids": ids[None]})[0],
            "attention_mask": np.ones((1, n_tokens), np.int64),
            "position_ids": np.arange(n_tokens, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(n_tokens - N_WARM_UP, np.int64),
            **dict(_empty_cache(built.decoder)),
        }

    def logits(self, weights: Mapping[str, Float32]) -> Float32:
        """Returns the scored rows (T, vocab) with other values for some linears, each (K, N)."""
        rows: Float32 = self._session.run(["logits"], {**self._feeds, **weights})[0][0]
        return rows


def _empty_cache(decoder: DecoderSpec) -> Iterator[tuple[str, Float32]]:
    for entry in decoder.cache:
        yield entry.past_name, np.zeros((1, *(0 if axis == "P" else int(axis) for axis in entry.shape)), np.float32)


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
