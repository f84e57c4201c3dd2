"""embed_tokens: input_ids (B, T) → inputs_embeds (B, T, D)."""

from __future__ import annotations

from export.archspec import LMSpec
from export.graphs.ops.cpu import CpuOps
from export.graphs.ops.storage import Table
from export.graphs.supported import check_supported
from export.quant.scheme import for_width


def build_embed(ops: CpuOps, spec: LMSpec, names: dict[str, str]) -> Table:
    """Builds the graph's nodes; returns the table, which a tied head reads from this graph's data file."""
    check_supported(spec)
    builder, storage = ops.builder, ops.storage
    storage.part = "embedding"
    name = f"{names['embed']}.weight"
    scheme = for_width(storage.scheme_for(name), spec.hidden)
    ids = builder.input("input_ids", "int64", ("batch", "tokens"))
    table = storage.rows(builder, name, (spec.vocab, spec.hidden), scheme)
    with builder.scope("model", "embed_tokens"):
        embeds = ops.embedding(ids, table)
    builder.output("inputs_embeds", embeds, "float32", ("batch", "tokens", spec.hidden))
    return table
