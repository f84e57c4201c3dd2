"""Snapshot directories, the Hub, and the bookkeeping of `Checkpoint`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors

from edgevlm.errors import BackendError, PackageError, UnsupportedModelError, UsageError
from export.checkpoint import open_checkpoint
from export.checkpoints import source
from tests.broken import BrokenCase, checkpoints, gguf_files
from tests.broken.checkpoints import CONFIG, SNAPSHOTS
from tests.safetensors_bytes import encode, file_of, header_of, pack

# Multiples of 1/64 below 4 are exact in bfloat16 and float16.
VALUES = {
    "model.embed_tokens.weight": (np.arange(24, dtype=np.float32).reshape(6, 4) - 12) / 64,
    "model.norm.weight": np.array([1.5, -2.25, 0.0, 3.0], np.float32),
    "scalar": np.array(0.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def write_snapshot(path: Path, dtype: str = "F32", n_shards: int = 0) -> Path:
    """A snapshot of VALUES in one file, or split over shards with an index."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    if not n_shards:
        (path / "model.safetensors").write_bytes(file_of(VALUES, dtype))
        return path
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: VALUES[name] for name in list(VALUES)[shard::n_shards]}
        (path / file).write_bytes(file_of(part, dtype))
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("n_shards", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_tensor_is_read_exactly(tmp_path: Path, dtype: str, n_shards: int) -> None:
    checkpoint = open_checkpoint(write_snapshot(tmp_path / "tiny", dtype, n_shards))
    assert checkpoint.tensors().keys() == VALUES.keys()
    for name, expected in VALUES.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32 and read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected)
        info = checkpoint.tensors()[name]
        assert (info.shape, info.dtype) == (expected.shape, dtype)
        assert info.size_bytes == len(encode(expected, dtype))
    assert checkpoint.name == checkpoint.source == "tiny"
    assert checkpoint.config == CONFIG
    assert set(checkpoint.files) == {"config.json", "tokenizer.json", "chat_template.jinja"}
    checkpoint.account()


def test_pieces_of_a_tensor_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_snapshot(tmp_path / "tiny", "BF16"))
    monkeypatch.setattr(source, "CHUNK_BYTES", 40)  # two rows of four
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(checkpoint.read(name), VALUES[name])
    np.testing.assert_array_equal(checkpoint.read_rows(name, 1, 6), VALUES[name][1:6])
    assert checkpoint.read_rows(name, 2, 2).shape == (0, 4)


def test_rows_outside_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_snapshot(tmp_path / "tiny"))
    with pytest.raises(UsageError, match="rows 0 to 7 of tensor"):
        checkpoint.read_rows("model.embed_tokens.weight", 0, 7)


def test_an_unused_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_snapshot(tmp_path / "tiny"))
    checkpoint.read("model.embed_tokens.weight")
    with pytest.raises(UnsupportedModelError, match=r"1 tensor\(s\): 'model.norm.weight', which 'llama' does not use"):
        checkpoint.account(ignore=("scalar", "emp.*"))
    with pytest.raises(UnsupportedModelError, match=r"2 tensor\(s\)"):
        checkpoint.account(ignore=("model.norm", "scal.r"))  # patterns match whole names
    checkpoint.account(ignore=("model.norm.*", "scalar", "empty"))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_snapshot(tmp_path / "tiny"))
    with pytest.raises(
        UnsupportedModelError, match=r"no tensor 'model\.norms\.weight'; the nearest name is 'model.norm"
    ):
        checkpoint.read("model.norms.weight")
    with pytest.raises(UnsupportedModelError, match="lacks 1 tensor"):
        checkpoint.account(ignore=(".*",))


def test_nan_is_refused(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "tiny")
    (path / "model.safetensors").write_bytes(file_of({"a": np.array([1, np.nan], np.float32)}))
    with pytest.raises(PackageError, match="tensor 'a' holds NaN"):
        open_checkpoint(path).read("a")


def test_large_finite_values_are_not_taken_for_infinity(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "tiny")
    values = np.full(8, 3e38, np.float32)
    (path / "model.safetensors").write_bytes(file_of({"a": values}))
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), values)


def test_counters_may_stand_in_a_file_but_are_not_weights(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "tiny")
    tensors = {"weight": ("F32", np.ones(2, np.float32)), "position_ids": ("I64", np.arange(3, dtype=np.float32))}
    (path / "model.safetensors").write_bytes(pack(*header_of(tensors)))
    checkpoint = open_checkpoint(path)
    checkpoint.read("weight")
    checkpoint.account(ignore=("position_ids",))
    with pytest.raises(UnsupportedModelError, match="holds I64 values"):
        checkpoint.read("position_ids")


def test_metadata_and_padded_headers_are_read(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "tiny")
    header, data = header_of({"a": ("F32", np.ones(2, np.float32))})
    header["__metadata__"] = {"format": "pt"}
    (path / "model.safetensors").write_bytes(pack(json.dumps(header).encode() + b" " * 13, data))
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), [1, 1])


def test_links_inside_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    plain = write_snapshot(tmp_path / "plain")
    for number, file in enumerate(sorted(plain.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.name == "model"
    np.testing.assert_array_equal(checkpoint.read("scalar"), 0.5)


def test_another_repositorys_blobs_are_refused(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    write_snapshot(snapshot)
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (snapshot / "model.safetensors").rename(other / "0")
    (snapshot / "model.safetensors").symlink_to(other / "0")
    with pytest.raises(PackageError, match="outside the checkpoint"):
        open_checkpoint(snapshot)


def test_a_hub_id_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=r"pip install 'edgevlm\[hub\]'"):
        open_checkpoint("org/model")


def test_reading_keeps_nothing(tmp_path: Path) -> None:
    """Eight tensors of 64 MB as float32, read one after the other, cost one of them (the file is sparse)."""
    path = write_snapshot(tmp_path / "large")
    shape, stored = [4096, 4096], 4096 * 4096 * 2
    header = {
        f"layer.{n}": {"dtype": "BF16", "shape": shape, "data_offsets": [n * stored, (n + 1) * stored]}
        for n in range(8)
    }
    with (path / "model.safetensors").open("wb") as file:
        file.write(pack(header, b""))
        file.truncate(file.tell() + 8 * stored)
    script = (
        "import resource, sys\n"
        "from export.checkpoint import open_checkpoint\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in checkpoint.tensors():\n"
        "    checkpoint.read(name)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    # Measured 2026-11-24: 64 MB, the one tensor; it would be 512 MB if anything were kept.
    assert int(result.stdout) < 150 * 1024


@pytest.mark.parametrize("case", [*checkpoints.CASES, *gguf_files.CASES], ids=lambda case: case.name)
def test_broken_inputs_are_refused_at_once(case: BrokenCase, tmp_path: Path) -> None:
    with pytest.raises(case.error) as caught:
        open_checkpoint(case.make(tmp_path))
    assert type(caught.value) is case.error
    assert case.fragment in str(caught.value)


DAMAGED = ("safetensors file", "header", "tensor named", "without dtype", "size", "shape", "bytes", "beyond", "offsets")
DAMAGED_FILES = [case for case in SNAPSHOTS if any(word in case.name for word in DAMAGED)]


@pytest.mark.parametrize("case", DAMAGED_FILES, ids=lambda case: case.name)
def test_the_safetensors_library_refuses_the_same_files(case: BrokenCase, tmp_path: Path) -> None:
    file = Path(case.make(tmp_path)) / "model.safetensors"
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(file, "numpy"):
        pass


def test_the_safetensors_library_takes_the_sound_file(tmp_path: Path) -> None:
    with safetensors.safe_open(write_snapshot(tmp_path / "tiny") / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == set(VALUES)
