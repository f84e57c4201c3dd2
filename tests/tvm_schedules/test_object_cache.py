"""A damaged list of kernel objects is made again, not a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvm_schedules import object_cache
from tvm_schedules.targets import BY_NAME

VARIANT = BY_NAME["avx2"]


def test_a_sound_list_is_taken(tmp_path: Path) -> None:
    index = object_cache._index(VARIANT, tmp_path, "sources")
    (tmp_path / "a.o").write_bytes(b"object")
    index.write_text(json.dumps({"gemm": "a.o"}))
    assert object_cache.known_objects(VARIANT, tmp_path, "sources") == {"gemm": tmp_path / "a.o"}
    assert object_cache.known_objects(VARIANT, tmp_path, "other sources") is None
    (tmp_path / "a.o").unlink()
    assert object_cache.known_objects(VARIANT, tmp_path, "sources") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"gemm": 1}', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_damaged_list_counts_as_none(tmp_path: Path, content: bytes) -> None:
    object_cache._index(VARIANT, tmp_path, "sources").write_bytes(content)
    (tmp_path / "b.o").write_bytes(b"object")
    assert object_cache.known_objects(VARIANT, tmp_path, "sources") is None
    object_cache.prune(tmp_path)
    assert not (tmp_path / "b.o").exists()
