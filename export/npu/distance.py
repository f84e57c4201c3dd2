"""How far the NPU's roundings are from float activations, beside what the CPU's own int8 activations cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.backends.npu import NpuSession
from edgevlm.package import Package
from edgevlm.telemetry import import_onnxruntime
from edgevlm.tokenizer import Tokenizer
from export import probes
from export.divergence import DivergenceMeter, bound_for
from export.npu.calibrate import embed

Float32 = NDArray[np.float32]


def measured_ids(package: Package, n_tokens: int) -> NDArray[np.int64]:
    """The first tokens of the measuring text, which calibration never sees."""
    ids = np.array(Tokenizer.open(package).encode(probes.text()[: 16 * n_tokens]), np.int64)
    return np.resize(ids, n_tokens)


def float_logits(package: Package, ids: NDArray[np.int64]) -> Float32:
    """Logits (T, vocab) of the CPU's decoder with float activations: the same weights, nothing else rounded."""
    return _cpu_logits(package, ids, exact=True)


def cpu_logits(package: Package, ids: NDArray[np.int64]) -> Float32:
    """Logits (T, vocab) of the CPU's decoder as it runs, activations in int8."""
    return _cpu_logits(package, ids, exact=False)


def session_logits(session: NpuSession, ids: NDArray[np.int64]) -> Float32:
    """Logits (T, vocab) of a session, token by token behind an empty cache."""
    session.release("kv")
    return np.stack([session.step(int(token), position) for position, token in enumerate(ids)])


def mean_kl(teacher: Float32, student: Float32) -> float:
    """Mean KL divergence in nats."""
    meter = DivergenceMeter(bound_for("fp32"))
    meter.add(teacher, student)
    return meter.mean_kl


def _cpu_logits(package: Package, ids: NDArray[np.int64], *, exact: bool) -> Float32:
    session = _session(package, "decoder_model_merged", exact=exact)
    n_tokens = len(ids)
    feeds: dict[str, Any] = {
        "inputs_embeds": embed(package, ids)[None],
        "attention_mask": np.ones((1, n_tokens), np.int64),
        "position_ids": np.arange(n_tokens)[None],
        "num_logits_to_keep": np.array(0, np.int64),
    }
    for entry in package.manifest.decoder.cache:
        kv_heads, _, dim = entry.shape
        feeds[entry.past_name] = np.zeros((1, int(kv_heads), 0, int(dim)), np.float32)
    logits: Float32 = session.run(["logits"], feeds)[0][0]
    return logits


def float_features(package: Package, pixels: Float32) -> Float32:
    """Image features (C, V, D) of the CPU's tower with float activations."""
    session = _session(package, "vision_encoder", exact=True)
    features: Float32 = session.run(["image_features"], {"pixel_values": pixels})[0]
    return features


def _session(package: Package, name: str, *, exact: bool) -> Any:
    """A CPU graph; with `exact`, MatMulNBits computes with float activations."""
    import onnx
    onnxruntime = import_onnxruntime()

    path = package.graph(name)
    model = onnx.load(path, load_external_data=False)
    if exact:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(path.resolve().parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
