"""Head and embedding that are two roundings of one table become one again; others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import UsageError
from edgevlm.package import open_package
from export.checkpoint import open_checkpoint
from export.checkpoints.source import Contents, TensorInfo
from export.checkpoints.tied import EMBEDDING, HEAD, tied
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.verify_case import copy_with_config


class _Tables:
    def __init__(self, head: np.ndarray, embedding: np.ndarray) -> None:
        self._tables = {HEAD: head, EMBEDDING: embedding}

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(table.shape, "F32", table.nbytes) for name, table in self._tables.items()}

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._tables[name][start:stop]


def _contents(head: np.ndarray, embedding: np.ndarray) -> Contents:
    return Contents("toy", {"tie_word_embeddings": False}, {}, _Tables(head, embedding))


def test_the_head_is_read_for_both() -> None:
    rng = np.random.default_rng(0)
    head = rng.standard_normal((300, 32)).astype(np.float32)
    joined = tied(_contents(head, np.round(head * 4) / 4))
    assert list(joined.source.tensors()) == [EMBEDDING]
    assert joined.config["tie_word_embeddings"] is True
    np.testing.assert_array_equal(joined.source.read_rows(EMBEDDING, 7, 9), head[7:9])


def test_unrelated_tables_are_refused() -> None:
    rng = np.random.default_rng(0)
    head, other = (rng.standard_normal((300, 32)).astype(np.float32) for _ in range(2))
    with pytest.raises(UsageError, match=r"differ by 1\.4"):
        tied(_contents(head, other))


def test_a_tied_checkpoint_is_refused(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "checkpoint", tie_word_embeddings=True)
    with pytest.raises(UsageError, match="tied to the embedding already"):
        open_checkpoint(source, tie_embeddings=True)


def test_a_tied_flag_beside_another_head_does_not_count(tmp_path: Path) -> None:
    """Converters store two roundings of one table and keep the flag; the flag ties nothing then."""
    from safetensors.numpy import load_file, save_file

    source = copy_with_config(
        tiny.make_llama(tmp_path / "untied", tie_word_embeddings=False), tmp_path / "source", tie_word_embeddings=True
    )
    tensors = load_file(source / "model.safetensors")
    tensors[EMBEDDING] = tensors[HEAD] * np.float32(1.01)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    joined = open_checkpoint(source, tie_embeddings=True)
    assert HEAD not in joined.tensors()
    np.testing.assert_array_equal(joined.read_rows(EMBEDDING, 0, 3), tensors[HEAD][:3])


def test_the_package_records_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny.make_llama(tmp_path / "checkpoint", tie_word_embeddings=False)
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors[EMBEDDING] = tensors[HEAD] * np.float32(1.01)
    save_file(tensors, path, metadata={"format": "pt"})
    options = ExportOptions(scheme="w8", tie_embeddings=True, reference=False)
    package = open_package(export_package(source, tmp_path / "package", options))
    assert package.manifest.quant.tied_at_import
    assert all(entry.status != "fail" for entry in package.manifest.parity)
