"""Hub ids, with the real huggingface_hub against a Hub on this machine: downloads, the cache, and every way to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import PackageError, UnsupportedModelError
from edgevlm.package import open_package
from export.checkpoint import Checkpoint, open_checkpoint
from tests import tiny
from tests.hub_server import COMMIT, HubServer

constants = pytest.importorskip("huggingface_hub.constants", reason="Hub ids need huggingface_hub")
ROOT = Path(__file__).resolve().parents[2]
NAME = "org/tiny"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.make_llama(tmp_path_factory.mktemp("repository") / "tiny")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "README.md").write_text("what a repository has beside a model")
    return directory


@pytest.fixture
def hub(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, with an empty cache; the library waits for nobody."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with HubServer({NAME: snapshot}) as server:
        files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def assert_same(checkpoint: Checkpoint, snapshot: Path) -> None:
    expected = open_checkpoint(snapshot)
    assert (checkpoint.config, checkpoint.files) == (expected.config, expected.files)
    assert set(checkpoint.tensors()) == set(expected.tensors())
    for name in expected.tensors():
        np.testing.assert_array_equal(checkpoint.read(name), expected.read(name))


def test_a_repository_is_fetched_and_nothing_that_is_not_needed(hub: HubServer, snapshot: Path) -> None:
    checkpoint = open_checkpoint(NAME)
    assert_same(checkpoint, snapshot)
    assert (checkpoint.name, checkpoint.source) == ("tiny", NAME)
    fetched = {request.rsplit("/", 1)[1] for request in hub.requests if f"/resolve/{COMMIT}/" in request}
    assert "model.safetensors" in fetched and not fetched & {"pytorch_model.bin", "README.md"}


def test_a_revision_is_fetched_and_comes_from_the_cache_when_the_network_is_gone(
    hub: HubServer, snapshot: Path
) -> None:
    assert_same(open_checkpoint(f"{NAME}@v1.0"), snapshot)
    assert f"GET /api/models/{NAME}/revision/v1.0" in hub.requests
    hub.stop()
    assert_same(open_checkpoint(f"{NAME}@v1.0"), snapshot)


def test_an_interrupted_download_is_resumed(hub: HubServer, snapshot: Path) -> None:
    hub.cut_after["model.safetensors"] = 1000
    assert_same(open_checkpoint(NAME), snapshot)
    assert hub.requests.count(f"GET /{NAME}/resolve/{COMMIT}/model.safetensors") == 2


def refused(source: str = NAME) -> str:
    with pytest.raises(PackageError) as caught:
        open_checkpoint(source)
    message = str(caught.value)
    assert message.startswith(f"there is no directory '{source.partition('@')[0]}', and it could not be fetched")
    assert "\n" not in message and message.endswith(
        " A snapshot that you download yourself can be given as a directory."
    )
    return message


def test_a_download_that_breaks_off_each_time(hub: HubServer, snapshot: Path) -> None:
    hub.cut_after["model.safetensors"], hub.cut_again = 1000, True
    assert "what has arrived is kept" in refused()
    hub.cut_after.clear()
    assert_same(open_checkpoint(NAME), snapshot)


def test_no_such_repository(hub: HubServer) -> None:
    assert "there is no such repository, or it is private" in refused("org/other")


def test_a_gated_repository(hub: HubServer) -> None:
    hub.gated = True
    assert "it is gated. Ask for access on its page" in refused()


def test_no_such_revision(hub: HubServer) -> None:
    assert "it has no revision 'v9'" in refused(f"{NAME}@v9")


def test_a_listed_file_is_missing(hub: HubServer) -> None:
    hub.missing.add("model.safetensors")
    message = refused()
    assert "a file that it lists is not there" in message and "model.safetensors" in message


def test_a_repository_without_weights_in_safetensors(hub: HubServer, snapshot: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (old / name).write_bytes((snapshot / name).read_bytes())
    (old / "pytorch_model.bin").write_bytes(b"pickle")
    hub.repositories["org/old"] = old
    with pytest.raises(PackageError, match="safetensors"):
        open_checkpoint("org/old")


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("config.json", b'{"model_type": "mamba"}', "model type 'mamba'"),
        ("config.json", b'{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}', "quantised with"),
        ("config.json", None, "has no config.json"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_weights_are_not_fetched_for_nothing(
    hub: HubServer, snapshot: Path, tmp_path: Path, name: str, content: bytes | None, fragment: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(snapshot, other)
    (other / name).unlink()
    if content is not None:
        (other / name).write_bytes(content)
    hub.repositories["org/other"] = other
    with pytest.raises((PackageError, UnsupportedModelError), match=fragment):
        open_checkpoint("org/other")
    assert hub.requests and not any(request.endswith("model.safetensors") for request in hub.requests)


def test_nobody_listens(hub: HubServer) -> None:
    hub.stop()
    message = refused()
    assert "the Hub does not answer" in message and "Connection refused" in message


def test_the_command_line_exports_a_hub_id(hub: HubServer, tmp_path: Path) -> None:
    """In a process of its own, where the environment alone says where the Hub is."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "edgevlm", "export", NAME, "--scheme", "w8", "--no-verify", "-o", "package"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_package(tmp_path / "package").manifest.source == NAME


@pytest.mark.reference
def test_transformers_reads_the_same_download(hub: HubServer) -> None:
    pytest.importorskip("transformers")
    from export.reference.load import load_reference

    open_checkpoint(NAME)
    asked = len(hub.requests)
    assert load_reference(NAME).model_type == "llama"
    assert len(hub.requests) == asked
