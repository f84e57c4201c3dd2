"""Packages and stand-ins for the tests of verification: graphs of a checkpoint; no pipeline, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgevlm.backends.onnx import OnnxSession
from edgevlm.package import Package
from edgevlm.spec import FileEntry, Manifest, QuantEntry
from edgevlm.tiling import cut_tiles, plan_tiles
from edgevlm.tokenizer import Tokenizer
from export import parity, probes
from export.archs import arch_spec
from export.checkpoint import open_checkpoint
from export.graphs.build import build_model
from export.quant.rules import QuantPlan
from export.reference.model import ReferencePicture

CONTEXT = 512


def build_package(source: Path, out: Path, language: str = "fp32", vision: str = "fp32") -> Package:
    """The graphs and json files of `source` in `out`, with a manifest that lists no files."""
    checkpoint = open_checkpoint(source)
    spec = arch_spec(checkpoint.config, checkpoint.files)
    built = build_model(spec, checkpoint, QuantPlan(language, vision), out)
    assert built.decoder is not None and spec.generation is not None
    for name, content in checkpoint.files.items():
        (out / name).write_bytes(content)
    manifest = Manifest(
        schema_version=1,
        name=checkpoint.name,
        arch=spec.model_type,
        created="2026-01-01T00:00:00Z",
        source=checkpoint.name,
        versions={},
        processor=spec.processor,
        prompt=spec.prompt,
        decoder=built.decoder,
        generation=spec.generation,
        graphs=built.graphs,
        quant=QuantEntry(language, vision, (), built.errors, 4.0),
        sizes=built.sizes,
        parity=(),
        files=tuple(FileEntry(name, len(content), "") for name, content in checkpoint.files.items()),
    )
    return Package(out, manifest)


def session_of(package: Package) -> OnnxSession:
    return OnnxSession(package, context=CONTEXT, threads=1)


def image_token_id(package: Package) -> int:
    return -1 if package.manifest.prompt is None else package.manifest.prompt.image_token_id


def with_processor(package: Package, **fields: Any) -> Package:
    """The package with changed fields of its processor."""
    assert package.manifest.processor is not None
    return Package(package.path, replace(package.manifest, processor=replace(package.manifest.processor, **fields)))


def with_prompt(package: Package, **fields: Any) -> Package:
    """The package with changed fields of its prompt."""
    assert package.manifest.prompt is not None
    return Package(package.path, replace(package.manifest, prompt=replace(package.manifest.prompt, **fields)))


class OwnReference:
    """Stands where transformers stands, made of a package that is right: what the checks compare is then known."""

    name = "own package"

    def __init__(self, package: Package) -> None:
        self.package = package
        self.tokenizer = Tokenizer.open(package)

    def picture(self, image: NDArray[np.uint8]) -> ReferencePicture:
        from edgevlm.image import normalize

        spec = self.package.manifest.processor
        assert spec is not None
        plan = plan_tiles(*image.shape[:2], spec)
        tiles = cut_tiles(image, plan, spec)
        return ReferencePicture(tiles, normalize(tiles, spec), (plan.grid_rows, plan.grid_cols))

    def layout(self, image: NDArray[np.uint8]) -> ReferencePicture:
        return self.picture(image)

    def prompt_ids(self, text: str, pictures: Sequence[ReferencePicture] = ()) -> list[int]:
        sizes = [size for picture in pictures for size in probes.PICTURE_SIZES if self._is(picture, size)]
        return parity.our_prompt_ids(self.package, self.tokenizer, text, sizes)

    def chat_ids(self, turns: Sequence[tuple[str, str]]) -> list[int] | None:
        return parity.our_chat_ids(self.package, self.tokenizer, turns)

    def added_tokens(self) -> list[str]:
        return [token.content for token in self.tokenizer.backend.get_added_tokens_decoder().values()]

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allow_special=True)

    def _is(self, picture: ReferencePicture, size: tuple[int, int]) -> bool:
        return np.array_equal(picture.tiles, self.picture(probes.picture(*size)).tiles)


def expected_of(package: Package, n_greedy: int = 8) -> parity.Expected:
    """What a right fp32 package says, in the place of what transformers says."""
    session, tokenizer = session_of(package), Tokenizer.open(package)
    ids = tokenizer.encode(probes.text()[:2000])[: parity.N_TEXT_TOKENS]
    rows = np.concatenate(list(parity.chain_logits(session, np.asarray(ids, np.int64))))
    greedy = parity.greedy_tokens(session, int(rows[-1].argmax()), n_greedy)
    found = parity.Expected("own fp32", text_ids=tuple(ids), text_logits=rows, text_greedy=tuple(greedy))
    if not package.has_vision:
        return found
    size = probes.PICTURE_SIZES[1]
    picture = OwnReference(package).picture(probes.picture(*size))
    features = session.encode(picture.pixel_values)
    prompt = parity.our_prompt_ids(package, tokenizer, probes.QUESTION, [size])
    session.truncate(0)
    segments, rest = parity.split_prompt(prompt, image_token_id(package), features)
    session.prefill(segments, np.arange(len(prompt) - len(rest)))
    rows = np.concatenate(list(parity.chain_logits(session, rest)))
    greedy = parity.greedy_tokens(session, int(rows[-1].argmax()), n_greedy)
    return replace(
        found,
        pixel_values=picture.pixel_values,
        features=features,
        prompt_ids=tuple(prompt),
        prompt_logits=rows,
        prompt_greedy=tuple(greedy),
    )


def copy_with_config(source: Path, target: Path, **fields: Any) -> Path:
    """The snapshot with changed fields of config.json (`text={...}` those of text_config)."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config.get("text_config", {}).update(fields.pop("text", {}))
    config.update(fields)
    (target / "config.json").write_text(json.dumps(config))
    return target


FAULTS = ("transposed scales", "codes off by one", "nibbles swapped", "lost zero points")


def corrupt(package: Package, fault: str, nodes: str = "") -> int:
    """Puts a fault of a wrong exporter into the decoder's int4 linears; returns how many were changed."""
    path = package.graph("decoder_model_merged")
    model = onnx.load(path, load_external_data=False)
    stored = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    }
    n_changed = 0
    for node in model.graph.node:
        attributes = {
            attribute.name: attribute.i
            for attribute in node.attribute
            if attribute.name in ("N", "K", "block_size", "bits")
        }
        if node.op_type != "MatMulNBits" or nodes not in node.name or attributes["bits"] != 4:
            continue
        n_blocks = -(-attributes["K"] // attributes["block_size"])
        index = {"transposed scales": 2, "lost zero points": 3}.get(fault, 1)
        if len(node.input) <= index or not node.input[index]:
            continue
        entry = stored[node.input[index]]
        data = path.parent / entry["location"]
        memory = np.memmap(data, np.uint8, "r+", int(entry.get("offset", 0)), (int(entry["length"]),))
        if fault == "transposed scales":
            scales = memory.view(np.float32).copy()
            memory.view(np.float32)[:] = scales.reshape(attributes["N"], n_blocks).T.ravel()
        elif fault == "codes off by one":
            low, high = (memory & 15) + 1 & 15, (memory >> 4) + 1 & 15
            memory[:] = low | high << 4
        elif fault == "nibbles swapped":
            memory[:] = memory >> 4 | (memory & 15) << 4
        else:
            memory[:] = 0x88
        memory.flush()
        n_changed += 1
    return n_changed
