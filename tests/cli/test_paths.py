"""Names of files as people give them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from edgevlm.cli.paths import input_file, input_path, output_path, source_argument
from edgevlm.errors import ImageError, PackageError, UsageError
from edgevlm.image import load_image
from edgevlm.package import open_package


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my red.png", "my red.png"),
        ("'my red.png'", "my red.png"),
        ('"my red.png"', "my red.png"),
        ("my\\ red.png", "my red.png"),
        ("'my'\\ red.png", "my red.png"),
        ("'none.png'", "none.png"),  # told without its quotes
        ("no\\ ne.png", "no\\ ne.png"),
        ("it's.png", "it's.png"),
        ("a b c", "a b c"),
        ("", "."),
        ("~nobody-of-this-name/x.png", "~nobody-of-this-name/x.png"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_input(text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my red.png").write_bytes(b"")
    assert input_path(text) == Path(name)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a/b%20c.png", "/a/b c.png"),
        ("file://localhost/a/b.png", "/a/b.png"),
        ("FILE:///a/b.png", "/a/b.png"),
        ("file:/a/b.png", "/a/b.png"),
        ("'file:///a/b%27c.png'", "/a/b'c.png"),
        ("file:///a/what?#1.png", "/a/what?#1.png"),
        ("file:///a/%C3%A9.png", "/a/é.png"),
        ("file:///a/%E9.png", "/a/\udce9.png"),
        ("file:///a/100%.png", "/a/100%.png"),
    ],
)
def test_urls(text: str, path: str) -> None:
    assert input_path(text) == Path(path)
    if not text.startswith("'"):
        assert output_path(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("https://example.org/a.png", "download it"),
        ("'http://example.org/a.png'", "download it"),
        ("file://server/share/a.png", "is on server"),
    ],
)
def test_refused(text: str, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        input_path(text)
    with pytest.raises(argparse.ArgumentTypeError, match=fragment):
        input_file(text)


@pytest.mark.parametrize("text", ["a\0b", "file:///a%00b"])
def test_no_file_has_a_zero_byte_in_its_name(text: str) -> None:
    with pytest.raises(UsageError, match="no zero byte"):
        output_path(text)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(input_path(text))
    with pytest.raises(PackageError, match="no such package"):
        open_package(input_path(text))


def test_a_name_that_exists_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("'x'", "x", "a\\ b", "a b"):
        (tmp_path / name).write_bytes(b"")
    assert [input_path(name) for name in ("'x'", "a\\ b")] == [Path("'x'"), Path("a\\ b")]


def test_output_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert output_path("'x y'") == Path("'x y'") and output_path("a\\ b") == Path("a\\ b")
    assert output_path("~/x") == Path("/home/me/x") == input_path("'~/x'")
    assert source_argument("org/name@v1") == "org/name@v1"
    assert source_argument("file:///a/b%20c") == "/a/b c" and source_argument("~/m") == "/home/me/m"
