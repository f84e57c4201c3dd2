"""Runs texts through the Java tokenizer: one process for all of them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What the Java tokenizer makes of one text; None where it refuses."""

    ids: list[int] | None
    starts: list[int]
    ends: list[int]
    as_text: list[int] | None
    inner: list[int] | None
    decoded: str


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def integer(self) -> int:
        (value,) = struct.unpack_from(">i", self.data, self.at)
        self.at += 4
        return int(value)

    def integers(self) -> list[int] | None:
        count = self.integer()
        if count < 0:
            return None
        values = struct.unpack_from(f">{count}i", self.data, self.at)
        self.at += 4 * count
        return list(values)

    def text(self) -> str:
        size = self.integer()
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")


def run_tokenizer(classes: Path, tables: Path, texts: Sequence[str], scratch: Path) -> list[Result]:
    """Returns a result for each text."""
    encoded = [text.encode("utf-8") for text in texts]
    given = scratch / "texts.bin"
    given.write_bytes(
        struct.pack(">i", len(encoded)) + b"".join(struct.pack(">i", len(text)) + text for text in encoded)
    )
    found = scratch / "results.bin"
    command = ["java", "-cp", str(classes), "org.edgevlm.TokenizerRunner", str(tables), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reader = _Reader(found.read_bytes())
    results = []
    for _ in texts:
        ids = reader.integers()
        starts, ends = (reader.integers(), reader.integers()) if ids is not None else ([], [])
        as_text, inner = reader.integers(), reader.integers()
        decoded = reader.text() if ids is not None else ""
        results.append(Result(ids, starts or [], ends or [], as_text, inner, decoded))
    return results


def run_decoder(classes: Path, tables: Path, lists: Sequence[Sequence[int]], scratch: Path) -> list[str]:
    """Returns the Java stream decoder's text of each list of ids."""
    given, found = scratch / "lists.bin", scratch / "decoded.bin"
    given.write_bytes(
        struct.pack(">i", len(lists)) + b"".join(struct.pack(f">{1 + len(ids)}i", len(ids), *ids) for ids in lists)
    )
    command = [
        "java",
        "-cp",
        str(classes),
        "org.edgevlm.TokenizerRunner",
        str(tables),
        str(given),
        str(found),
        "decode",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reader = _Reader(found.read_bytes())
    return [reader.text() for _ in lists]
