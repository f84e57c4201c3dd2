"""What a file is that is no weight file or JSON: the things that downloads leave in their places, named by their bytes.

A Git LFS pointer, a page of a web server or an archive stands under the right name and fails at the first byte that is
read; the message then says what it is and how to get the file itself.
"""

from __future__ import annotations

import re
from pathlib import Path

HEAD_BYTES = 1024
AGAIN = "Download the file again"

_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which stands for a file that was not fetched",
        "Fetch it: git lfs pull",
    ),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first"),
    (b"PK\x03\x04", "a zip archive (as .bin checkpoints of PyTorch are)", "Unpack it, or give a safetensors file"),
    *(
        (b"\x80" + bytes([protocol]), "a Python pickle, which runs code when it is read", "Convert it to safetensors")
        for protocol in (2, 3, 4, 5)
    ),
    (b"BZh", "a bzip2 archive", "Unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive", "Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first"),
    (b"ggml", "a file of llama.cpp from before GGUF", "Convert the original checkpoint again"),
    (b"lmgg", "a file of llama.cpp from before GGUF", "Convert the original checkpoint again"),
    (b"fmgg", "a file of llama.cpp from before GGUF", "Convert the original checkpoint again"),
    (b"tjgg", "a file of llama.cpp from before GGUF", "Convert the original checkpoint again"),
    (b"GGUF", "a GGUF file", "Give it with the ending .gguf"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "Convert it to safetensors"),
)
"""(first bytes, what it is, what to do)."""

_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_XML = re.compile(rb"\s*<(\?xml|error>|svg)", re.IGNORECASE)
_JSON = re.compile(rb"\s*[{\[]\s*[\"}\]]")


def other_kind(head: bytes, *, is_text: bool = False) -> str | None:
    """What a file with these first bytes is and what to do, for a message; None when it is nothing that is known.

    `is_text`: the file ought to be text, so that text alone says nothing.
    """
    text = head.removeprefix(b"\xef\xbb\xbf")
    for magic, what, todo in _MAGICS:
        if text.startswith(magic):
            return f"{what}. {todo}"
    if _HTML.match(text):
        return f"a web page (HTML), perhaps the site's own page about the file or a login. {AGAIN}"
    if _XML.match(text):
        return f"an XML answer of a server, perhaps an error. {AGAIN}"
    if is_text:
        return None
    if _JSON.match(text):
        return f"JSON text, perhaps a server's answer ({_line(text)}). {AGAIN}"
    if head and not head.strip(b"\0"):
        return f"zeros from its start on, as after a download that broke off. {AGAIN}"
    if head and _is_text(text):
        return f"plain text ({_line(text)}). {AGAIN}"
    return None


def head_of(path: Path) -> bytes:
    """The first bytes of a file; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def other_kind_of(path: Path) -> str | None:
    """`other_kind` of the file at `path`."""
    return other_kind(head_of(path))


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _line(text: bytes) -> str:
    """The start of the text on one line, quoted."""
    line = " ".join(text.decode("utf-8", "replace").split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
