"""What the NPU's backend says about its provider; the provider itself is not needed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevlm.backends import qnn
from edgevlm.errors import BackendError


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(qnn, "provider_version", lambda: "onnxruntime-qnn 1.0")


def test_the_notice_comes_once_and_again_for_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [qnn.licence_notice() for _ in range(3)] == [qnn.LICENCE, None, None]
    monkeypatch.setattr(qnn, "provider_version", lambda: "onnxruntime-qnn 1.1")
    assert qnn.licence_notice() == qnn.LICENCE


def test_where_nothing_can_be_kept_it_comes_every_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "file"))
    assert [qnn.licence_notice() for _ in range(2)] == [qnn.LICENCE] * 2


def test_a_missing_provider_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn, "_devices", [])
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(BackendError, match=r"the NPU needs onnxruntime's QNN provider: pip install 'edgevlm\[qnn\]'"):
        qnn.provider_device()
