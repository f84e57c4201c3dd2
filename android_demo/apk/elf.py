"""What a checker must know about a shared library: its pages, what it needs, what it leaves undefined."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_TLS = 1, 2, 7
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_TEXTREL, _DT_STRSZ, _DT_SONAME, _DT_HASH, _DT_GNU_HASH = (
    1, 5, 6, 22, 10, 14, 4, 0x6FFFFEF5,
)  # fmt: skip
AARCH64, X86_64 = 183, 62


@dataclass(frozen=True)
class SharedLibrary:
    """Facts of one ELF file."""

    machine: int
    load_alignments: tuple[int, ...]
    needed: tuple[str, ...]
    undefined: tuple[str, ...]
    defined: tuple[str, ...]
    has_text_relocations: bool
    has_tls: bool


def read_library(data: bytes) -> SharedLibrary:
    """Returns the facts of a 64-bit little-endian ELF file. Raises ValueError when it is not one."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (program_offset, section_offset) = struct.unpack_from("<QQ", data, 32)
    entry_size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, program_offset + i * entry_size) for i in range(count)]
    loads = [segment for segment in segments if segment[0] == _PT_LOAD]

    def offset(address: int) -> int:
        for _, _, start, virtual, _, size, _, _ in loads:
            if virtual <= address < virtual + size:
                return int(start + address - virtual)
        raise ValueError(f"address {address:#x} is in no segment")

    tags: dict[int, list[int]] = {}
    for kind, _, start, _, _, size, _, _ in segments:
        if kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", data[start : start + size]):
                tags.setdefault(tag, []).append(value)
    names = offset(tags[_DT_STRTAB][0])

    def text(at: int) -> str:
        return data[names + at : data.index(b"\0", names + at)].decode("ascii")

    undefined: list[str] = []
    defined: list[str] = []
    for name, _, _, section, _, _ in _symbols(data, section_offset):
        if name:
            (undefined if section == 0 else defined).append(text(name))
    return SharedLibrary(
        machine,
        tuple(segment[7] for segment in loads),
        tuple(text(at) for at in tags.get(_DT_NEEDED, [])),
        tuple(sorted(undefined)),
        tuple(sorted(defined)),
        _DT_TEXTREL in tags,
        any(segment[0] == _PT_TLS for segment in segments),
    )


def _symbols(data: bytes, section_offset: int) -> list[tuple[int, ...]]:
    """The dynamic symbol table, found by its section header (kept by strip)."""
    entry_size, count = struct.unpack_from("<HH", data, 58)
    for i in range(count):
        _, kind, _, _, start, size, _, _, _, _ = struct.unpack_from(
            "<IIQQQQIIQQ", data, section_offset + i * entry_size
        )
        if kind == 11:  # SHT_DYNSYM
            return [
                (n, i, o, s, v, z) for n, i, o, s, v, z in struct.iter_unpack("<IBBHQQ", data[start : start + size])
            ]
    raise ValueError("the library has no dynamic symbol table")
