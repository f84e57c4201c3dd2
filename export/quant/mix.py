"""`w4g32-mix`: which groups of a language model get 8 bits instead of 4.

A group is what one activation feeds: query, key and value | output | gate and up | down, per layer. Each has a measured
cost of being stored in 4 bits (export.quant.sensitivity). Groups are promoted to 8 bits in the order of cost per extra
byte, until the layers' mean bits per weight reach the target; embedding and head get 8 bits (lowbit.md 2.8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.archspec import LMSpec
from export.quant.rules import QuantPlan, Rule
from export.quant.scheme import MixScheme, Scheme, linear_scheme, padded

GROUPS: dict[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class Group:
    """Tensors that share one decision."""

    layer: int
    kind: str
    tensors: tuple[str, ...]
    parameters: int
    width: int
    """Input features, shared by all tensors of the group."""


@dataclass(frozen=True)
class Sensitivity:
    """`kl`: mean KL(fp32 || this group at 4 bits) in nats per token."""

    group: Group
    kl: float


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
                found.append(Group(layer, kind, tuple(free), parameters, next(iter(free.values()))[1]))
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


def allocate(found: Sequence[Sensitivity], mix: MixScheme, target_bits: float | None = None) -> tuple[Group, ...]:
    """Returns the groups that get `mix.high`: the largest KL per extra byte first, while the mean stays on target."""

    def bits(group: Group, scheme: Scheme) -> float:
        scheme = linear_scheme(scheme, group.width)
        return group.parameters * scheme.bits_per_weight * padded(group.width, scheme.block) / group.width

    def extra(group: Group) -> float:
        return bits(group, mix.high) - bits(group, mix.low)

    target = mix.target_bits if target_bits is None else target_bits
    total = sum(entry.group.parameters for entry in found)
    budget = total * target - sum(bits(entry.group, mix.low) for entry in found)
    promoted = []
    for entry in sorted(found, key=lambda entry: (-entry.kl / extra(entry.group), entry.group.layer)):
        if extra(entry.group) <= budget:
            budget -= extra(entry.group)
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
