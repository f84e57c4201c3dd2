"""Files that are no weights are named by their bytes; the archives are made by Python's own libraries."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile

import numpy as np
import pytest

from export.checkpoints.file_kinds import HEAD_BYTES, other_kind
from tests.safetensors_bytes import file_of


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return out.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Fetch it: git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html lang=en>", "a web page"),
    "page in capitals": (b"<HTML><HEAD>", "a web page"),
    "page behind a comment": (b"<!-- served by 12 -->\n<!doctype html>", "a web page"),
    "page behind a byte-order mark": (b"\xef\xbb\xbf<!doctype html>", "a web page"),
    "XML": (b"<?xml version='1.0' encoding='UTF-8'?><Error/>", "an XML answer"),
    "JSON object": (b'{ "error": "x" }', "JSON text"),
    "JSON list": (b'["a"]', "JSON text"),
    "text": (b"Access to model x is restricted. You must be authenticated to access it.", "plain text"),
    "text that is cut in a character": ("é".encode() * HEAD_BYTES, "plain text"),
    "gzip": (gzip.compress(b"x" * 100), "a gzip archive"),
    "zip": (zipped(), "a zip archive"),
    "bzip2": (bz2.compress(b"x" * 100), "a bzip2 archive"),
    "xz": (lzma.compress(b"x" * 100), "an xz archive"),
    **{f"pickle {n}": (pickle.dumps({"a": 1}, protocol=n), "a Python pickle") for n in (2, 3, 4, 5)},
    "zeros": (bytes(HEAD_BYTES), "zeros from its start on"),
    "GGUF under another name": (b"GGUF\3\0\0\0", "Give it with the ending .gguf"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_named_with_what_to_do(name: str) -> None:
    content, fragment = KINDS[name]
    found = other_kind(content[: HEAD_BYTES + (name == "text that is cut in a character")])
    assert found is not None and fragment in found and ". " in found
    assert "\n" not in found and len(found) < 200


def test_what_is_not_known_is_not_named() -> None:
    sound = file_of({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    random = np.random.default_rng(0).integers(0, 256, HEAD_BYTES, np.uint8).tobytes()
    assert [other_kind(content[:HEAD_BYTES]) for content in (b"", sound, random)] == [None, None, None]


def test_text_alone_says_nothing_of_a_template() -> None:
    for template in (b"<|im_start|>{{ x }}", b"{% for m in messages %}", b"{{ bos }}", b'{"a": 1}', b""):
        assert other_kind(template, is_text=True) is None
    assert other_kind(KINDS["pointer"][0], is_text=True) and other_kind(KINDS["page"][0], is_text=True)
