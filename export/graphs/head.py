"""Which table is the head: what the checkpoint stores decides, and not its flag alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from export.archspec import ArchSpec
from export.graphs.tensors import SLICE_BYTES, Tensors


def with_stored_head(spec: ArchSpec, tensors: Tensors) -> tuple[ArchSpec, tuple[str, ...]]:
    """Returns the spec with `tied`, and the place of the table, as the stored tensors are; and what to tell of it.

    A tied model whose checkpoint stores another head has that head, and one that stores its table as the head alone has
    that table: transformers 5.24 ties neither (modeling_utils.py, tie_weights). An untied model without a head takes
    the embedding, as llama.cpp does; transformers draws a random one.
    Raises UnsupportedModelError when the table is missing or has another shape than config.json says.
    """
    language = spec.language
    if language is None:
        return spec, ()
    names = spec.names.language
    embed, head = f"{names['embed']}.weight", f"{names['lm_head']}.weight"
    if language.tied and tensors.has(head) and not tensors.has(embed):
        roots = (*spec.names.roots, (embed, tensors.resolve(head)))
        return dataclasses.replace(spec, names=dataclasses.replace(spec.names, roots=roots)), ()
    tensors.expect(embed, (language.vocab, language.hidden))
    if not language.tied and not tensors.has(head):
        note = (
            f"config.json says tie_word_embeddings is false, but the checkpoint has no {head}: "
            "the embedding is used as the head"
        )
    elif language.tied and tensors.has(head) and not _equal(tensors, embed, head):
        note = (
            f"config.json says tie_word_embeddings is true, but the checkpoint has a {head} of other values: "
            "the stored head is used"
        )
    else:
        return spec, ()
    return dataclasses.replace(spec, language=dataclasses.replace(language, tied=not language.tied)), (note,)


def _equal(tensors: Tensors, first: str, second: str) -> bool:
    """Whether two tables hold the same values; stops at the first slice that differs."""
    shape = tensors.shape(first)
    tensors.expect(second, shape)
    names = [tensors.resolve(name) for name in (first, second)]
    step = max(1, SLICE_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], step):
        stop = min(shape[0], start + step)
        one, other = (tensors.checkpoint.read_rows(name, start, stop) for name in names)
        if not np.array_equal(one, other):
            return False
    return True
