"""Writes the utilisation tables of docs/npu.md, from shapes alone: `python -m docs.make_npu_tables [--write]`.

The model is BlueLM-V-3B's make-up with published parts: SigLIP so400m/14 at 384 px, the 2x2 downsampler and two-layer
MLP of `bluelm_v`, and a language model of Qwen2.5-3B's shapes; 4-bit weights in blocks of 32, head and tower in int8.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgevlm.cli.inspect import DEFAULT_ARRAY, DEFAULT_BALANCE
from export.archs import qwen2, siglip
from export.archs.fields import Fields
from export.archspec import ArchSpec, ConnectorSpec, LinearSpec, NameMap
from export.npu.products import Shapes
from export.npu.report import NpuReport, model_report
from export.npu.utilisation import MacArray

PAGE = Path(__file__).resolve().parent / "npu.md"
BEGIN, END = "<!-- utilisation:begin -->", "<!-- utilisation:end -->"
CONTEXT = 1024
VOCABULARY = 151936

_TOWER = siglip.vision_spec(
    Fields({
        "hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27, "intermediate_size": 4304,
        "image_size": 384, "patch_size": 14,
    }),
    pos="table",
)  # fmt: skip
_LANGUAGE = qwen2.arch_spec(
    {
        "model_type": "qwen2", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
        "num_hidden_layers": 36, "intermediate_size": 11008, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
    },
    {},
)  # fmt: skip
MODEL = ArchSpec(
    model_type="bluelm_v",
    names=NameMap(
        vision=siglip.vision_names("vision."),
        connector={f"linear.{i}": f"vision.connector.{i}" for i in range(3)},
        language=_LANGUAGE.names.language,
    ),
    language=_LANGUAGE.language,
    vision=_TOWER,
    connector=ConnectorSpec(
        reduce="s2d", factor=2, pad="zero", act_after=(1,),
        linears=(LinearSpec(1152, True), LinearSpec(2048, True), LinearSpec(2048, True)),
    ),
)  # fmt: skip


def w_bits(name: str, shape: tuple[int, int]) -> float:
    """Bits of one weight: int8 per channel in the tower and the head, else w4g32 with fp16 scales."""
    return 8 + 16 / shape[1] if name.startswith("vision.") or shape[0] == VOCABULARY else 4.5


def report() -> NpuReport:
    """The report on the default array."""
    return model_report(MODEL, Shapes(CONTEXT), MacArray(*DEFAULT_ARRAY, DEFAULT_BALANCE), w_bits)


def render() -> str:
    """Returns the text between the markers."""
    found = report()
    heading, *rows = found.product_rows()
    lines = [f"| {' | '.join(row)} |" for row in (heading, ("---",) * len(heading), *rows)]
    totals = ", ".join(f"{graph} {value:.1%}" for graph, value in found.graph_totals().items())
    return "\n".join([*lines, "", f"Used in all: {totals}.", "", *(f"- {line}" for line in found.advice_lines())])


def page_with(text: str) -> str:
    """Returns the page with `text` between the markers."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page_with(render()), encoding="utf-8")
    else:
        print(render())
