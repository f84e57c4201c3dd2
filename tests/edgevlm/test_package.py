"""Opening packages: what is sound opens, what is not is refused by file and reason."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

from edgevlm.errors import PackageError
from edgevlm.onnx_file import stored_tensors
from edgevlm.package import open_package
from tests.broken import BrokenCase
from tests.broken.packages import CASES


def test_a_sound_package_opens(tiny: Path) -> None:
    package = open_package(tiny)
    assert package.manifest.name == "tiny" and package.has_vision
    assert package.graph("vision_encoder").is_file() and package.has_file("tokenizer.json")
    seen: dict[str, int] = {}

    def progress(path: str, n_bytes: int) -> None:
        seen[path] = seen.get(path, 0) + n_bytes

    package.check_hashes(progress)
    assert seen == {entry.path: entry.size_bytes for entry in package.manifest.files}


def test_a_flipped_bit_is_found_by_its_hash(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    data = copy / "onnx/embed_tokens.onnx_data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    package = open_package(copy)  # sizes agree
    with pytest.raises(PackageError, match=r"embed_tokens\.onnx_data: sha256 is"):
        package.check_hashes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_package_is_refused(case: BrokenCase, tmp_path: Path) -> None:
    argument = case.make(tmp_path)
    with pytest.raises(case.error) as caught:
        open_package(argument)
    message = str(caught.value)
    assert case.fragment in message
    assert "\n" not in message and len(message) < 600


def test_every_broken_package_was_sound_before(tiny: Path, tmp_path: Path) -> None:
    """The negative control of the table: rewriting the manifest alone breaks nothing."""
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    manifest = json.loads((copy / "edgevlm.json").read_text())
    (copy / "edgevlm.json").write_text(json.dumps(manifest))
    assert open_package(copy).manifest == open_package(tiny).manifest


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a//b", "a/./b", "", "a\\b", "C:x", "a\nb", "onnx", "nothing.json"]
)
def test_file_joins_safely(tiny: Path, path: str) -> None:
    with pytest.raises(PackageError):
        open_package(tiny).file(path)


def test_headers_are_read_as_the_onnx_package_reads_them(tiny: Path) -> None:
    for name in ("decoder_model_merged", "vision_encoder", "embed_tokens"):
        path = tiny / f"onnx/{name}.onnx"
        ours = {t.name: t for t in stored_tensors(path)}
        theirs = onnx.load(str(path), load_external_data=False).graph.initializer
        assert set(ours) == {tensor.name for tensor in theirs}
        for tensor in theirs:
            mine = ours[tensor.name]
            assert mine.shape == tuple(tensor.dims)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                info = ExternalDataInfo(tensor)
                assert (mine.location, mine.offset, mine.length) == (info.location, info.offset or 0, info.length)
            else:
                assert mine.location is None


def test_external_data_in_a_subgraph_is_seen(tmp_path: Path) -> None:
    inner = onnx.numpy_helper.from_array(np.ones(2, np.float32), "inner")
    onnx.external_data_helper.set_external_data(inner, "../../secret", offset=8, length=8)
    inner.data_location = onnx.TensorProto.EXTERNAL
    inner.ClearField("raw_data")
    branch = onnx.helper.make_graph([], "branch", [], [], [inner])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    constant = onnx.helper.make_node("Constant", [], ["z"], value=inner)
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([node, constant], "g", [], [])).SerializeToString())
    found = stored_tensors(path)
    assert [(t.location, t.offset, t.length) for t in found] == [("../../secret", 8, 8)] * 3


def test_cut_and_random_headers_never_do_more_than_value_error(tiny: Path, tmp_path: Path) -> None:
    whole = (tiny / "onnx/decoder_model_merged.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    refused = 0
    for i in range(0, len(whole), max(1, len(whole) // 120)):
        digest = hashlib.sha256(str(i).encode()).digest()
        for content in (whole[:i], whole[:i] + digest + whole[i + 32 :]):
            path.write_bytes(content)
            try:
                stored_tensors(path)
            except ValueError:
                refused += 1
    assert refused > 100
