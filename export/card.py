"""The model card: README.md of a package, with the YAML front matter that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from edgevlm.spec import ComponentSize, Manifest, ParityEntry, TensorError

N_WORST_TENSORS = 8
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})

SCHEME_TEXT: Mapping[str, str] = {
    "w4g32": "4 bits, symmetric, one scale per 32 weights",
    "w4g64": "4 bits, symmetric, one scale per 64 weights",
    "w4g128": "4 bits, symmetric, one scale per 128 weights",
    "w4g32z": "4 bits with zero points, one scale per 32 weights",
    "w4g64z": "4 bits with zero points, one scale per 64 weights",
    "w4g128z": "4 bits with zero points, one scale per 128 weights",
    "w4g32-mix": "4 bits per 32 weights, and 8 bits where measurement says that 4 cost most",
    "w8": "8 bits, one scale per 128 weights at most",
    "w8g64": "8 bits, one scale per 64 weights",
    "w8g32": "8 bits, one scale per 32 weights",
    "fp16": "16-bit floating point",
    "fp32": "32-bit floating point, not quantised",
}


def model_card(manifest: Manifest, *, licence: str | None = None, base_model: str | None = None) -> str:
    """Returns the card of a package.

    Args:
        licence: the checkpoint's licence identifier when it states one; a guess is worse than none.
        base_model: what the package was made from, when that is a name on a model hub.
    """
    parts = [
        _front_matter(manifest, licence, base_model),
        f"# {manifest.name}\n\n{_summary(manifest, licence)}",
        _run(manifest),
        _sizes(manifest),
        _quantisation(manifest),
        _parity(manifest.parity),
        _limits(manifest),
        _versions(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest, licence: str | None, base_model: str | None) -> str:
    has_vision = manifest.processor is not None
    lines = ["---", "library_name: edgevlm"]
    if licence:
        lines.append(f"license: {_scalar(licence)}")
    if base_model:
        lines += [f"base_model: {_scalar(base_model)}", "base_model_relation: quantized"]
    lines.append(f"pipeline_tag: {'image-text-to-text' if has_vision else 'text-generation'}")
    tags = ["edgevlm", "onnx", "on-device", manifest.arch, manifest.quant.language_scheme]
    lines += ["tags:", *(f"- {_scalar(tag)}" for tag in tags), "---"]
    return "\n".join(lines)


def _scalar(text: str) -> str:
    """A YAML scalar; anything that is not a plain word is quoted (a JSON string is a YAML string)."""
    plain = text.replace("-", "").replace("_", "").replace(".", "").replace("/", "")
    is_word = plain.isalnum() and plain[0].isalpha() and text.lower() not in _YAML_WORDS
    return text if is_word else json.dumps(text)


def _summary(manifest: Manifest, licence: str | None) -> str:
    kind = "vision-language model" if manifest.processor is not None else "language model"
    quant = manifest.quant
    total = sum(size.size_bytes for size in manifest.sizes)
    parameters = sum(size.parameters for size in manifest.sizes)
    text = (
        f"A {kind} (`{manifest.arch}`, {parameters / 1e6:,.1f} M parameters) as an edgevlm package: "
        f"{total / 1e6:,.1f} MB of weights, {quant.mean_bits_per_weight:.2f} bits per quantised weight. "
        "It runs offline."
        f"\n\nExported from {_code(manifest.source)} on {manifest.created}."
    )
    if licence is None:
        text += " The checkpoint states no licence; ask its authors before you redistribute this package."
    return text


def _run(manifest: Manifest) -> str:
    has_vision = manifest.processor is not None
    pictures = ', images=["picture.jpg"]' if has_vision else ""
    option = " --image picture.jpg" if has_vision else ""
    question = "What is in this picture?" if has_vision else "Why is the sky blue?"
    return f"""## Run it

```bash
pip install edgevlm
edgevlm run .{option} "{question}"
edgevlm chat .
```

```python
import edgevlm

with edgevlm.load(".") as model:
    print(model.generate("{question}"{pictures}).text)
```"""


def _sizes(manifest: Manifest) -> str:
    rows = [
        (size.component, f"{size.parameters:,}", f"{size.size_bytes / 1e6:,.1f} MB", f"{_bits(size):.2f}")
        for size in manifest.sizes
    ]
    return "## Sizes\n\n" + _table(("component", "parameters", "size", "bits per parameter"), rows)


def _bits(size: ComponentSize) -> float:
    return 8 * size.size_bytes / size.parameters if size.parameters else 0.0


def _quantisation(manifest: Manifest) -> str:
    quant = manifest.quant
    rows = [("language model", quant.language_scheme, SCHEME_TEXT.get(quant.language_scheme, ""))]
    if manifest.processor is not None:
        rows.append(("vision tower", quant.vision_scheme, SCHEME_TEXT.get(quant.vision_scheme, "")))
    text = "## Quantisation\n\n" + _table(("part", "scheme", "meaning"), rows)
    text += "\n\nNorms, biases, position tables and the patch embedding are not quantised. Scales have 16-bit values."
    if quant.overrides:
        overrides = [(f"`{_cell(pattern)}`", scheme) for pattern, scheme in quant.overrides]
        text += "\n\nExceptions; the first match counts:\n\n" + _table(("tensors", "scheme"), overrides)
    if quant.worst_tensors:
        text += "\n\nLargest errors, ‖W - Wq‖ / ‖W‖:\n\n" + _worst(quant.worst_tensors[:N_WORST_TENSORS])
    return text


def _worst(tensors: Sequence[TensorError]) -> str:
    rows = [(f"`{_cell(tensor.name)}`", tensor.scheme, f"{tensor.relative_rms:.4f}") for tensor in tensors]
    return _table(("tensor", "scheme", "relative error"), rows)


def _parity(entries: Sequence[ParityEntry]) -> str:
    if not entries:
        return "## Checks\n\nNot run: the package was exported without them. `edgevlm verify` runs them."
    rows = [
        (
            entry.stage,
            entry.against,
            _cell(entry.metric),
            "" if entry.value is None else f"{entry.value:.4g}",
            "" if entry.bound is None else f"{entry.bound:.4g}",
            entry.status,
            _cell(entry.detail),
        )
        for entry in entries
    ]
    head = ("stage", "against", "metric", "value", "bound", "status", "detail")
    return "## Checks\n\nMade at export; a failed one would have stopped it.\n\n" + _table(head, rows)


def _limits(manifest: Manifest) -> str:
    decoder, processor = manifest.decoder, manifest.processor
    lines = [
        f"- Context: {decoder.default_context:,} tokens by default, at most {decoder.max_position_embeddings:,}.",
        "- Quantisation changes answers; the table above says by how much on text"
        + (" and pictures." if processor is not None else "."),
        "- The model can be wrong, and repeats what its training data held. Check what matters.",
    ]
    if processor is not None and manifest.prompt is not None:
        n_tiles = processor.max_tiles + (processor.thumbnail != "none")
        lines.insert(
            1,
            f"- A picture becomes at most {n_tiles} tiles of {processor.tile_px} px, "
            f"{manifest.prompt.tokens_per_tile} tokens each.",
        )
    return "## Limits\n\n" + "\n".join(lines)


def _versions(manifest: Manifest) -> str:
    rows = [("package schema", str(manifest.schema_version)), *sorted(manifest.versions.items())]
    return "## Versions\n\n" + _table(("software", "version"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    """Text that cannot end its table cell or its code span."""
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"
