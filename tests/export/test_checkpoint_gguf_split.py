"""GGUF models in several files, split by the gguf library's own writer, against the same model in one file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError, PackageError
from export.checkpoint import open_checkpoint
from export.checkpoints.gguf_split import open_gguf_file
from tests.composed import write_composed
from tests.tiny_gguf import rewrite, write_model, write_split
from tests.weights import smollm2_135m

NAMES = ["tiny-00001-of-00003.gguf", "tiny-00002-of-00003.gguf", "tiny-00003-of-00003.gguf"]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole" / "tiny.gguf"
    path.parent.mkdir()
    write_model(path, quant="Q8_0")
    return path


@pytest.fixture
def pieces(whole: Path, tmp_path: Path) -> list[Path]:
    paths = write_split(whole, tmp_path / "pieces", max_tensors=8)
    assert [path.name for path in paths] == NAMES
    return paths


@pytest.mark.parametrize("given", range(3))
def test_every_piece_opens_the_whole(whole: Path, pieces: list[Path], given: int) -> None:
    ours, one = open_checkpoint(pieces[given]), open_checkpoint(whole)
    assert ours.name == one.name == "tiny"
    assert ours.config == one.config and ours.files == one.files
    assert ours.tensors() == one.tensors() and len(ours.tensors()) == 20
    for name in one.tensors():
        np.testing.assert_array_equal(ours.read(name), one.read(name), err_msg=name)
    ours.account()


def test_tensors_lie_in_the_pieces_where_the_library_wrote_them(pieces: list[Path]) -> None:
    """Independent of our reading of the whole: each piece by the gguf library's reader."""
    file = open_gguf_file(pieces[0])
    counts = []
    for piece in pieces:
        stored = gguf.GGUFReader(piece).tensors
        counts.append(len(stored))
        for tensor in stored:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            rows = file.tensors()[tensor.name].shape[0]
            np.testing.assert_array_equal(
                file.read_rows(tensor.name, 0, rows), expected.reshape(rows, *expected.shape[1:])
            )
    assert counts == [8, 8, 4]


def test_a_first_piece_without_tensors(whole: Path, tmp_path: Path) -> None:
    pieces = write_split(whole, tmp_path / "pieces", max_tensors=12, small_first=True)
    assert [len(gguf.GGUFReader(piece).tensors) for piece in pieces] == [0, 12, 8]
    assert open_checkpoint(pieces[0]).tensors() == open_checkpoint(whole).tensors()


def test_a_name_like_a_piece_without_its_metadata_is_one_file(whole: Path) -> None:
    renamed = whole.rename(whole.with_name("tiny-00002-of-00003.gguf"))
    assert len(open_checkpoint(renamed).tensors()) == 20


def test_a_composed_checkpoint_takes_pieces(tmp_path: Path) -> None:
    path = write_composed(tmp_path / "composed", language="language-00001-of-00002.gguf")
    expected = open_checkpoint(write_composed(tmp_path / "other"))
    (path / "language.gguf").rename(tmp_path / "language.gguf")
    write_split(tmp_path / "language.gguf", path, max_tensors=15)
    found = open_checkpoint(path)
    assert found.tensors() == expected.tensors() and found.files.keys() == expected.files.keys()


def _remove(pieces: list[Path]) -> Path:
    pieces[1].unlink()
    return pieces[0]


def _swap(pieces: list[Path]) -> Path:
    scratch = pieces[1].with_name("scratch")
    pieces[1].rename(scratch)
    pieces[2].rename(pieces[1])
    scratch.rename(pieces[2])
    return pieces[0]


def _rename(pieces: list[Path]) -> Path:
    return pieces[0].rename(pieces[0].with_name("model.gguf"))


def _twice(pieces: list[Path]) -> Path:
    shutil.copy(pieces[1], pieces[2])
    rewrite(pieces[2], {"split.no": 2})
    return pieces[0]


def _of_another(pieces: list[Path]) -> Path:
    """The last piece of the same model cut elsewhere, which has fewer tensors."""
    other = write_split(pieces[0].parents[1] / "whole" / "tiny.gguf", pieces[0].parent / "other", max_tensors=9)
    other[2].replace(pieces[2])
    return pieces[0]


def _count(pieces: list[Path]) -> Path:
    rewrite(pieces[1], {"split.count": 4})
    return pieces[0]


def _outside(pieces: list[Path]) -> Path:
    elsewhere = pieces[1].parent.parent / "secret.gguf"
    pieces[1].rename(elsewhere)
    pieces[1].symlink_to(elsewhere)
    return pieces[0]


def _cut(pieces: list[Path]) -> Path:
    pieces[2].write_bytes(pieces[2].read_bytes()[:-64])
    return pieces[0]


def _pointer(pieces: list[Path]) -> Path:
    pieces[2].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return pieces[0]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (_remove, "beside it is no tiny-00002-of-00003.gguf"),
        (_swap, "tiny-00002-of-00003.gguf has 'split.no' 2, but its name says 1"),
        (_rename, "expected NAME-00001-of-00003.gguf"),
        (_twice, "are not of one model"),
        (_of_another, r"states 20 tensors in all pieces .* hold 18"),
        (_count, "tiny-00002-of-00003.gguf has 'split.count' 4, but its name says 3"),
        (_outside, "outside the checkpoint"),
        (_cut, "tiny-00003-of-00003.gguf is cut off"),
        (_pointer, "tiny-00003-of-00003.gguf is not a GGUF file, but a Git LFS pointer"),
    ],
)
def test_pieces_that_do_not_fit_are_named(pieces: list[Path], change: Any, fragment: str) -> None:
    open_checkpoint(pieces[0])
    with pytest.raises(PackageError, match=fragment):
        open_checkpoint(change(pieces))


def test_any_flipped_byte_of_a_piece_is_an_error_or_a_sound_read(pieces: list[Path]) -> None:
    sound = pieces[2].read_bytes()
    end = sound.index(b"blk.1") + 300
    rng = np.random.default_rng(0)
    n_refused = 0
    for at in rng.integers(4, end, 60):
        damaged = bytearray(sound)
        damaged[at] ^= int(rng.integers(1, 256))
        pieces[2].write_bytes(damaged)
        try:
            open_checkpoint(pieces[0])
        except EdgeVLMError:
            n_refused += 1
    assert 20 < n_refused <= 60


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_in_pieces_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    path = smollm2_135m()
    pieces = write_split(path, tmp_path, max_bytes=20_000_000)
    assert len(pieces) >= 4
    ours, one = open_checkpoint(pieces[2]), open_checkpoint(path)
    assert ours.config == one.config and ours.files == one.files and ours.tensors() == one.tensors()
    for name in one.tensors():
        np.testing.assert_array_equal(ours.read(name), one.read(name), err_msg=name)
    shorter = write_split(path, tmp_path / "control", max_bytes=20_000_000, skip="blk.3.ffn_up.weight")
    with pytest.raises(PackageError, match=r"has no tensor 'blk\.3\.ffn_up\.weight'"):
        open_checkpoint(shorter[0])


@pytest.mark.reference
def test_transformers_reads_the_joined_pieces(whole: Path, pieces: list[Path]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from export.reference.load import load_reference

    one, joined = (load_reference(path).parts.language.state_dict() for path in (whole, pieces[1]))
    assert one.keys() == joined.keys()
    assert all(torch.equal(one[name], joined[name]) for name in one)
