"""The rotary embedding of a GGUF model: base, linear scaling, and Llama 3's frequency factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError
from export.checkpoints.gguf_container import GGUFFile

ROPE_FACTORS = "rope_freqs.weight"
DEFAULT_THETA = 10000.0
"""llama.cpp's base where a file states none (llama-model.cpp, load_hparams)."""


def llama3_divisors(head_dim: int, theta: float, factor: float, original_context: int) -> NDArray[np.float64]:
    """What llama.cpp stores in `rope_freqs.weight` for Llama 3.1 and later: divisors of the rotation frequencies.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors; low 1 and high 4 as in all releases.
    """
    low, high = 1.0, 4.0
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (original_context / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    return np.where(
        wavelengths < original_context / high, 1.0, np.where(wavelengths > original_context / low, factor, blended)
    )


def rope_theta(file: GGUFFile, arch: str) -> float:
    """The base of the rotation's wavelengths."""
    theta = file.number(f"{arch}.rope.freq_base")
    if theta is None:
        return DEFAULT_THETA
    if theta <= 0:
        raise PackageError(f"{file.path}: '{arch}.rope.freq_base' is {theta}, expected a positive number.")
    return theta


def rope_scaling(file: GGUFFile, arch: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json; None where positions are rotated as they are.

    A factor counts where the type is `linear` or absent, and not where it is `none` (llama-context.cpp: "never scale if
    scaling type is none").
    """
    kind = file.text(f"{arch}.rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise UnsupportedModelError(f"{file.path} uses RoPE scaling {kind!r}; none, linear and Llama 3's are read.")
    factor = 1.0 if kind == "none" else _linear_factor(file, arch)
    if ROPE_FACTORS not in file.tensors():
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if arch != "llama":
        raise UnsupportedModelError(f"{file.path} holds the tensor {ROPE_FACTORS!r}, which {arch!r} does not have.")
    if factor != 1.0:
        raise UnsupportedModelError(
            f"{file.path} scales its RoPE twice, by '{ROPE_FACTORS}' and linearly by {factor}, which is not supported."
        )
    return _llama3_scaling(file, config)


def _linear_factor(file: GGUFFile, arch: str) -> float:
    """The factor, under its name or, where that is absent, under its old one; 0 means none."""
    key = f"{arch}.rope.scaling.factor"
    factor = file.number(key if key in file.metadata else f"{arch}.rope.scale_linear")
    if factor is not None and factor < 0:
        raise PackageError(f"{file.path}: '{key}' is {factor}, expected a positive number.")
    return factor or 1.0


def _llama3_scaling(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, Any]:
    n_factors = (file.tensors()[ROPE_FACTORS].shape or (1,))[0]
    stored = file.read_rows(ROPE_FACTORS, 0, n_factors).astype(np.float64)
    factor, original_context = float(stored.max()), 8192
    expected = llama3_divisors(config["head_dim"], config["rope_theta"], factor, original_context)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4, atol=0):
        raise UnsupportedModelError(f"{file.path}: '{ROPE_FACTORS}' holds other factors than Llama 3's rule gives.")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original_context,
    }
