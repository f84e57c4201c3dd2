"""Architectures: one file each, `arch_spec(config, files) -> ArchSpec`, and one row each in ARCHS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgevlm.errors import PackageError, UnsupportedModelError
from export.archs import bluelm_v, dinov2, idefics3, llama, qwen2, siglip, smolvlm
from export.archspec import ArchSpec

Reader = Callable[[Mapping[str, Any], Mapping[str, bytes]], ArchSpec]

ARCHS: dict[str, Reader] = {
    "bluelm_v": bluelm_v.arch_spec,
    "dinov2": dinov2.arch_spec,
    "idefics3": idefics3.arch_spec,
    "llama": llama.arch_spec,
    "qwen2": qwen2.arch_spec,
    "siglip": siglip.arch_spec,
    "siglip_vision_model": siglip.arch_spec,
    "smolvlm": smolvlm.arch_spec,
}
"""config.json's `model_type` → reader."""


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    """Turns a parsed config.json and the other json files of a checkpoint into an ArchSpec.

    Raises PackageError for a malformed field, UnsupportedModelError for a model type or a field value without an
    implementation.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise PackageError("config.json has no 'model_type'; is this a Hugging Face model directory?")
    if model_type not in ARCHS:
        raise UnsupportedModelError(
            f"model type {model_type!r} (config.json: model_type) is not implemented; implemented: {', '.join(ARCHS)}"
        )
    for part in ("text_config", "vision_config"):
        inner = config.get(part)
        if isinstance(inner, Mapping) and inner.get("quantization_config"):
            raise UnsupportedModelError(
                f"config.json: {part}.quantization_config states weights quantised by another tool; "
                "use the model's bf16, fp16 or fp32 release"
            )
    return ARCHS[model_type](config, files)
